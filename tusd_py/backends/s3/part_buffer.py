"""The buffer of the part that is filling up: pieces of memory, and tails for the bytes that are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tusd_py.backends.s3.body import crc32
from tusd_py.backends.s3.errors import BytesMissing
from tusd_py.backends.s3.memory_limiter import CHUNK_SIZE
from tusd_py.contracts.storage import Observer
from tusd_py.core.buffers import Buffer


@dataclass(slots=True)
class PartBuffer:
    """Bytes from `start` to `end`; those from `memory_start` on are in memory, all before in tails.

    Invariant: `memory_start` is the end of a tail, or `start`. A tail may begin before `start`: see `split`.
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
        """Bytes of the part so far."""
        return self.end - self.start

    @property
    def in_memory(self) -> int:
        """Bytes of the part in memory."""
        return self.end - self.memory_start

    def add(self, data: Buffer) -> None:
        """Append bytes, which belong to the buffer from now on."""
        last = self.pieces[-1] if self.pieces else None
        if isinstance(last, bytes) and len(last) + len(data) <= CHUNK_SIZE:
            self.pieces[-1] = b"".join((last, data))
        else:
            self.pieces.append(data)
        self.end += len(data)

    def prepend(self, pieces: Sequence[Buffer]) -> None:
        """Put bytes that were in tails in front of those in memory."""
        self.pieces[:0] = pieces
        self.memory_start -= sum(map(len, pieces))

    def split(self, end: int) -> PartBuffer:
        """Take the bytes up to `end`, none of which is in memory, out of the buffer and return them."""
        front = PartBuffer(self.start, end, end)
        front.crc = None
        self.start = end
        self.crc = None
        return front

    def since(self, start: int) -> list[Buffer]:
        """Return the bytes in memory from this offset on. Raises `BytesMissing` if some of them are not in memory."""
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
        """Release the bytes in memory before this offset; return their number."""
        start = max(start, self.memory_start)
        self.pieces = [bytes(piece) if isinstance(piece, memoryview) else piece for piece in self.since(start)]
        freed = start - self.memory_start
        self.memory_start = start
        return freed

    def forget_from(self, end: int) -> int:
        """Release the bytes from this offset on, which is not before `memory_start`; return their number."""
        freed = max(0, self.end - end)
        left = self.in_memory - freed
        views = [memoryview(piece) for piece in self.pieces]
        if freed:
            self.pieces = [bytes(view) for view in cut(views, left)]
            self.crc = None
        self.end -= freed
        return freed


def cut(views: list[memoryview], size: int) -> list[memoryview]:
    """Take `size` bytes, or all if there are fewer, from the front of the list."""
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
    views: list[memoryview], observer: Observer | None, new_chunk: Callable[[], bytearray], crc: int | None
) -> tuple[list[Buffer], int | None]:
    """Copy bytes, into whole chunks as far as possible; takes the views out of the list. Runs in a worker thread.

    Returns the copies, and the CRC-32 that continues `crc` unless that is None: bytes that are about to be copied have
    to come into the cache of the processor anyway.
    """
    if observer is not None:
        for view in views:
            observer(view)
    pieces: list[Buffer] = []
    while views:
        taken = cut(views, CHUNK_SIZE)
        if crc is not None:
            crc = crc32(taken, crc)
        pieces.append(joined(taken, new_chunk))
    return pieces, crc


def joined(views: Sequence[memoryview], new_chunk: Callable[[], bytearray]) -> Buffer:
    """Copy bytes into one piece of memory, a chunk if they fill one."""
    if sum(map(len, views)) < CHUNK_SIZE:
        return b"".join(views)
    chunk = new_chunk()
    position = 0
    for view in views:
        chunk[position : position + len(view)] = view
        position += len(view)
    return chunk
