"""Quotas of owners: the share of an upload in the usage of its owner, and the checks of a new or growing one.

Stores that count by a language of their own (SQL, Lua) follow `counted_bytes` and `is_open` to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.core.errors import QuotaExceeded
from tusd_py.core.upload import Status, Upload

# Bytes of one upload that count: as many as a file of ext4 can have. Half a million declared lengths of this size
# make the largest integer of the stores.
MAX_COUNTED = 1 << 44


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of an owner.

    Attributes:
        bytes: finished uploads, the declared lengths of unfinished ones, and what those of unknown length hold.
        open: number of unfinished uploads.
    """

    bytes: int = 0
    open: int = 0


def counted_bytes(upload: Upload) -> int:
    """Return the bytes that count for the owner of an upload.

    Partial uploads stand for their final one until it is complete, then the final one stands for them until it ends.
    """
    if upload.has_ended or upload.uncounted or (upload.is_final and not upload.is_complete):
        return 0
    return min(upload.offset if upload.length is None else upload.length, MAX_COUNTED)


def is_open(upload: Upload) -> bool:
    """Return whether an upload counts as unfinished; a final one takes no bytes of a client, and never does."""
    return upload.status in (Status.ACTIVE, Status.FINISHING) and not upload.is_final and not upload.uncounted


def has_quota(upload: Upload) -> bool:
    """Return whether the creation of an upload is subject to a quota."""
    return upload.quota_bytes is not None or upload.quota_uploads is not None


def needed_bytes(upload: Upload) -> int:
    """Return the bytes that have to be free for a new upload: one at least if its length is unknown."""
    return 1 if upload.length is None and not upload.is_final else counted_bytes(upload)


def growth(before: Upload, after: Upload) -> int:
    """Return the bytes by which a change of a record makes a limited usage grow; 0 if there is no limit."""
    return 0 if after.quota_bytes is None else max(0, counted_bytes(after) - counted_bytes(before))


def replaces_partials(before: Upload, after: Upload) -> bool:
    """Return whether a change completes a final upload, so that its partial uploads no longer count."""
    return after.is_final and after.is_complete and not before.is_complete


def returns_partials(before: Upload, after: Upload) -> bool:
    """Return whether a change ends a complete final upload, so that its partial uploads that are left count again."""
    return before.is_final and before.is_complete and after.has_ended


def check_new(upload: Upload, usage: Usage) -> None:
    """Raise `QuotaExceeded` if the owner, who has this usage, may not add the upload."""
    check_growth(upload, needed_bytes(upload), usage)
    if upload.quota_uploads is not None and is_open(upload) and usage.open >= upload.quota_uploads:
        raise uploads_exceeded(upload)


def check_growth(upload: Upload, size: int, usage: Usage) -> None:
    """Raise `QuotaExceeded` if the owner, who has this usage, may not have `size` bytes more by the upload."""
    if upload.quota_bytes is not None and size > 0 and usage.bytes + size > upload.quota_bytes:
        raise bytes_exceeded(upload)


def bytes_exceeded(upload: Upload) -> QuotaExceeded:
    """Return the error of an upload for whose bytes its owner has no room."""
    return QuotaExceeded(f"all uploads of one owner may have at most {upload.quota_bytes} bytes together")


def uploads_exceeded(upload: Upload) -> QuotaExceeded:
    """Return the error of an upload whose owner has as many unfinished ones as are allowed."""
    return QuotaExceeded(f"one owner may have at most {upload.quota_uploads} unfinished uploads")
