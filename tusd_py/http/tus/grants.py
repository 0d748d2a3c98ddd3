"""Creations by a URL that grants one: its limits and its metadata, added to what the client wants."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.auth.signatures import CreationGrant
from tusd_py.core.conditions import Conditions
from tusd_py.core.metadata import MetadataLimits, with_pairs
from tusd_py.core.upload import UploadKind
from tusd_py.http.errors import HTTPError
from tusd_py.http.tus.headers import parse_metadata
from tusd_py.uploads.validation import NewUpload, Reservation

CLOCK_MARGIN = 3600.0  # seconds by which clocks of hosts may differ: until then the id of an expired grant is taken


def granted(new: NewUpload, grant: CreationGrant, limits: MetadataLimits) -> NewUpload:
    """Return a request for a new upload within its grant.

    Raises:
        HTTPError: the upload is a final one.
        InvalidHeader: the metadata of both together are beyond the limits.
    """
    if new.concatenation is UploadKind.FINAL:
        raise HTTPError(403, "ERR_FORBIDDEN", "this URL is for an upload of its own, not for a final one")
    metadata = new.metadata
    if grant.metadata:
        metadata = with_pairs(metadata or "", grant.metadata)
        parse_metadata(metadata, limits)
    conditions = Conditions(new.conditions.digests, grant.types) if grant.types else new.conditions
    reservation = Reservation(grant.upload_id, grant.expires_at + CLOCK_MARGIN)
    return replace(new, metadata=metadata, max_size=grant.max_size, reservation=reservation, conditions=conditions)
