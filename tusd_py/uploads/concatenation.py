"""Final uploads and their partial uploads (tus 1.0.0, Concatenation)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tusd_py.core.errors import InvalidConcatenation, PartialUnfinished
from tusd_py.core.request_context import client_of, owner_of
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.uploads.content_checks import refuse_declared_type
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.validation import NewUpload, check_size


def check_partial_ids(partial_ids: Sequence[str], options: UploadOptions) -> None:
    """Raise `InvalidConcatenation` for too many partial uploads: a small request could cause large copies."""
    if len(partial_ids) > options.concatenation_parts:
        raise InvalidConcatenation(
            f"a final upload may name at most {options.concatenation_parts} partial uploads, not {len(partial_ids)}"
        )
    _, repeats = Counter(partial_ids).most_common(1)[0]
    if repeats > options.concatenation_repeats:
        raise InvalidConcatenation(
            f"a final upload may name the same partial upload at most {options.concatenation_repeats} times,"
            f" not {repeats} times"
        )


def new_final(upload_id: str, new: NewUpload, partials: Sequence[Upload], options: UploadOptions, now: float) -> Upload:
    """Return the record of a final upload, which is in `finishing` from the start.

    Raises `InvalidConcatenation`, `MaxSizeExceeded`, `TypeNotAllowed`, and `PartialUnfinished` unless the options allow
    it to wait.
    """
    for partial in partials:
        if not partial.is_partial:
            raise InvalidConcatenation(f"upload {partial.id} is not a partial upload")
        if not partial.is_complete and not options.concatenation_unfinished:
            raise PartialUnfinished(partial.id)
    length = _total(partials)
    check_size(length, options.limited_to(new.max_size), "final")
    final = Upload(
        id=upload_id,
        created_at=now,
        length=length,
        status=Status.FINISHING,
        metadata=new.metadata,
        concatenation=UploadKind.FINAL,
        concat_header=new.concat_header,
        partial_ids=new.partial_ids,
        owner=owner_of(new.context) if new.owner is None else new.owner,
        max_size=new.max_size,
        quota_bytes=options.quota_bytes if new.quota_bytes is None else new.quota_bytes,
        conditions=new.conditions.encode(),
        client=client_of(new.context),
    )
    refuse_declared_type(final, options)
    return final


def is_part(final: Upload, partial: Upload) -> bool:
    """Return whether a partial upload can be the one of its id that a final one was accepted with.

    The id may have been used again since. An upload of another owner that is younger than the final one is not what
    the sender of the final one was allowed to use.
    """
    return partial.owner == final.owner or partial.created_at <= final.created_at


def with_length(final: Upload, partials: Sequence[Upload], options: UploadOptions) -> Upload:
    """Return the final upload with the length of its partial ones; raises `PartialUnfinished`, `MaxSizeExceeded`."""
    for partial in partials:
        if not partial.is_complete:
            raise PartialUnfinished(partial.id)
    length = sum(partial.offset for partial in partials)
    check_size(length, options.limited_to(final.max_size), "final")
    return replace(final, length=length, offset=length)


def _total(partials: Sequence[Upload]) -> int | None:
    """Return the sum of the lengths; None while one of them is unknown."""
    total = 0
    for partial in partials:
        if partial.length is None:
            return None
        total += partial.length
    return total
