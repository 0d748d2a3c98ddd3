"""The watch over the free space of a storage, below whose reserve no uploads are created."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from tusd_py.contracts.storage import MeasuresFreeSpace
from tusd_py.core.errors import StorageFull, UploadError

logger = logging.getLogger("tusd_py.storage")

INTERVAL = 1.0  # seconds between two measurements
END_TIMEOUT = 1.0  # seconds that the end waits for the thread
FIRST_TIMEOUT = 5.0  # seconds that the first creation waits for a measurement
LOW = "the server has too little free space for new uploads; try again later"


class DiskReserve:
    """The free space, measured by a thread of its own, so that later creations do not wait for the file system.

    The thread starts with the first creation, which waits for its result for at most `FIRST_TIMEOUT`. While the file
    system hangs or fails, the last measurement counts.
    """

    def __init__(self, storage: MeasuresFreeSpace, reserve: int) -> None:
        """Take the reserve in bytes."""
        self._storage = storage
        self._reserve = reserve
        self._free: int | None = None  # bytes
        self._thread: threading.Thread | None = None
        self._measured = asyncio.Event()  # once the first measurement has been made, or has failed
        self._ended = threading.Event()

    async def refuse_if_low(self) -> None:
        """Raise `StorageFull` if the storage has less free space than the reserve."""
        if self._thread is None:
            self._start()
        if self._free is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_TIMEOUT):
                    await self._measured.wait()
        if self._is_low():
            raise StorageFull(LOW)

    def _start(self) -> None:
        self._ended, self._measured = threading.Event(), asyncio.Event()
        loop, measured = asyncio.get_running_loop(), self._measured

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended before the measurement
                loop.call_soon_threadsafe(measured.set)

        thread = threading.Thread(
            target=self._measure_repeatedly, args=(self._ended, tell), name="tusd-py-reserve", daemon=True
        )
        thread.start()
        self._thread = thread  # only now: the next creation tries it again if the system has no room for a thread

    async def close(self) -> None:
        """End the thread; wait for it, unless the file system hangs."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            await asyncio.to_thread(thread.join, END_TIMEOUT)

    def _is_low(self) -> bool:
        return self._free is not None and self._free < self._reserve

    def _measure_repeatedly(self, ended: threading.Event, tell: Callable[[], None]) -> None:
        """Measure until the event is set; call `tell` after the first time. Runs in a thread of its own."""
        self._measure()
        tell()
        while not ended.wait(INTERVAL):
            self._measure()

    def _measure(self) -> None:
        was_low = self._is_low()
        try:
            self._free = self._storage.free_space()
        except (OSError, UploadError) as error:
            logger.debug("the free space could not be measured: %s", error)
            return
        if self._is_low() and not was_low:
            logger.warning("no uploads are created: %d bytes are free, fewer than the reserve", self._free)
        elif was_low and not self._is_low():
            logger.info("uploads are created again: %d bytes are free", self._free)
