"""Long reads of the records, in a thread and by a connection of their own, so that no change waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tusd_py.asyncutil.threads import Threads
from tusd_py.core.errors import StateUnavailable

T = TypeVar("T")

# A reader that stays open keeps the log from being written back as a whole, for which changes wait after a failed sync.
MAX_READ_TIME = 0.25  # seconds that one read may take
STEPS_BETWEEN_LOOKS = 50_000  # of the virtual machine of SQLite, some milliseconds; each look needs the GIL
BUSY_TIMEOUT = 2.0  # seconds that a read waits for the recovery of the log by another process


class ReadTooLong(StateUnavailable):
    """A read was ended because it took longer than `MAX_READ_TIME`."""

    default_message = "a read of the records took too long"


class ReadThread:
    """The thread for long reads of one file, started with the first of them. Invariant: writes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = Threads(1, "tusd-py-queries")
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0  # monotonic time at which the read under way ends
        self._closing = False

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Call `read` in the thread.

        Raises:
            StateUnavailable: the file cannot be read.
            ReadTooLong: this takes longer than `MAX_READ_TIME`.
        """
        return await self._threads.run(lambda: self._run(read))

    async def close(self) -> None:
        """End the read under way, and close the file."""
        self._closing = True
        await asyncio.to_thread(self._threads.close)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._closing = False

    def _run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read. Runs in a worker thread."""
        if self._closing:
            raise StateUnavailable
        try:
            connection = self._connected()
            self._deadline = time.monotonic() + MAX_READ_TIME
            return read(connection)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT and not self._closing:
                raise ReadTooLong from error
            self._disconnect()  # the file may be another one by now
            raise StateUnavailable from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=BUSY_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.text_factory = decode_text
            connection.set_progress_handler(self._is_too_late, STEPS_BETWEEN_LOOKS)
            self._connection = connection
        return self._connection

    def _is_too_late(self) -> bool:
        return self._closing or time.monotonic() > self._deadline

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def decode_text(value: bytes) -> str | bytes:
    """Return a text; one that is not UTF-8 is a broken value, which is returned as bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
