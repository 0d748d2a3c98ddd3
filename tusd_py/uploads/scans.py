"""Scans of uploads for malware, and the decision about those that cannot be scanned."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from tusd_py.contracts.scanner import ScanImpossible, Scanner
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MalwareFound, ScanSizeExceeded, ScanUnavailable, ServerShutdown
from tusd_py.core.upload import Upload
from tusd_py.uploads.options import ScanOptions

logger = logging.getLogger("tusd_py.scan")

MAX_SCANS = 4  # uploads scanned at a time; others wait, each for its time limit at most


class Scans:
    """The scans of one service."""

    def __init__(self, scanner: Scanner, options: ScanOptions) -> None:
        self._scanner = scanner
        self._options = options
        self._turns = asyncio.Semaphore(MAX_SCANS)
        self._running: set[asyncio.Timeout] = set()
        self._interrupted = False

    def interrupt(self) -> None:
        """Make scans end with `ServerShutdown`, now and until `resume`."""
        self._interrupted = True
        now = asyncio.get_running_loop().time()
        for limit in list(self._running):
            limit.reschedule(now)

    def resume(self) -> None:
        """Allow scans again."""
        self._interrupted = False

    def _is_too_large(self, size: int | None) -> bool:
        return size is not None and self._options.max_size is not None and size > self._options.max_size

    async def scan(self, upload: Upload, pieces: AsyncGenerator[Buffer, None]) -> None:
        """Scan the bytes of an upload.

        Raises:
            MalwareFound: it is to be removed.
            ScanSizeExceeded: it is too large to be scanned, and must be; it is to be removed.
            ScanUnavailable: it cannot be scanned now, and must be.
            ServerShutdown: `interrupt` was called.
        """
        async with contextlib.aclosing(pieces):
            try:
                if self._is_too_large(upload.length):
                    raise ScanImpossible(f"it has {upload.length} bytes", too_large=True)
                found = await self._ask(pieces)
            except ScanImpossible as error:
                self._judge_unscanned(upload, error)
                return
        if found:
            logger.warning("upload %s is removed: it holds malware (%s)", upload.id, found)
            raise MalwareFound(f"the upload holds malware ({found}) and was removed")

    async def _ask(self, pieces: AsyncGenerator[Buffer, None]) -> str:
        if self._interrupted:
            raise ServerShutdown
        try:
            async with asyncio.timeout(self._options.timeout or None) as limit:
                self._running.add(limit)
                try:
                    async with self._turns:
                        return await self._scanner.scan(pieces)
                finally:
                    self._running.discard(limit)
        except TimeoutError:
            if self._interrupted:
                raise ServerShutdown from None
            raise ScanImpossible(f"no answer within {self._options.timeout:g} s") from None

    def _judge_unscanned(self, upload: Upload, error: ScanImpossible) -> None:
        if self._options.fails_open:
            logger.warning("upload %s is taken although it was not scanned: %s", upload.id, error)
        elif error.too_large:
            logger.warning("upload %s is removed, since it was not scanned: %s", upload.id, error)
            raise ScanSizeExceeded
        else:
            logger.warning("upload %s waits for its scan: %s", upload.id, error)
            raise ScanUnavailable(explanation=str(error)) from None
