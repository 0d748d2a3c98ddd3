"""Questions of administrators about the records: filter, order and pages of a list, and totals. Pure functions."""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tusd_py.core.listing import EVERYTHING, UploadFilter
from tusd_py.core.metadata import file_name_of
from tusd_py.core.upload import Status, Upload

MAX_LIMIT = 1000  # uploads of a page
MAX_CURSOR_LENGTH = 8192  # characters
MAX_ID_SIZE = 256  # bytes of an id in a cursor
MAX_KEY_LENGTH = 100  # characters of a value of the metadata that uploads are ordered by
TOP_OWNERS = 20  # owners with the most bytes, of which the totals tell

Key: TypeAlias = int | float | str | None  # None comes before every other value


@dataclass(frozen=True, slots=True)
class Position:
    """The place in a list of the last upload of a page: its value of the field that the list is ordered by, its id."""

    key: Key
    id: str


@dataclass(frozen=True, slots=True)
class UploadQuery:
    """A page of a list of uploads.

    Uploads with the same value of `order` are in the order of their ids, both in the same direction.

    Attributes:
        condition: uploads that do not match are left out.
        order: a name in `ORDERS`.
        descending: whether the largest value comes first.
        limit: number of uploads of the page at most, from 1.
        after: where the page before ended; None for the first page.
    """

    condition: UploadFilter = EVERYTHING
    order: str = "created_at"
    descending: bool = True
    limit: int = 100
    after: Position | None = None


@dataclass(frozen=True, slots=True)
class QueryPage:
    """Some uploads of a list, and where the next page begins; None at the end of the list.

    A page may hold fewer uploads than asked for, even none, before the end.
    """

    uploads: tuple[Upload, ...]
    next: Position | None


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the uploads: their number, and the sum of their offsets in bytes."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.count + other.count, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Totals:
    """The records in numbers.

    Attributes:
        by_status: of every status that occurs.
        by_owner: of the `TOP_OWNERS` owners with the most bytes, most first; an empty name stands for no owner.
        oldest_active: creation time of the oldest unfinished upload in seconds since the epoch; None without one.
    """

    by_status: Mapping[Status, Share]
    by_owner: Mapping[str, Share]
    oldest_active: float | None


def file_type_of(metadata: Mapping[str, str]) -> str:
    """Return the media type that a client gave its file, whatever it may be; empty without one."""
    return metadata.get("filetype") or metadata.get("type") or ""


# The fields that a list can be ordered by. The first ones are fields of records; stores know them by these names.
STORED_ORDERS: Mapping[str, Callable[[Upload], Key]] = {
    "created_at": lambda upload: upload.created_at,
    "id": lambda upload: upload.id,
    "status": lambda upload: str(upload.status),
    "offset": lambda upload: upload.offset,
    "length": lambda upload: upload.length,
    "owner": lambda upload: upload.owner,
    "concatenation": lambda upload: str(upload.concatenation),
    "updated_at": lambda upload: upload.changed_at,
    "completed_at": lambda upload: upload.completed_at,
    "expires_at": lambda upload: upload.expires_at,
    "client": lambda upload: upload.client,
}
ORDERS: Mapping[str, Callable[[Upload], Key]] = {
    **STORED_ORDERS,
    "filename": lambda upload: file_name_of(upload.decoded_metadata)[:MAX_KEY_LENGTH],
    "filetype": lambda upload: file_type_of(upload.decoded_metadata)[:MAX_KEY_LENGTH],
}
TEXT_ORDERS = frozenset(("id", "status", "owner", "concatenation", "client", "filename", "filetype"))
NULLABLE_ORDERS = frozenset(("length", "completed_at", "expires_at"))


def position_of(upload: Upload, order: str) -> Position:
    """Return the place of an upload in a list with this order."""
    return Position(ORDERS[order](upload), upload.id)


def rank(position: Position) -> tuple[bool, Any, str]:
    """Return what places in one list compare by, ascending."""
    return position.key is not None, position.key if position.key is not None else 0, position.id


def follows(position: Position, after: Position | None, *, descending: bool) -> bool:
    """Return whether a place comes after another one; every place comes after None."""
    if after is None:
        return True
    return rank(position) < rank(after) if descending else rank(position) > rank(after)


class TopUploads:
    """The first uploads of a list, collected from records that come in any order.

    Invariant: holds `limit` + 1 records at most, the last of which tells that there is another page.
    """

    def __init__(self, query: UploadQuery) -> None:
        self._query = query
        self._heap: list[_Entry] = []

    def add(self, upload: Upload) -> None:
        """Consider a record, unless it does not match or comes before the page."""
        query = self._query
        if not query.condition.matches(upload):
            return
        position = position_of(upload, query.order)
        if not follows(position, query.after, descending=query.descending):
            return
        entry = _Entry(rank(position), upload, descending=query.descending)
        if len(self._heap) <= query.limit:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def page(self) -> QueryPage:
        """Return the page of the records so far."""
        return page_of([entry.upload for entry in sorted(self._heap, reverse=True)], self._query)


class _Entry:
    """A record in a heap whose first element is the one that comes last in the list."""

    __slots__ = ("descending", "rank", "upload")

    def __init__(self, rank: tuple[bool, Any, str], upload: Upload, *, descending: bool) -> None:
        self.rank = rank
        self.upload = upload
        self.descending = descending

    def __lt__(self, other: _Entry) -> bool:
        return self.rank < other.rank if self.descending else other.rank < self.rank


def page_of(found: Iterable[Upload], query: UploadQuery) -> QueryPage:
    """Return a page of uploads in the order of a list, of which one more than `query.limit` is known if there is."""
    uploads = tuple(found)
    shown = uploads[: query.limit]
    more = len(uploads) > query.limit
    return QueryPage(shown, position_of(shown[-1], query.order) if more else None)


def top_owners(shares: Mapping[str, Share]) -> dict[str, Share]:
    """Return the owners with the most bytes, most first."""
    best = heapq.nsmallest(TOP_OWNERS, shares.items(), key=lambda item: (-item[1].bytes, -item[1].count, item[0]))
    return dict(best)


class Counting:
    """The totals of records that are counted one after the other, or in groups."""

    def __init__(self) -> None:
        self._by_status: dict[Status, Share] = {}
        self._by_owner: dict[str, Share] = {}
        self._oldest: float | None = None

    def add(self, status: Status, owner: str, share: Share, oldest: float) -> None:
        """Count records of one status and owner, of which the oldest was created at `oldest`."""
        self._by_status[status] = self._by_status.get(status, Share()) + share
        self._by_owner[owner] = self._by_owner.get(owner, Share()) + share
        if status is Status.ACTIVE and (self._oldest is None or oldest < self._oldest):
            self._oldest = oldest

    def totals(self) -> Totals:
        """Return the totals so far."""
        return Totals(self._by_status, top_owners(self._by_owner), self._oldest)


def matches_text(upload: Upload, text: str) -> bool:
    """Return whether id, owner or a value of the metadata contains a text, ignoring case; `text` is folded."""
    if text in upload.id.casefold() or text in upload.owner.casefold():
        return True
    return any(text in value.casefold() for value in upload.decoded_metadata.values())


def encode_cursor(query: UploadQuery, position: Position) -> str:
    """Return the text that leads to the page of a list that begins after a place."""
    content = json.dumps([query.order, int(query.descending), position.key, position.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def decode_cursor(text: str, order: str, *, descending: bool) -> Position:
    """Return the place that a text of `encode_cursor` names; raises `ValueError` for one of another list."""
    try:
        if len(text) > MAX_CURSOR_LENGTH or not text.isascii():
            raise ValueError
        content = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        named, direction, key, upload_id = content
        if (named, direction) != (order, int(descending)) or isinstance(direction, bool):
            raise ValueError
        if not _is_key(key, order) or not (isinstance(upload_id, str) and len(upload_id.encode()) <= MAX_ID_SIZE):
            raise ValueError
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise ValueError("it is no cursor of this list") from None
    return Position(key, upload_id)


def _is_key(key: object, order: str) -> bool:
    if key is None:
        return order in NULLABLE_ORDERS
    if order in TEXT_ORDERS:
        return isinstance(key, str) and (order not in STORED_ORDERS or len(key.encode()) >= 0)
    return isinstance(key, int | float) and not isinstance(key, bool) and abs(key) < 1 << 63
