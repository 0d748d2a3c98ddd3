"""Which file holds which bytes of an upload on a shared file system.

`Upload.storage_state` names the files that came after the first one: "1048576:77 2097152:99" says that the file of
token 77 goes on at 1048576 and that of token 99 at 2097152. Positions in a file are offsets in the upload; before the
start of a file there is a hole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STORAGE_STATE = re.compile(r"[0-9: ]*")
PRIMARY_FILE = 0  # no token: the file that is named by the id alone


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes from `start` up to but not including `end` are in the file of this token."""

    token: int
    start: int
    end: int


def segments(storage_state: str, offset: int) -> list[Segment]:
    """Return where the first `offset` bytes are, in order; one segment at least."""
    starts = [(PRIMARY_FILE, 0)]
    for word in storage_state.split():
        start, _, token = word.partition(":")
        if int(start) < offset:
            starts.append((int(token), int(start)))
    ends = [start for _, start in starts[1:]] + [offset]
    return [Segment(token, start, end) for (token, start), end in zip(starts, ends, strict=True)]


def storage_state_of(held: list[Segment]) -> str:
    """Return the text that `segments` reads as these segments."""
    return " ".join(f"{span.start}:{span.token}" for span in held if span.token != PRIMARY_FILE)
