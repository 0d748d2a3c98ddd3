"""Sizes and numbers of parts: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tusd_py.backends.s3.config import MAX_OBJECT, MAX_PART, MIB, MIN_PART
from tusd_py.contracts.storage import SizeLimits

GROWTH_STEPS = 11  # so many sizes have the parts of an upload of unknown length, each twice the one before
MAX_SKIPPED = 256
COPY_SIZE = 256 << 20  # bytes one UploadPartCopy is asked for


@dataclass(frozen=True, slots=True)
class PartSizes:
    """The sizes of the parts of one upload, fixed with its first byte."""

    first: int
    growing: bool = False
    max_parts: int = 10_000
    largest: int = MAX_PART

    def size(self, number: int) -> int:
        """Bytes of the part with this number, if it is not the last one."""
        if not self.growing:
            return min(self.first, self.largest)
        doubled = (number - 1) * GROWTH_STEPS // self.max_parts
        return min(self.largest, self.first << doubled)

    def number_at(self, offset: int) -> int:
        """The number of the part that begins at this offset, if none was left out."""
        if not self.growing:
            return -(-offset // self.first) + 1
        number, end = 1, 0
        while end < offset:
            end += self.size(number)
            number += 1
        return number

    def left(self, number: int) -> int:
        """Bytes that fit into parts from this number on."""
        if not self.growing:
            return self.size(number) * (self.max_parts - number + 1)
        return sum(self.size(n) for n in range(number, self.max_parts + 1))


def choose_sizes(
    length: int | None, part_size: int, max_parts: int, *, equal: bool, largest: int = MAX_PART
) -> PartSizes:
    """Parts for an upload of this length; a tenth of the numbers is kept for those that have to be skipped."""
    if length is None:
        return PartSizes(part_size, growing=not equal, max_parts=max_parts, largest=largest)
    needed = -(-min(length, MAX_OBJECT) // usable(max_parts))
    if needed > part_size:
        part_size = min(largest, -(-needed // MIB) * MIB)
    return PartSizes(part_size, max_parts=max_parts, largest=largest)


def usable(max_parts: int) -> int:
    """The number of parts that an upload may have, less a tenth that is kept for takeovers."""
    return max_parts - max_parts // 10


def size_limits(part_size: int, max_parts: int, *, equal: bool, copies: bool, largest: int) -> SizeLimits:
    """The most bytes of an upload whose parts are at most `largest` bytes."""
    numbers = usable(max_parts)
    declared = min(MAX_OBJECT, numbers * largest)
    sizes = choose_sizes(None, part_size, max_parts, equal=equal, largest=largest)
    deferred = min(MAX_OBJECT, sizes.left(1) - sizes.left(numbers + 1))
    return SizeLimits(declared, deferred, MAX_OBJECT if copies and not equal else declared)


def skipped(sizes: PartSizes, number: int, remaining: int | None) -> int:
    """Return the count of numbers from `number` on that are left to a writer that may still be alive.

    As many as it could use meanwhile, but never so many that the remaining bytes no longer fit.
    """
    room = sizes.max_parts - number + 1
    if remaining is not None:
        room -= -(-remaining // sizes.size(number))
    return max(0, min(MAX_SKIPPED, room // 4))


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes from `start` up to but not including `end` of an object."""

    key: str
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of an object that is put together: slices of others."""

    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.slices)

    @property
    def can_be_copied(self) -> bool:
        """Whether S3 can make the part from one object, without its bytes coming here."""
        return len(self.slices) == 1


def plan_equal(sources: Sequence[Slice], size: int) -> list[Piece]:
    """Parts of one size, whatever the borders between the sources."""
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
    """Parts that S3 copies as far as possible; only what is too small for a part is put together here."""
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
    """Cut into ranges of this size, without one at the end that is too small for a part, if that can be."""
    while start < end:
        last = end if end - start < size + MIN_PART else start + size
        yield start, last
        start = last
