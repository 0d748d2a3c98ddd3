"""What clients ask of uploads, and what speaks against it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tusd_py.core.errors import FinalUploadModified, InvalidLength, MaxSizeExceeded, OffsetMismatch, SizeExceeded
from tusd_py.core.upload import Concatenation, Upload
from tusd_py.uploads.checksum import Verification
from tusd_py.uploads.options import Policy, SizeKind
from tusd_py.transfer.body_source import Source

MAX_UPLOAD_SIZE = (1 << 63) - 1  # bytes: what headers and records can tell


@dataclass(frozen=True, slots=True)
class NewUpload:
    """What a client asks to create; sizes are bytes."""

    length: int | None
    metadata: str | None = None
    concatenation: Concatenation = Concatenation.NONE
    concat_header: str | None = None
    partial_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Addition:
    """What a client asks to append at `offset`; `length` declares that of a deferred upload."""

    offset: int
    source: Source
    length: int | None = None
    verification: Verification | None = None


def check_addition(upload: Upload, addition: Addition, policy: Policy) -> Upload:
    """The upload with the length that the addition declares; raises what speaks against the addition."""
    if addition.offset != upload.offset:
        raise OffsetMismatch(upload.offset)
    if addition.length is not None:
        upload = _declare_length(upload, addition.length, policy)
    end = upload.offset + (addition.source.declared_size or 0)
    if upload.length is not None and end > upload.length:
        raise SizeExceeded
    if upload.length is None:
        check_size(end, policy, "deferred")
    return upload


def refuse_hopeless(record: Upload, addition: Addition, policy: Policy) -> None:
    """Raise the error that an addition ends with for certain, whatever a running append still commits."""
    if record.is_final:
        raise FinalUploadModified
    if addition.offset < record.offset:
        raise OffsetMismatch(record.offset)
    if addition.length is not None:
        record = _declare_length(record, addition.length, policy)
    end = addition.offset + (addition.source.declared_size or 0)
    if record.length is None:
        check_size(end, policy)
    elif addition.offset > record.length:
        raise OffsetMismatch(record.offset)
    elif end > record.length:
        raise SizeExceeded


async def append_nothing(upload: Upload, addition: Addition, policy: Policy) -> Upload:
    """A repeated request at the end of a complete upload is fine, if it brings nothing more."""
    check_addition(upload, addition, policy)
    while (data := await addition.source.read()) is not None:
        if data:
            raise SizeExceeded
    return upload


def _declare_length(upload: Upload, length: int, policy: Policy) -> Upload:
    if upload.length is not None:
        if length != upload.length:
            raise InvalidLength(f"the length of the upload is {upload.length} and cannot be changed")
        return upload
    if length < upload.offset:
        raise InvalidLength(f"the upload has {upload.offset} bytes already")
    check_size(length, policy, "deferred" if upload.offset or upload.layout else "declared")
    return replace(upload, length=length)


def check_size(size: int | None, policy: Policy, kind: SizeKind = "declared") -> None:
    """Raise `MaxSizeExceeded` if an upload of so many bytes is not accepted."""
    if size is not None and size > MAX_UPLOAD_SIZE:
        raise MaxSizeExceeded(f"no upload can have more than {MAX_UPLOAD_SIZE} bytes")
    limit = policy.largest(kind)
    if size is not None and limit is not None and size > limit:
        raise MaxSizeExceeded(limit_text(policy, kind))


def limit_text(policy: Policy, kind: SizeKind) -> str:
    """The sentence for a client whose upload goes beyond a limit."""
    limit = policy.largest(kind)
    deferred = kind == "deferred" and limit != policy.largest("declared")
    whose = " whose length is not declared before their first byte" if deferred else ""
    return f"uploads{whose} may have at most {limit} bytes"
