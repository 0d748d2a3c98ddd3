"""Actions that only administrators take: expire an upload before its time, complete an abandoned recording."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tusd_py.contracts.locks import Lock
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import LockTimeout, OffsetMismatch, UploadError, WrongStatus
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadExpired
from tusd_py.uploads.admission import admission_to
from tusd_py.uploads.components import Components
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork, outcome
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery
from tusd_py.uploads.removal import Removal
from tusd_py.uploads.validation import AppendRequest


class NoBytes:
    """The body of a request without one (`tusd_py.transfer.body_source.BodySource`)."""

    declared_size = 0
    arrived: Buffer | None = b""

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """Wait for the reader, which needs nothing."""
        await asyncio.wait((reader,))

    async def read(self) -> Buffer | None:
        """Return None: this is the end."""
        return None

    def release(self, buffers: Sequence[Buffer]) -> None: ...

    def silent_for(self) -> float:
        """Return 0: nobody waits for bytes."""
        return 0.0

    def interrupt(self, reason: UploadError) -> None: ...

    def wake(self) -> None: ...


class Administration:
    """The actions of administrators, each under the lock of the upload and to its end."""

    def __init__(
        self,
        components: Components,
        records: RecordReader,
        recovery: Recovery,
        removal: Removal,
        work: LockedWork,
        append: Callable[[str, AppendRequest], Awaitable[Upload]],
    ) -> None:
        """Take the parts of a service; `append` is `UploadService.append`."""
        self._events = components.events
        self._options = components.options
        self._records = records
        self._recovery = recovery
        self._removal = removal
        self._work = work
        self._append = append

    async def expire(self, upload_id: str, context: RequestContext | None) -> None:
        """Remove an unfinished upload as if its time had run out. See `UploadService.expire`."""
        upload = await self._records.get(upload_id)
        _refuse_all_but_active(upload)
        admission = admission_to(upload)

        async def remove(lock: Lock) -> None:
            current = await self._records.get(upload_id, lock, admission)
            if await self._records.is_outdated(current):
                current = await self._recovery.recover(current, lock.token)
            _refuse_all_but_active(current)
            if await self._removal.is_kept(current):
                raise WrongStatus("there are more bytes of the upload than its record knows of, as after a backup")
            await self._removal.remove(current, lock.token, Status.EXPIRED, context)
            self._events.publish(UploadExpired(current, context))

        await outcome(self._work.start_unlocked(self._end(upload_id, remove, context)))

    async def _end(self, upload_id: str, remove: Callable[[Lock], Any], context: RequestContext | None) -> None:
        timeout = self._options.lock_timeout
        async with self._work.ending(upload_id):
            await self._work.run(upload_id, NonInterruptibleHolder(), timeout, remove, to_remove=True, context=context)

    async def complete(self, upload_id: str, context: RequestContext | None) -> Upload:
        """Declare the offset of a recording as its length. See `UploadService.complete`."""
        upload = await self._records.get(upload_id)
        _refuse_all_but_active(upload)
        if upload.length is not None:
            raise WrongStatus("the length of the upload is known: only its client can complete it")
        request = AppendRequest(
            upload.offset,
            NoBytes(),
            length=upload.offset,
            context=context,
            admission=admission_to(upload),
            waits=False,  # a client that sends would have to stop, and could not send the rest any more
        )
        try:
            return await self._append(upload_id, request)
        except LockTimeout:
            raise WrongStatus("a request is using the upload; only an abandoned one can be completed") from None
        except OffsetMismatch:
            raise WrongStatus("the upload has more bytes meanwhile; only an abandoned one can be completed") from None


def _refuse_all_but_active(upload: Upload) -> None:
    """Raise `WrongStatus` for an upload, which has not ended, that has all its bytes."""
    if upload.status is not Status.ACTIVE:
        raise WrongStatus(f"the upload is {'complete' if upload.is_complete else 'being completed'}")
