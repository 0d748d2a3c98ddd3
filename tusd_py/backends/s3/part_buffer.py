"""The part of an upload that is filling up: pieces of memory, and tails for what is not in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tusd_py.backends.s3.body import crc32
from tusd_py.backends.s3.errors import BytesMissing
from tusd_py.backends.s3.layout import Tail
from tusd_py.backends.s3.memory_limiter import BLOCK
from tusd_py.contracts.storage import Observer
from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import UploadPart


@dataclass(slots=True)
class PartBuffer:
    """Bytes from `start` to `end`; those from `memory_start` on are in memory, all before in tails.

    `memory_start` is always the end of a tail, or the start.
    """

    start: int
    memory_start: int
    end: int
    pieces: list[Buffer] = field(default_factory=list)
    crc: int | None = field(init=False)  # CRC-32 of all its bytes, if that is known

    def __post_init__(self) -> None:
        self.crc = 0 if self.start == self.end else None

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def in_memory(self) -> int:
        return self.end - self.memory_start

    def add(self, data: Buffer) -> None:
        last = self.pieces[-1] if self.pieces else None
        if isinstance(last, bytes) and len(last) + len(data) <= BLOCK:
            self.pieces[-1] = b"".join((last, data))
        else:
            self.pieces.append(data)
        self.end += len(data)

    def prepend(self, pieces: Sequence[Buffer]) -> None:
        self.pieces[:0] = pieces
        self.memory_start -= sum(map(len, pieces))

    def since(self, start: int) -> list[Buffer]:
        """The bytes in memory from this offset on."""
        skip = start - self.memory_start
        if skip < 0:
            raise BytesMissing
        found: list[Buffer] = []
        for piece in self.pieces:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            found.append(memoryview(piece)[skip:] if skip else piece)
            skip = 0
        return found

    def forget_before(self, start: int) -> int:
        """Let go of the bytes in memory before this offset; returns how many these were."""
        start = max(start, self.memory_start)
        self.pieces = [bytes(piece) if isinstance(piece, memoryview) else piece for piece in self.since(start)]
        freed = start - self.memory_start
        self.memory_start = start
        return freed

    def forget_from(self, end: int) -> int:
        """Let go of the bytes from this offset on, which is not before `memory_start`; returns how many these were."""
        freed = max(0, self.end - end)
        left = self.in_memory - freed
        views = [memoryview(piece) for piece in self.pieces]
        if freed:
            self.pieces = [bytes(view) for view in cut(views, left)]
            self.crc = None
        self.end -= freed
        return freed


@dataclass(slots=True)
class PendingPart:
    """A part on its way to S3."""

    number: int
    start: int
    end: int
    memory_start: int
    pieces: list[Buffer]
    crc: int | None
    tails: tuple[Tail, ...]  # where the bytes are that are not in memory
    held: int  # bytes counted as used
    part: UploadPart | None = None


def cut(views: list[memoryview], size: int) -> list[memoryview]:
    """Take so many bytes, or what there is, from the front of the list."""
    taken: list[memoryview] = []
    while views and size:
        view = views[0]
        if len(view) <= size:
            taken.append(views.pop(0))
        else:
            taken.append(view[:size])
            views[0] = view[size:]
        size -= len(taken[-1])
    return taken


def copied(
    views: list[memoryview], observer: Observer | None, new_block: Callable[[], bytearray], crc: int | None
) -> tuple[list[Buffer], int | None]:
    """The bytes as memory of our own, in whole blocks as far as possible; takes the views out of the list.

    Also returns the CRC-32 that goes on from that of the bytes before, if it is wanted: what is about to be copied
    has to come into the cache of the processor anyway.
    """
    if observer is not None:
        for view in views:
            observer(view)
    pieces: list[Buffer] = []
    while views:
        taken = cut(views, BLOCK)
        if crc is not None:
            crc = crc32(taken, crc)
        pieces.append(joined(taken, new_block))
    return pieces, crc


def joined(views: Sequence[memoryview], new_block: Callable[[], bytearray]) -> Buffer:
    """A copy, in a block if it fills one."""
    if sum(map(len, views)) < BLOCK:
        return b"".join(views)
    block = new_block()
    position = 0
    for view in views:
        block[position : position + len(view)] = view
        position += len(view)
    return block


def worth_merging(tails: Sequence[Tail], start: int, end: int) -> list[Tail]:
    """The tails that a new one of the bytes between these offsets takes in.

    No tail is followed by one of its size or larger: there are never more than the logarithm of the number of
    requests, and no byte is stored more often than that.
    """
    merged: list[Tail] = []
    for tail in reversed(tails):
        if tail.size > end - start:
            break
        merged.insert(0, tail)
        start = tail.start
    return merged
