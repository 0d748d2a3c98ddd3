"""Pages of a list of uploads, and the filter of a list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tusd_py.core.upload import Status, Upload

MAX_SCANNED = 1000  # records that a store looks at for one page


@dataclass(frozen=True, slots=True)
class UploadFilter:
    """Conditions that the uploads of a list fulfil; None disables one. Times are seconds since the epoch.

    Example: `UploadFilter(status=Status.ACTIVE, created_before=time.time() - 3600)`.
    """

    status: Status | None = None
    owner: str | None = None
    created_after: float | None = None
    created_before: float | None = None

    def matches(self, upload: Upload) -> bool:
        """Return whether an upload fulfils every condition."""
        return (
            (self.status is None or upload.status is self.status)
            and (self.owner is None or upload.owner == self.owner)
            and (self.created_after is None or upload.created_at > self.created_after)
            and (self.created_before is None or upload.created_at < self.created_before)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some uploads of a list, in the order of their ids.

    `after` goes into the next call; None at the end of the list. A page may hold fewer uploads than asked for, even
    none, before the end, since a store looks at `MAX_SCANNED` records at most for one page. Example: `Uploads.list`.
    """

    uploads: tuple[Upload, ...]
    after: str | None


EVERYTHING = UploadFilter()


def next_page(records: Iterable[tuple[str, Upload | None]], limit: int, condition: UploadFilter, *, last: bool) -> Page:
    """Return a page of the records that follow the cursor, in the order of their ids.

    Args:
        records: ids with their records, None for one that cannot be read or is gone.
        limit: number of uploads of the page at most.
        condition: uploads that do not match it are passed over.
        last: whether no record follows these.
    """
    found: list[Upload] = []
    cursor: str | None = None
    for upload_id, upload in records:
        if len(found) == limit:
            return Page(tuple(found), cursor)
        cursor = upload_id
        if upload is not None and condition.matches(upload):
            found.append(upload)
    return Page(tuple(found), None if last else cursor)
