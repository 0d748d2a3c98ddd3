"""The files that one process could not cut off after a failed sync.

Distrust concerns one state of a file: whoever has changed the file since held the lock of the upload, found the record
and the file in agreement, and may have stored and synced other bytes there. Writing pages back changes no state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tusd_py.backends.disk.files import AnyPath

FileState: TypeAlias = tuple[int, int, int, int]  # device, inode number, time of change in ns, size


@dataclass(frozen=True, slots=True)
class _FailedCut:
    end: int
    state: FileState | None  # of the file after the attempt; None: unknown


class FailedCuts:
    """Positions where files should have been cut off. The methods may be called in any thread."""

    def __init__(self) -> None:
        self._cuts: dict[str, _FailedCut] = {}  # by the paths

    def add(self, path: Path, end: int, status: os.stat_result | None) -> None:
        """Note that a file with this status was not cut off at `end`; without a status, whatever its state."""
        self._cuts[str(path)] = _FailedCut(end, None if status is None else _state(status))

    def end(self, path: Path, status: os.stat_result) -> int | None:
        """Return where a file with this status should have been cut off; None if all of its bytes count."""
        cut = self._cuts.get(str(path)) if self._cuts else None
        return cut.end if cut is not None and cut.state in (None, _state(status)) else None

    def remove(self, path: AnyPath) -> None:
        """Forget a file."""
        if self._cuts:
            self._cuts.pop(str(path), None)


def _state(status: os.stat_result) -> FileState:
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
