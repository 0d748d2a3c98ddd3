"""The map of the segments of an upload on a shared file system: which file holds which bytes.

`Upload.storage_state` names the files after the first one: "1048576:77 2097152:99" means that the file of token 77
continues at 1048576 and that of token 99 at 2097152. Positions in a file are offsets in the upload; before the start of
a file there is a hole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STORAGE_STATE = re.compile(r"[0-9: ]*")
PRIMARY_FILE = 0  # in place of a token: the file that is named by the id alone


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes from `start` up to but not including `end`, in the file of `token`."""

    token: int
    start: int
    end: int


def segments(storage_state: str, offset: int) -> list[Segment]:
    """Return the segments of the first `offset` bytes, in order; at least one."""
    starts = [(PRIMARY_FILE, 0)]
    for word in storage_state.split():
        start, _, token = word.partition(":")
        if int(start) < offset:
            starts.append((int(token), int(start)))
    ends = [start for _, start in starts[1:]] + [offset]
    return [Segment(token, start, end) for (token, start), end in zip(starts, ends, strict=True)]


def storage_state_of(covered: list[Segment]) -> str:
    """Return the text that `segments` parses as these segments."""
    return " ".join(f"{segment.start}:{segment.token}" for segment in covered if segment.token != PRIMARY_FILE)
