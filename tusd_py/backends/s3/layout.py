"""The storage state of a record in S3 (`Upload.storage_state`), and entries of the part list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tusd_py.core.errors import StoredElsewhere
from tusd_py.core.upload import Upload, UploadPart


@dataclass(frozen=True, slots=True)
class Tail:
    """An object with bytes that do not fill a part yet, from offset `start` to `end` of the upload."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Multipart:
    """A multipart upload in S3."""

    key: str
    id: str
    put_id: str  # metadata of the object that the multipart upload makes


@dataclass(frozen=True, slots=True)
class Layout:
    """The bytes of an upload: parts up to `parts_end` and tails from there on, or one whole object."""

    key: str = ""  # key of the object; empty before the first byte is stored
    part_size: int = 0
    growing: bool = False
    largest: int = 0  # bytes that parts grow to
    multipart: str = ""  # id of the multipart upload; empty if there is none yet
    put_id: str = ""  # metadata of the object that the multipart upload makes
    next_number: int = 1  # number of the next part; those below it may be in use
    parts_end: int = 0
    tails: tuple[Tail, ...] = ()
    dropped: tuple[str, ...] = ()  # tails that are no longer needed once this layout is committed
    placed: str = ""  # put id of the object that holds every byte, yet to be verified
    is_assembled: bool = False  # whether the object holds every byte

    def covered(self, limit: int) -> int:
        """Return the offset up to which bytes are stored without a gap, at most `limit`."""
        end = min(self.parts_end, limit)
        for tail in self.tails:
            if tail.start <= end < tail.end:
                end = min(tail.end, limit)
        return end

    def tails_from(self, start: int, end: int) -> tuple[Tail, ...]:
        """Return the tails that hold the bytes between these offsets, in order and cut at `end`.

        The first one may begin before `start`: parts can end within a tail.
        """
        found = []
        for tail in self.tails:
            if tail.start <= start < tail.end and start < end:
                found.append(Tail(tail.name, tail.start, min(tail.end, end)))
                start = found[-1].end
        return tuple(found)

    @property
    def tail_names(self) -> tuple[str, ...]:
        """Names of all tails that may exist, including those that are no longer needed."""
        return (*(tail.name for tail in self.tails), *self.dropped)


def dump(layout: Layout) -> str:
    """Return a layout as compact JSON, without empty fields."""
    fields: dict[str, Any] = {
        "key": layout.key,
        "size": layout.part_size,
        "grow": layout.growing,
        "max": layout.largest,
        "mpu": layout.multipart,
        "mark": layout.put_id,
        "next": layout.next_number if layout.next_number > 1 else 0,
        "end": layout.parts_end,
        "tails": [[tail.name, tail.start, tail.end] for tail in layout.tails],
        "drop": list(layout.dropped),
        "put": layout.placed,
        "whole": layout.is_assembled,
    }
    return json.dumps({name: value for name, value in fields.items() if value}, separators=(",", ":"))


def layout_of(upload: Upload) -> Layout:
    """Return the layout of a record. Raises `StoredElsewhere` if the bytes of the upload are not in S3."""
    if upload.offset and not upload.is_final and not upload.storage_state.startswith("{"):
        raise StoredElsewhere
    return parse(upload.storage_state)


def parse(text: str) -> Layout:
    """Parse the layout of a record; an empty one for an upload without stored bytes."""
    if not text.startswith("{"):
        return Layout()
    fields = json.loads(text)
    return Layout(
        key=fields.get("key", ""),
        part_size=fields.get("size", 0),
        growing=fields.get("grow", False),
        largest=fields.get("max", 0),
        multipart=fields.get("mpu", ""),
        put_id=fields.get("mark", ""),
        next_number=fields.get("next", 1),
        parts_end=fields.get("end", 0),
        tails=tuple(Tail(*tail) for tail in fields.get("tails", ())),
        dropped=tuple(fields.get("drop", ())),
        placed=fields.get("put", ""),
        is_assembled=fields.get("whole", False),
    )


def entry(number: int, start: int, end: int, etag: str, checksum: str) -> UploadPart:
    """Return an entry of the part list; its checksum field holds the size too, so that the start can be computed."""
    return UploadPart(number, end, etag, f"{end - start}:{checksum}")


def size_of_part(part: UploadPart) -> int:
    """Return the length of a part in bytes."""
    return int(part.checksum.partition(":")[0])


def checksum_of(part: UploadPart) -> str:
    """Return the checksum of a part that was sent to S3, as base64."""
    return part.checksum.partition(":")[2]


def contiguous(uploaded: Sequence[UploadPart], end: int) -> list[UploadPart]:
    """Return the parts that follow each other from the first byte on, none beyond `end`.

    Where bytes were lost and sent again the part list has both parts; the one with the larger number counts.
    """
    chain: list[UploadPart] = []
    for part in sorted(uploaded, key=lambda part: part.number):
        start = part.end - size_of_part(part)
        while chain and chain[-1].end > start:
            chain.pop()
        if start == (chain[-1].end if chain else 0) and part.end <= end:
            chain.append(part)
    return chain
