"""Creations by a URL that grants one: its limits and its metadata, added to what the client wants."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.auth.signatures import CreationGrant
from tusd_py.core.metadata import MetadataLimits, decode_metadata, with_pairs
from tusd_py.core.upload import UploadKind
from tusd_py.http.errors import HTTPError
from tusd_py.http.tus.headers import parse_metadata, quoted
from tusd_py.uploads.validation import NewUpload, Reservation

CLOCK_MARGIN = 3600.0  # seconds by which clocks of hosts may differ: until then the id of an expired grant is taken
TYPE_KEYS = ("filetype", "type", "contentType")  # of metadata, as clients name the media type


def granted(new: NewUpload, grant: CreationGrant, limits: MetadataLimits) -> NewUpload:
    """Return a request for a new upload within its grant.

    Raises:
        HTTPError: the upload is not of a type of the grant, or it is a final one.
        InvalidHeader: the metadata of both together are beyond the limits.
    """
    if new.concatenation is UploadKind.FINAL:
        raise HTTPError(403, "ERR_FORBIDDEN", "this URL is for an upload of its own, not for a final one")
    metadata = new.metadata
    if grant.metadata:
        metadata = with_pairs(metadata or "", grant.metadata)
        parse_metadata(metadata, limits)
    if grant.types:
        _check_type(metadata, grant.types)
    reservation = Reservation(grant.upload_id, grant.expires_at + CLOCK_MARGIN)
    return replace(new, metadata=metadata, max_size=grant.max_size, reservation=reservation)


def _check_type(metadata: str | None, types: tuple[str, ...]) -> None:
    values = decode_metadata(metadata or "")
    declared = next((values[key] for key in TYPE_KEYS if values.get(key)), "")
    name = declared.partition(";")[0].strip().lower()
    if not any(name == allowed or (allowed.endswith("/*") and name.startswith(allowed[:-1])) for allowed in types):
        came = f"{quoted(declared)} came" if declared else "none came"
        raise HTTPError(
            415, "ERR_TYPE_NOT_ALLOWED", f"the filetype in Upload-Metadata must be {' or '.join(types)}, {came}"
        )
