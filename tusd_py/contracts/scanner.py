"""The contract of a scanner, which looks for malware in the bytes of an upload before it becomes complete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from tusd_py.core.buffers import Buffer


class Scanner(Protocol):
    """A scanner of bytes."""

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        """Scan a file.

        Args:
            pieces: its bytes in order; an error of this iterator is raised.

        Returns:
            The name of the malware that was found; empty if none was.

        Raises:
            ScanImpossible: the scanner is away, gives no valid answer, or does not take so many bytes.
        """


class ScanImpossible(Exception):
    """A file cannot be scanned; the text says why, for the log."""

    def __init__(self, reason: str, *, too_large: bool = False, cut_at: int | None = None) -> None:
        """Take the reason.

        Args:
            reason: the reason.
            too_large: whether it is the size of the file, so that another attempt is no use.
            cut_at: the number of bytes sent when the scanner closed the connection without a word; None if it did not.
        """
        super().__init__(reason)
        self.too_large = too_large
        self.cut_at = cut_at
