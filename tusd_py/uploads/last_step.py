"""The last step of an append: bytes are stored and the record is completed in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tusd_py.contracts.storage import ThreadedWriter
from tusd_py.core.upload import Upload
from tusd_py.uploads.completion import RecordChange, ThreadedCompletion
from tusd_py.uploads.pace import Pace

MAX_SMALL_BODY = 64 << 10  # bytes that a thread of the state store may write


class LastStep:
    """The completion of an upload in the thread that stores its last bytes, without a return to the event loop.

    Few bytes that are not synced are written in a thread of the state store, together with those of other uploads, as
    long as that is fast; all others in the threads of the storage, since each sync may take its time.
    """

    def __init__(
        self,
        writer: ThreadedWriter,
        threaded: ThreadedCompletion,
        change: RecordChange,
        slots: asyncio.Semaphore,
        pace: Pace,
        committed: Callable[[Upload, Upload], object],
    ) -> None:
        """Take one of `slots` for a step in a thread of the storage.

        `committed` is called in the event loop, with the record before and the one after.
        """
        self.writer = writer
        self.committed = committed
        self._threaded = threaded
        self._change = change
        self._slots = slots
        self._pace = pace

    def slots(self, size: int) -> asyncio.Semaphore | None:
        """Return the semaphore to hold while a step with `size` bytes runs; None if it needs none."""
        is_with_records = not self._threaded.syncs and size <= MAX_SMALL_BODY and self._pace.is_fast
        return None if is_with_records else self._slots

    def run(
        self, before: Upload, store: Callable[[], Upload], slots: asyncio.Semaphore | None
    ) -> asyncio.Future[Upload]:
        """Store the last bytes, and complete the record.

        Args:
            before: the record as committed.
            store: stores the bytes, and returns the upload as it is then. Called in a worker thread.
            slots: the semaphore that the caller holds, see `slots`.

        Returns:
            The future of the record as committed.
        """
        threaded, change = self._threaded, self._change

        def finish() -> tuple[Upload, Upload]:
            return before, threaded.completion.ended(store(), change.token)

        if slots is None:
            return threaded.commit_after(finish, change)
        return threaded.storage.run(lambda: threaded.commit(*finish(), change))
