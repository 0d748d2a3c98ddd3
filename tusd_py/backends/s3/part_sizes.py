"""Sizes and numbers of parts: pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.backends.s3.config import MAX_OBJECT, MAX_PART, MIB
from tusd_py.contracts.storage import SizeLimits

GROWTH_STEPS = 11  # sizes of the parts of an upload of unknown length, each twice the one before
MAX_SKIPPED = 256  # part numbers


@dataclass(frozen=True, slots=True)
class PartSizes:
    """The sizes of the parts of one upload, fixed with its first byte."""

    first: int
    growing: bool = False
    max_parts: int = 10_000
    largest: int = MAX_PART

    def size(self, number: int) -> int:
        """Return the size in bytes of the part with this number, unless it is the last one."""
        if not self.growing:
            return min(self.first, self.largest)
        doubled = (number - 1) * GROWTH_STEPS // self.max_parts
        return min(self.largest, self.first << doubled)

    def number_at(self, offset: int) -> int:
        """Return the number of the part that begins at this offset, if no number was left out."""
        if not self.growing:
            return -(-offset // self.first) + 1
        number, end = 1, 0
        while end < offset:
            end += self.size(number)
            number += 1
        return number

    def capacity_from(self, number: int) -> int:
        """Return the number of bytes that fit into the parts from this number on."""
        if not self.growing:
            return self.size(number) * (self.max_parts - number + 1)
        return sum(self.size(n) for n in range(number, self.max_parts + 1))


def choose_sizes(
    length: int | None, part_size: int, max_parts: int, *, equal: bool, largest: int = MAX_PART
) -> PartSizes:
    """Return the part sizes for an upload of this length; a tenth of the numbers is kept for takeovers."""
    if length is None:
        return PartSizes(part_size, growing=not equal, max_parts=max_parts, largest=largest)
    needed = -(-min(length, MAX_OBJECT) // usable_numbers(max_parts))
    if needed > part_size:
        part_size = min(largest, -(-needed // MIB) * MIB)
    return PartSizes(part_size, max_parts=max_parts, largest=largest)


def usable_numbers(max_parts: int) -> int:
    """Return the number of parts that an upload may have: all but a tenth, which is kept for takeovers."""
    return max_parts - max_parts // 10


def size_limits(part_size: int, max_parts: int, *, equal: bool, copies: bool, largest: int) -> SizeLimits:
    """Return the limits for uploads whose parts have at most `largest` bytes."""
    numbers = usable_numbers(max_parts)
    declared = min(MAX_OBJECT, numbers * largest)
    sizes = choose_sizes(None, part_size, max_parts, equal=equal, largest=largest)
    deferred = min(MAX_OBJECT, sizes.capacity_from(1) - sizes.capacity_from(numbers + 1))
    return SizeLimits(declared, deferred, MAX_OBJECT if copies and not equal else declared)


def skipped_numbers(sizes: PartSizes, number: int, remaining: int | None) -> int:
    """Return the count of part numbers from `number` on that are left to a writer that may still be alive.

    Enough for the parts that this writer may still send, but never so many that the remaining bytes no longer fit.
    """
    room = sizes.max_parts - number + 1
    if remaining is not None:
        room -= -(-remaining // sizes.size(number))
    return max(0, min(MAX_SKIPPED, room // 4))
