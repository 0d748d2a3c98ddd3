"""The buffer of a part that is being filled: pieces of memory, and tails for the bytes that are not in memory."""

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
    """The bytes of a part from `start` to `end`; those from `memory_start` on are in memory, all before in tails.

    Invariant: `memory_start` is the end of a tail, or `start`. A tail may begin before `start`: see `split`.
    """

    start: int
    memory_start: int
    end: int
    pieces: list[Buffer] = field(default_factory=list)
    crc: int | None = field(init=False)  # CRC-32 of all bytes of the part, if known

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
        """Append bytes, which the buffer owns from now on."""
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
        """Remove the bytes up to `end`, none of which is in memory, and return them as a buffer of their own."""
        front = PartBuffer(self.start, end, end)
        front.crc = None
        self.start = end
        self.crc = None
        return front

    def bytes_from(self, start: int) -> list[Buffer]:
        """Return the bytes in memory from `start` on. Raises `BytesMissing` if some of them are not in memory."""
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

    def drop_before(self, start: int) -> int:
        """Release the bytes in memory before `start`; return their number."""
        start = max(start, self.memory_start)
        self.pieces = [bytes(piece) if isinstance(piece, memoryview) else piece for piece in self.bytes_from(start)]
        freed = start - self.memory_start
        self.memory_start = start
        return freed

    def drop_from(self, end: int) -> int:
        """Release the bytes from `end` on, which is not before `memory_start`; return their number."""
        freed = max(0, self.end - end)
        left = self.in_memory - freed
        views = [memoryview(piece) for piece in self.pieces]
        if freed:
            self.pieces = [bytes(view) for view in take_front(views, left)]
            self.crc = None
        self.end -= freed
        return freed


def take_front(views: list[memoryview], size: int) -> list[memoryview]:
    """Remove `size` bytes, or all if there are fewer, from the front of the list, and return them."""
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


def copy_pieces(
    views: list[memoryview], observer: Observer | None, new_chunk: Callable[[], bytearray], crc: int | None
) -> tuple[list[Buffer], int | None]:
    """Copy bytes, into whole chunks where they fill one, and empty the list of views. Runs in a worker thread.

    Returns the copies, and the CRC-32 that continues `crc` unless that is None: computing it here costs little, since
    the bytes are in the cache of the processor.
    """
    if observer is not None:
        for view in views:
            observer(view)
    pieces: list[Buffer] = []
    while views:
        taken = take_front(views, CHUNK_SIZE)
        if crc is not None:
            crc = crc32(taken, crc)
        pieces.append(join_views(taken, new_chunk))
    return pieces, crc


def join_views(views: Sequence[memoryview], new_chunk: Callable[[], bytearray]) -> Buffer:
    """Copy bytes into one piece of memory, which is a chunk if they fill one."""
    if sum(map(len, views)) < CHUNK_SIZE:
        return b"".join(views)
    chunk = new_chunk()
    position = 0
    for view in views:
        chunk[position : position + len(view)] = view
        position += len(view)
    return chunk
