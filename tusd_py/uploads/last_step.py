"""The last step of an append: bytes are stored and the record is completed in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tusd_py.contracts.storage import ThreadedWriter
from tusd_py.core.upload import Upload
from tusd_py.uploads.completion import ThreadedCompletion

MAX_SMALL_BODY = 64 << 10  # bytes that a thread of the state store may write


class LastStep:
    """The completion of an upload in the thread that stores its last bytes, without a return to the event loop.

    Few bytes that are not synced are written in a thread of the state store, together with those of other uploads; all
    others in the threads of the storage, since each sync may take its time.
    """

    def __init__(
        self,
        writer: ThreadedWriter,
        threaded: ThreadedCompletion,
        token: int,
        slots: asyncio.Semaphore,
        committed: Callable[[Upload, Upload], object],
    ) -> None:
        """Take one of `slots` for a step in a thread of the storage.

        `committed` is called in the event loop, with the record before and the one after.
        """
        self.writer = writer
        self.committed = committed
        self._threaded = threaded
        self._token = token
        self._slots = slots

    def slots(self, size: int) -> asyncio.Semaphore | None:
        """Return the semaphore to hold while a step with `size` bytes runs; None if it needs none."""
        return None if self._is_with_records(size) else self._slots

    def run(self, before: Upload, store: Callable[[], Upload], size: int) -> asyncio.Future[Upload]:
        """Store so many bytes, and complete the record.

        Args:
            before: the record as committed.
            store: stores the bytes, and returns the upload as it is then. Called in a worker thread.
            size: number of the bytes.

        Returns:
            The future of the record as committed.
        """
        threaded, token = self._threaded, self._token

        def finish() -> tuple[Upload, Upload]:
            return before, threaded.completion.completed(store(), token)

        if self._is_with_records(size):
            return threaded.commit_after(finish, token)
        return threaded.storage.run(lambda: threaded.commit(*finish(), token))

    def _is_with_records(self, size: int) -> bool:
        return not self._threaded.syncs and size <= MAX_SMALL_BODY
