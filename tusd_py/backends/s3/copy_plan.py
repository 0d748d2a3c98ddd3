"""The parts of a concatenated object: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tusd_py.backends.s3.config import MAX_OBJECT, MIB, MIN_PART, S3Config
from tusd_py.backends.s3.part_sizes import choose_sizes
from tusd_py.core.errors import MaxSizeExceeded

COPY_SIZE = 256 << 20  # bytes of one UploadPartCopy


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes of an object from `start` up to but not including `end`."""

    key: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a concatenated object: slices of other objects."""

    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return sum(piece.size for piece in self.slices)

    @property
    def can_be_copied(self) -> bool:
        """Whether S3 can copy the part from one object, so that its bytes do not pass through this process."""
        return len(self.slices) == 1


def plan(config: S3Config, sources: Sequence[Slice], length: int) -> list[Piece]:
    """Return the parts of the concatenated object. Raises `MaxSizeExceeded` if it would be too large."""
    if length > MAX_OBJECT:
        raise MaxSizeExceeded(f"the storage takes objects of at most {MAX_OBJECT} bytes")
    capabilities = config.capabilities
    if capabilities.part_copy and not capabilities.equal_parts:
        copy_size = max(COPY_SIZE, -(-length // (capabilities.max_parts // 2) // MIB + 1) * MIB)
        pieces = plan_copies(sources, copy_size)
        if len(pieces) <= capabilities.max_parts:
            return pieces
    sizes = choose_sizes(length, config.part_size, capabilities.max_parts, equal=True, largest=config.largest_part)
    room = sizes.capacity_from(1)
    if length > room:
        raise MaxSizeExceeded(f"the storage can put at most {room} bytes together from so many partial uploads")
    return plan_equal(sources, sizes.first)


def plan_equal(sources: Sequence[Slice], size: int) -> list[Piece]:
    """Cut the sources into parts of one size, across the borders between them."""
    pieces: list[Piece] = []
    gathered: list[Slice] = []
    room = size
    for source in sources:
        start = source.start
        while start < source.end:
            taken = min(room, source.end - start)
            gathered.append(Slice(source.key, start, start + taken))
            start += taken
            room -= taken
            if not room:
                pieces.append(Piece(tuple(gathered)))
                gathered, room = [], size
    if gathered:
        pieces.append(Piece(tuple(gathered)))
    return pieces


def plan_copies(sources: Sequence[Slice], copy_size: int = COPY_SIZE) -> list[Piece]:
    """Cut the sources into parts that S3 copies where it can; only slices that are too small are joined in memory."""
    pieces: list[Piece] = []
    small: list[Slice] = []
    for source in sources:
        start = source.start
        missing = MIN_PART - sum(piece.size for piece in small) if small else 0
        if missing:
            taken = min(missing, source.size)
            small.append(Slice(source.key, start, start + taken))
            start += taken
            if taken < missing:
                continue
            pieces.append(Piece(tuple(small)))
            small = []
        ranges = list(_ranges(start, source.end, copy_size))
        pieces += [Piece((Slice(source.key, first, last),)) for first, last in ranges if last - first >= MIN_PART]
        small = [Slice(source.key, first, last) for first, last in ranges if last - first < MIN_PART]
    if small:
        pieces.append(Piece(tuple(small)))
    return pieces


def _ranges(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of `size` bytes; the last two are joined if the last one were too small for a part."""
    while start < end:
        last = end if end - start < size + MIN_PART else start + size
        yield start, last
        start = last
