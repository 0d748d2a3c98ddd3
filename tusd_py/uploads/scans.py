"""Scans of uploads for malware, and the decision about those that cannot be scanned."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from tusd_py.contracts.scanner import ScanImpossible, Scanner
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MalwareFound, ScanSizeExceeded, ScanUnavailable, ServerShutdown
from tusd_py.core.upload import Upload
from tusd_py.uploads.options import ScanOptions
from tusd_py.uploads.turns import Turns

logger = logging.getLogger("tusd_py.scan")

MAX_SCANS = 4  # small uploads, and large ones, scanned at a time; others wait, each for one time limit at most
MAX_SCANS_OF_OWNER = 2
RETRY_AFTER_CUT = 1.0  # seconds; a scanner that is stopped or restarted is away then
CUT_TOLERANCE = 8 << 20  # bytes that may be in the buffers of a connection when it is closed

OpenPieces = Callable[[], AsyncGenerator[Buffer, None]]  # opens the bytes of a file, from the first on


class Scans:
    """The scans of one service."""

    def __init__(self, scanner: Scanner, options: ScanOptions) -> None:
        self._scanner = scanner
        self._options = options
        self._turns = Turns(MAX_SCANS, of_owner=MAX_SCANS_OF_OWNER)
        self._running: set[asyncio.Timeout] = set()
        self._interrupted = False

    def interrupt(self) -> None:
        """Make scans end with `ServerShutdown`, now and until `resume`."""
        self._interrupted = True
        now = asyncio.get_running_loop().time()
        for limit in list(self._running):
            if not limit.expired():  # one that has just expired ends by itself, and cannot be set again
                limit.reschedule(now)

    def resume(self) -> None:
        """Allow scans again."""
        self._interrupted = False

    def _is_too_large(self, size: int | None) -> bool:
        return size is not None and self._options.max_size is not None and size > self._options.max_size

    async def scan(self, upload: Upload, open_pieces: OpenPieces) -> None:
        """Scan the bytes of an upload, which may be opened twice.

        Raises:
            MalwareFound: it is to be removed.
            ScanSizeExceeded: it is too large to be scanned, and must be; it is to be removed.
            ScanUnavailable: it cannot be scanned now, and must be.
            ServerShutdown: `interrupt` was called.
        """
        try:
            if self._is_too_large(upload.length):
                raise ScanImpossible(f"it has {upload.length} bytes", too_large=True)
            found = await self._ask(upload, open_pieces)
        except ScanImpossible as error:
            self._judge_unscanned(upload, error)
            return
        if found:
            raise MalwareFound(f"the upload holds malware ({found}) and was removed")

    async def _ask(self, upload: Upload, open_pieces: OpenPieces) -> str:
        """Scan an upload when it is its turn. The time limit holds for the wait, and again for the scan.

        An upload whose turn has not come is taken by no setting: its sender may keep the scanner busy with others.
        """
        waits = True
        try:
            async with self._limited() as limit, self._turns.of(upload):
                waits = False
                self._start_anew(limit)
                return await self._scan_again_if_cut(open_pieces)
        except TimeoutError:
            if self._interrupted:
                raise ServerShutdown from None
            if waits:
                logger.warning("upload %s waits for its scan: the scans of others have taken all the time", upload.id)
                raise ScanUnavailable(explanation="the scans of other uploads have taken all the time") from None
            raise ScanImpossible(f"no answer within {self._options.timeout:g} s") from None

    @contextlib.asynccontextmanager
    async def _limited(self) -> AsyncIterator[asyncio.Timeout]:
        """Limit the time of the context, which `interrupt` ends; raises `TimeoutError`, and `ServerShutdown`."""
        if self._interrupted:
            raise ServerShutdown
        async with asyncio.timeout(self._options.timeout or None) as limit:
            self._running.add(limit)
            try:
                yield limit
            finally:
                self._running.discard(limit)

    def _start_anew(self, limit: asyncio.Timeout) -> None:
        if self._options.timeout and not self._interrupted and not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time() + self._options.timeout)

    async def _scan_again_if_cut(self, open_pieces: OpenPieces) -> str:
        """Scan a file, and once more if the scanner closes the connection in the middle of it.

        A scanner does so at the limit of its size, or because it was stopped: only the limit comes twice at one place.
        """
        try:
            return await self._scan_once(open_pieces)
        except ScanImpossible as error:
            if error.cut_at is None:
                raise
            first_cut = error.cut_at
        await asyncio.sleep(RETRY_AFTER_CUT)
        try:
            return await self._scan_once(open_pieces)
        except ScanImpossible as error:
            if error.cut_at is None or abs(error.cut_at - first_cut) > CUT_TOLERANCE:
                raise
            raise ScanImpossible(str(error), too_large=True) from None

    async def _scan_once(self, open_pieces: OpenPieces) -> str:
        async with contextlib.aclosing(open_pieces()) as pieces:
            return await self._scanner.scan(pieces)

    def _judge_unscanned(self, upload: Upload, error: ScanImpossible) -> None:
        if self._options.fails_open:
            logger.warning("upload %s is taken although it was not scanned: %s", upload.id, error)
        elif error.too_large:
            logger.warning("upload %s is removed, since it was not scanned: %s", upload.id, error)
            raise ScanSizeExceeded
        else:
            logger.warning("upload %s waits for its scan: %s", upload.id, error)
            raise ScanUnavailable(explanation=str(error)) from None
