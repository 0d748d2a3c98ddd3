"""Fencing tokens of one host: a counter in a file, which neither a power cut nor a change of the clock sets back."""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time

from tusd_py.backends.local_locks.byte_ranges import try_lock, unlock
from tusd_py.transfer.whole_writes import write_at

logger = logging.getLogger("tusd_py.locks")

COUNTER_LOCK = 0  # position of the byte whose lock guards the counter
COUNTER_FORMAT = struct.Struct(">QQ")  # the latest token, and the last one of the reservation that is synced
RESERVATION_SIZE = 1_000_000  # tokens that are reserved at a time
OPEN_TIMEOUT = 5.0  # seconds to wait for another process that opens the counter
RETRY_PAUSE = 0.001


class TokenCounter:
    """The counter at the beginning of an open file, shared by all processes that open the file.

    The latest token is not synced each time. Tokens are reserved in blocks, and a reservation is synced while enough
    tokens of the previous block are left. Invariant: after a power cut the counter goes on beyond the reservation.
    """

    def __init__(self, descriptor: int) -> None:
        """Read the counter and reserve the first block. Blocks. Raises `OSError`."""
        self._descriptor = descriptor
        self._is_refused = False  # whether the latest sync could not be started
        deadline = time.monotonic() + OPEN_TIMEOUT
        while not try_lock(descriptor, COUNTER_LOCK):
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, "another process does not release the lock file")
            time.sleep(RETRY_PAUSE)
        try:
            newest, reserved = self._read()
            newest = max(newest, reserved)
            self._write(newest, newest + RESERVATION_SIZE)
            os.fsync(descriptor)
        finally:
            unlock(descriptor, COUNTER_LOCK)

    def next(self, above: int = 0) -> int | None:
        """Return a token larger than `above` and all tokens before, of all processes.

        Returns None if another process is just taking one. Raises `OSError`.
        """
        if not try_lock(self._descriptor, COUNTER_LOCK):
            return None
        try:
            newest, reserved = self._read()
            token = max(newest, above) + 1
            if token > reserved - RESERVATION_SIZE // 2:
                self._write(token, token + RESERVATION_SIZE)
                if not self._sync_soon():
                    self._write(token, reserved)  # so that the next token tries it again
            else:
                self._write(token, reserved)
        finally:
            unlock(self._descriptor, COUNTER_LOCK)
        return token

    def _read(self) -> tuple[int, int]:
        content = os.pread(self._descriptor, COUNTER_FORMAT.size, 0)
        newest, reserved = COUNTER_FORMAT.unpack(content.ljust(COUNTER_FORMAT.size, b"\0"))
        return newest, reserved

    def _write(self, newest: int, reserved: int) -> None:
        """Write the counter, also if one call writes a part of it: the next token would be one that is in use.

        The kernel gets the bytes of the highest value first, so that a part of them sets no counter back.
        """
        write_at(self._descriptor, COUNTER_FORMAT.pack(newest, reserved), 0)

    def _sync_soon(self) -> bool:
        """Sync the counter in a thread; return False if that cannot be started."""
        try:
            descriptor = os.dup(self._descriptor)
            try:
                threading.Thread(target=_sync, args=(descriptor,), name="tusd-py-tokens", daemon=True).start()
            except BaseException:
                os.close(descriptor)
                raise
        except (OSError, RuntimeError) as error:  # no descriptor is left, or no room for a thread
            if not self._is_refused:
                logger.warning("the lock file cannot be synced now, and is with a later token: %s", error)
            self._is_refused = True
            return False
        self._is_refused = False
        return True


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:  # harmless: after a power cut the records show which tokens were used
        logger.error("the lock file could not be synced: %s", error.strerror)
    finally:
        os.close(descriptor)
