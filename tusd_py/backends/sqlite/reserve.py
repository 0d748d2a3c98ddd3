"""Room on the disk that is kept for removing: without it, nothing could make a full disk free again."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

SIZE = 512 << 10  # bytes
PAUSE = 1.0  # seconds between two attempts to have the room again


class Reserve:
    """A file of no use but its size, beside the records. Every call blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._missing = True
        self._next_attempt = 0.0  # in the time of the monotonic clock

    def release(self) -> bool:
        """Give the room back to the file system; False if there was none."""
        self._missing = True
        self._next_attempt = time.monotonic() + PAUSE
        try:
            size = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        return size > 0

    def restore(self) -> None:
        """Take the room again if it was given back; that there is none now is fine."""
        if not self._missing or time.monotonic() < self._next_attempt:
            return
        self._next_attempt = time.monotonic() + PAUSE
        with contextlib.suppress(OSError):
            if not self._path.exists():
                self._fill()
            self._missing = False

    def _fill(self) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            # Bytes that no file system makes smaller.
            new.write_bytes(os.urandom(SIZE))
            new.rename(self._path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
