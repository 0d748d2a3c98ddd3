"""Disk space reserved for removals: on a full disk, a removal needs space before it frees some."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

RESERVE_SIZE = 512 << 10  # bytes
RESTORE_INTERVAL = 1.0  # seconds between two attempts to reserve the space again


class Reserve:
    """A file beside the records that only occupies disk space. Every method blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_released = True
        self._next_attempt = 0.0  # monotonic time

    def release(self) -> bool:
        """Return the space to the file system; return False if none was reserved."""
        self._is_released = True
        self._next_attempt = time.monotonic() + RESTORE_INTERVAL
        try:
            size = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        return size > 0

    def restore(self) -> None:
        """Reserve the space again if it was released and the disk has room."""
        if not self._is_released or time.monotonic() < self._next_attempt:
            return
        self._next_attempt = time.monotonic() + RESTORE_INTERVAL
        with contextlib.suppress(OSError):
            if not self._path.exists():
                self._fill()
            self._is_released = False

    def _fill(self) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            # Random bytes, which no file system compresses.
            new.write_bytes(os.urandom(RESERVE_SIZE))
            new.rename(self._path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
