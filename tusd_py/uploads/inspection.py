"""The inspection of uploads: the answer to HEAD, within two seconds even if a component hangs."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import LockTimeout, StorageUnavailable, UploadError
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.components import Components
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery

READER_TIMEOUT = 1.95  # seconds until a HEAD is told to ask later
COMPLETION_RECORD_TIMEOUT = 1.0  # seconds that a HEAD for a finished upload waits for its completion record, once
INSPECT_TIMEOUT = 1.5  # seconds that a HEAD waits for the lock holder's commit
INSPECT_POLL_INTERVAL = 0.01
SETTLE_TIME = 0.4  # seconds that a HEAD follows a moving offset
MAX_LOOKUPS = 10_000  # uploads that are remembered as looked up
ENSURED_RECORDS = 3600.0  # seconds after the completion in which a missing completion record is looked for


class Inspection:
    """The inspection of uploads, which also saves completion records that a crash prevented."""

    def __init__(
        self,
        components: Components,
        records: RecordReader,
        completion: Completion,
        recovery: Recovery,
        work: LockedWork,
    ) -> None:
        self._locker = components.locker
        self._storage = components.storage
        self._clock = components.clock
        self._has_completion_records = components.completion_records is not None
        self._records = records
        self._completion = completion
        self._recovery = recovery
        self._work = work
        self._looked_up: set[str] = set()  # complete uploads whose completion records need no second look

    async def inspect(self, upload_id: str, deadline: float | None = None) -> Upload:
        """See `UploadService.inspect`."""
        upload = self._records.get_at_once(upload_id)
        if upload is not None and upload.is_complete and not self._may_lack_completion_record(upload):
            return upload
        try:
            async with asyncio.timeout_at(_within(READER_TIMEOUT) if deadline is None else deadline):
                return await self._inspect(upload or await self._records.get(upload_id))
        except TimeoutError:
            raise LockTimeout from None

    async def _inspect(self, upload: Upload) -> Upload:
        if upload.is_complete:
            await self._ensure_completion_record(upload)
            return upload
        upload, held, answered = await self._request_commit(upload)
        if upload.status is Status.FINISHING:
            return await self._recovery.resume(upload.id)
        if not held and await self._disagrees_with_storage(upload):
            return await self._recovery.resume(upload.id)
        if held and not answered:
            return await self._inspect_unanswered(upload)
        return upload

    async def _inspect_unanswered(self, upload: Upload) -> Upload:
        """Return an upload whose lock holder does not answer, and may have died with bytes that only it had.

        Raises:
            LockTimeout: the storage lacks bytes; the offset goes back as soon as nobody holds the lock.
        """
        if await self._has_completion_record(upload):
            return await self._recovery.resume(upload.id)
        if await self._recovery.lacks_bytes(upload):
            raise LockTimeout
        return upload

    # Record and storage.

    async def _disagrees_with_storage(self, upload: Upload) -> bool:
        """Return whether the storage has fewer bytes than the record says, or a complete upload."""
        try:
            stored = await self._stored_size(upload)
        except UploadError:
            if await self._records.get(upload.id) != upload:  # the storage has the bytes of the new record
                raise LockTimeout from None
            raise
        if stored < upload.offset:
            return True
        return stored > upload.offset and await self._records.is_outdated(upload)

    async def _has_completion_record(self, upload: Upload) -> bool:
        """Return whether an unfinished record is older than its upload; False if that takes too long to find out.

        A state store that has gone back may have gone back to a lock as well, whose holder is no more.
        """
        with contextlib.suppress(TimeoutError, UploadError):
            async with asyncio.timeout(SETTLE_TIME / 2):
                return await self._records.load_completion_record(upload.id) is not None
        return False

    async def _stored_size(self, upload: Upload) -> int:
        try:
            async with asyncio.timeout(INSPECT_TIMEOUT):
                return await self._storage.stored_size(upload)
        except TimeoutError:
            raise StorageUnavailable from None

    # Commits of a running append.

    async def _request_commit(self, upload: Upload) -> tuple[Upload, bool, bool]:
        """Request a commit of the lock holder, if there is one.

        Returns the upload then, whether a holder is responsible for it, and whether one has answered.

        The connection of a client that comes back may have left bytes in the kernel that the holder still reads: while
        the offset moves, this repeats the request for a moment.
        """
        deadline = time.monotonic() + SETTLE_TIME
        while True:
            async with self._locker.request_commit(upload.id) as commits:
                before = upload
                held = answered = False
                if commits:
                    upload, held, answered = await self._wait_for_commits(upload, commits)
                else:  # a holder may have committed and let go since the record was read
                    upload = self._records.get_at_once(upload.id) or await self._records.get(upload.id)
            if not commits or upload.offset == before.offset or upload.is_complete or time.monotonic() >= deadline:
                return upload, held, answered

    async def _wait_for_commits(self, before: Upload, commits: int) -> tuple[Upload, bool, bool]:
        """Wait at most `INSPECT_TIMEOUT` until the holder has served so many requests, or released the lock.

        Returns what `_request_commit` does. A holder whose client left before the first byte may have released the lock
        without looking at the storage: it is responsible for nothing.
        """
        deadline = time.monotonic() + INSPECT_TIMEOUT
        served = before.commit_requests_served + commits
        while True:
            held = await self._locker.is_held(before.id)
            upload = await self._records.get(before.id)
            answered = upload.commit_requests_served >= served or upload.is_complete
            if answered or not held or time.monotonic() >= deadline:
                return upload, answered or held, answered
            await asyncio.sleep(INSPECT_POLL_INTERVAL)

    # Completion records.

    def _may_lack_completion_record(self, complete: Upload) -> bool:
        """Return whether a crash may have come between the change of the record and the completion record.

        A client that met the crash sends a HEAD soon. False once the completion record has been looked for.
        """
        if self._work.is_draining or not self._has_completion_records:
            return False
        if complete.is_partial or complete.id in self._looked_up:
            return False
        return (complete.completed_at or 0) >= self._clock.wall() - ENSURED_RECORDS

    async def _ensure_completion_record(self, complete: Upload) -> None:
        """Look for the completion record of an upload once, and save it if it is missing; wait a moment at most."""
        if not self._may_lack_completion_record(complete):
            return
        if len(self._looked_up) >= MAX_LOOKUPS:
            self._looked_up.clear()
        self._looked_up.add(complete.id)
        saving = self._work.start_unlocked(self._save_missing_completion_record(complete.id))
        await asyncio.wait((saving,), timeout=COMPLETION_RECORD_TIMEOUT)

    async def _save_missing_completion_record(self, upload_id: str) -> None:
        """Save a missing completion record under the lock of the upload, which may have been terminated."""

        async def save(lock: Lock) -> None:
            upload = await self._records.get(upload_id, lock)
            if upload.is_complete:
                await self._completion.save_completion_record(upload)

        if await self._records.load_completion_record(upload_id) is None:
            await self._work.run(upload_id, NonInterruptibleHolder(), 0, save)


def _within(seconds: float) -> float:
    """Return a moment in the time of the event loop."""
    return asyncio.get_running_loop().time() + seconds
