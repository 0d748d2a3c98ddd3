"""Creations by a URL that grants one: its limits and its metadata, added to what the client wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tusd_py.auth.signatures import CreationGrant
from tusd_py.core.conditions import Conditions
from tusd_py.core.metadata import MetadataLimits, with_pairs
from tusd_py.core.upload import UploadKind
from tusd_py.http.digest_fields import digests_of
from tusd_py.http.errors import HTTPError
from tusd_py.http.tus.headers import parse_metadata
from tusd_py.uploads.validation import NewUpload, Reservation

CLOCK_MARGIN = 3600.0  # seconds by which clocks of hosts may differ: until then the id of an expired grant is taken


def metadata_with(
    grant: CreationGrant | None, metadata: str, limits: MetadataLimits
) -> tuple[str, Mapping[str, bytes]]:
    """Return the metadata of a client and of its grant, as a text and as pairs.

    Raises `InvalidHeader` if that of the client is malformed, or beyond the limits, alone or together.
    """
    pairs = parse_metadata(metadata, limits)
    if grant is None or not grant.metadata:
        return metadata, pairs
    metadata = with_pairs(metadata, grant.metadata)
    return metadata, parse_metadata(metadata, limits)


def granted_digests(grant: CreationGrant) -> tuple[tuple[str, str], ...]:
    """Return the digest that the metadata of a grant demand, whatever those of clients count."""
    return digests_of({}, {key: value.encode("utf-8", "replace") for key, value in grant.metadata.items()})


def granted(new: NewUpload, grant: CreationGrant) -> NewUpload:
    """Return a request for a new upload, which has the metadata of its grant, within its other limits.

    Raises `HTTPError` if the upload is a final one, or a partial one whose type is limited: a part of a file is not
    judged by its bytes.
    """
    if new.concatenation is UploadKind.FINAL:
        raise HTTPError(403, "ERR_FORBIDDEN", "this URL is for an upload of its own, not for a final one")
    if new.concatenation is UploadKind.PARTIAL and grant.types:
        raise HTTPError(403, "ERR_FORBIDDEN", "this URL is for a whole file of certain types, not for a part of one")
    conditions = Conditions(new.conditions.digests, grant.types) if grant.types else new.conditions
    reservation = Reservation(grant.upload_id, grant.expires_at + CLOCK_MARGIN)
    return replace(new, max_size=grant.max_size, reservation=reservation, conditions=conditions)
