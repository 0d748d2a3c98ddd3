"""Disk space that is reserved for removing uploads: on a full disk, a removal needs space before it frees some."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

SIZE = 512 << 10  # bytes
PAUSE = 1.0  # seconds between two attempts to reserve the space again


class Reserve:
    """A file beside the records that only takes up space. Every call blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._missing = True
        self._next_attempt = 0.0  # in the time of the monotonic clock

    def release(self) -> bool:
        """Return the space to the file system; False if none was reserved."""
        self._missing = True
        self._next_attempt = time.monotonic() + PAUSE
        try:
            size = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        return size > 0

    def restore(self) -> None:
        """Reserve the space again if it was released and the disk has room."""
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
            # Random bytes, which no file system compresses.
            new.write_bytes(os.urandom(SIZE))
            new.rename(self._path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
