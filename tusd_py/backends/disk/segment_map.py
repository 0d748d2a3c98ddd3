"""Which file holds which bytes of an upload on a shared file system.

`layout` names the files that came after the first one: "1048576:77 2097152:99" says that the file of token 77 goes on
at 1048576 and that of token 99 at 2097152. Positions in a file are offsets in the upload; what is before its start is
a hole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LAYOUT = re.compile(r"[0-9: ]*")
PRIMARY_FILE = 0  # no token: the file that is named by the id alone


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes from `start` up to but not including `end` are in the file of this token."""

    token: int
    start: int
    end: int


def segments(layout: str, offset: int) -> list[Segment]:
    """Where the first `offset` bytes are, in order; one span at least."""
    starts = [(PRIMARY_FILE, 0)]
    for word in layout.split():
        start, _, token = word.partition(":")
        if int(start) < offset:
            starts.append((int(token), int(start)))
    ends = [start for _, start in starts[1:]] + [offset]
    return [Segment(token, start, end) for (token, start), end in zip(starts, ends, strict=True)]


def layout_of(held: list[Segment]) -> str:
    """The layout that says where these bytes are."""
    return " ".join(f"{span.start}:{span.token}" for span in held if span.token != PRIMARY_FILE)
