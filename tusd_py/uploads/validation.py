"""Requests of clients for creations and appends, and their validation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from tusd_py.core.conditions import NO_CONDITIONS, Conditions
from tusd_py.core.errors import FinalUploadModified, InvalidLength, MaxSizeExceeded, OffsetMismatch, SizeExceeded
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import MAX_UPLOAD_SIZE, Upload, UploadKind
from tusd_py.transfer.body_source import BodySource
from tusd_py.uploads.admission import ANY_UPLOAD, Admission
from tusd_py.uploads.checksum import Verification
from tusd_py.uploads.options import SizeKind, UploadOptions


@dataclass(frozen=True, slots=True)
class Reservation:
    """An id that one new upload takes, and none after it, also when the upload has ended.

    Attributes:
        upload_id: the id.
        until: seconds since the epoch; nobody asks for the id later.
    """

    upload_id: str
    until: float


@dataclass(frozen=True, slots=True)
class NewUpload:
    """A request for a new upload; sizes are bytes."""

    length: int | None
    metadata: str | None = None
    concatenation: UploadKind = UploadKind.NONE
    concat_header: str | None = None
    partial_ids: tuple[str, ...] = ()
    context: RequestContext | None = None
    # Choices of the application or of the authentication, in place of those of the server.
    id: str | None = None
    expires_at: float | None = None
    owner: str | None = None
    max_size: int | None = None
    quota_bytes: int | None = None
    path: str | None = None
    reservation: Reservation | None = None  # that the upload takes, once
    conditions: Conditions = NO_CONDITIONS
    # Whether the sender may use a partial upload, or be given a final one again; None: anybody may.
    may_use: Callable[[Upload], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """A request for an append at `offset`; `length` declares the length of a deferred upload.

    The append is made to no other upload than that of `admission`. Unless it `waits` for the lock, a holder of the lock
    is asked for nothing, and the append refused.
    """

    offset: int
    source: BodySource
    length: int | None = None
    verification: Verification | None = None
    context: RequestContext | None = None
    admission: Admission = ANY_UPLOAD
    waits: bool = True


def check_append(upload: Upload, append_request: AppendRequest, options: UploadOptions) -> Upload:
    """Return the upload with the length that the request declares; raises the reason to refuse the append."""
    if append_request.offset != upload.offset:
        raise OffsetMismatch(upload.offset)
    options = options.limited_to(upload.max_size)
    if append_request.length is not None:
        upload = _declare_length(upload, append_request.length, options)
    end = upload.offset + (append_request.source.declared_size or 0)
    if upload.length is not None and end > upload.length:
        raise SizeExceeded
    if upload.length is None:
        check_size(end, options, "deferred")
    return upload


def refuse_hopeless(record: Upload, append_request: AppendRequest, options: UploadOptions) -> None:
    """Raise the error of an append that cannot succeed, whatever a running append still commits."""
    if record.is_final:
        raise FinalUploadModified
    if append_request.offset < record.offset:
        raise OffsetMismatch(record.offset)
    options = options.limited_to(record.max_size)
    if append_request.length is not None:
        record = _declare_length(record, append_request.length, options)
    end = append_request.offset + (append_request.source.declared_size or 0)
    if record.length is None:
        check_size(end, options)
    elif append_request.offset > record.length:
        raise OffsetMismatch(record.offset)
    elif end > record.length:
        raise SizeExceeded


async def verify_no_more_bytes(upload: Upload, append_request: AppendRequest, options: UploadOptions) -> Upload:
    """Return the complete upload if a repeated request brings no more bytes; otherwise raise `SizeExceeded`."""
    check_append(upload, append_request, options)
    while (data := await append_request.source.read()) is not None:
        if data:
            raise SizeExceeded
    return upload


def _declare_length(upload: Upload, length: int, options: UploadOptions) -> Upload:
    if upload.length is not None:
        if length != upload.length:
            raise InvalidLength(f"the length of the upload is {upload.length} and cannot be changed")
        return upload
    if length < upload.offset:
        raise InvalidLength(f"the upload has {upload.offset} bytes already")
    check_size(length, options, "deferred" if upload.offset or upload.storage_state else "declared")
    return replace(upload, length=length)


def check_size(size: int | None, options: UploadOptions, kind: SizeKind = "declared") -> None:
    """Raise `MaxSizeExceeded` if an upload of `size` bytes is not accepted."""
    if size is not None and size > MAX_UPLOAD_SIZE:
        raise MaxSizeExceeded(f"no upload can have more than {MAX_UPLOAD_SIZE} bytes")
    limit = options.largest(kind)
    if size is not None and limit is not None and size > limit:
        raise MaxSizeExceeded(limit_text(options, kind))


def limit_text(options: UploadOptions, kind: SizeKind) -> str:
    """Return the sentence for a client whose upload exceeds a limit."""
    limit = options.largest(kind)
    deferred = kind == "deferred" and limit != options.largest("declared")
    whose = " whose length is not declared before their first byte" if deferred else ""
    return f"uploads{whose} may have at most {limit} bytes"
