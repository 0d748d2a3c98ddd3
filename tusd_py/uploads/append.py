"""One append: bytes from a request into the storage, committed as they become safe."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from tusd_py.contracts.storage import Writer, WriterSnapshot
from tusd_py.core.buffers import Buffer
from tusd_py.core.durability import Durability
from tusd_py.core.errors import (
    ChecksumMismatch,
    CodedError,
    LockLost,
    MaxSizeExceeded,
    OffsetMismatch,
    SizeExceeded,
    StorageBehind,
    UploadError,
    UploadInterrupted,
)
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.transfer.batch_writer import BatchWriter
from tusd_py.transfer.body_source import BodySource
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.checksum import Verification
from tusd_py.uploads.last_step import LastStep
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.validation import limit_text

IDLE_STEP = 0.25  # seconds between the moments at which idle appends are looked at
FLUSH_INTERVAL = 10.0  # seconds after which everything is stored even where that is not cheap
SILENT = 1.0  # seconds without a byte after which a reader's question ends the append

# Commits the second record, and these parts, in place of the first; the flag says that the upload is finished: the
# storage has nothing left to do for it.
Commit = Callable[[Upload, Upload, Sequence[UploadPart], bool], Awaitable[Upload]]


class Append:
    """Moves the bytes of one source to the end of one upload, while the caller holds its lock.

    The append is the holder of the lock: it ends early when another request wants to write, and commits when one asks
    for the offset. Bytes that a checksum was announced for are committed after they were verified, or not at all.
    """

    def __init__(
        self,
        upload: Upload,
        source: BodySource,
        writer: Writer,
        budget: ByteBudget,
        options: UploadOptions,
        commit: Commit,
        *,
        sync: bool,
        verification: Verification | None,
        last_step: LastStep | None = None,
    ) -> None:
        self._last_step = last_step
        self.upload = upload  # as it is to be
        self._stored_record = upload  # as the state store has it
        self._source = source
        self._budget = budget
        self._batches = BatchWriter(writer, budget, source.release)
        self._options = options
        self._commit_record = commit
        self._sync = sync
        self._verification = verification
        self._limit = _limit(upload, options)
        self._position = upload.offset  # where the next byte received goes
        self._timer: asyncio.TimerHandle | None = None
        self._woken_at: float | None = None  # by the timer, since when `read` has given no bytes
        self._abandoned = False
        self._commit_due = False
        self._commit_requested = False
        self._bytes_at_commit = upload.offset
        self._flushed_at = time.monotonic()

    # The holder of the lock.

    def release_requested(self) -> None:
        self._source.interrupt(UploadInterrupted())

    def commit_requested(self) -> None:
        if self._source.silent_for() >= SILENT:
            self._source.interrupt(UploadInterrupted())
            return
        self._commit_requested = True
        self._source.wake()

    def lock_lost(self) -> None:
        self._source.interrupt(LockLost())

    def interrupt(self, reason: UploadError) -> None:
        self._source.interrupt(reason)

    # The work.

    async def run(self, stored_record: Upload) -> Upload:
        """Append until the source ends; return the upload as committed.

        The reason of an early end is raised after the bytes that had arrived are stored and committed.
        """
        self._stored_record = stored_record
        self._budget.writers += 1
        try:
            try:
                await self._receive()
                return await self._finish()
            except (StorageBehind, LockLost):
                raise
            except CodedError:  # of the storage, the client or, for a trailer, its header
                await self._commit_received()
                raise
        except StorageBehind as error:
            await self._rewind(error.stored)
            raise OffsetMismatch(self.upload.offset) from error
        except asyncio.CancelledError:
            self._abandoned = True  # by the end of the event loop: then nothing is waited for
            raise
        finally:
            self._budget.writers -= 1
            await self._close()

    async def give_up(self, stored_record: Upload, error: StorageBehind) -> None:
        """Take the offset back to what the storage has left, instead of `run`."""
        self._stored_record = stored_record
        await self._rewind(error.stored)

    async def _receive(self) -> None:
        if self._source.arrived is None:
            self._arm()
        while (data := await self._source.read()) is not None:
            if data:
                self._woken_at = None
                await self._take(data)
            if self._commit_requested or self._commit_due:
                await self._commit()
                self._arm()

    async def _take(self, data: Buffer) -> None:
        room = self._limit - self._position
        excess = len(data) > room
        if excess:
            data = data[:room]
        if data:
            await self._batches.add(data)
            self._position += len(data)
            if self._position - self._bytes_at_commit >= self._options.commit_bytes:
                self._commit_due = True
        if excess:
            if self.upload.length is not None:
                raise SizeExceeded
            raise MaxSizeExceeded(limit_text(self._options, "deferred"))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._options.commit_interval, self._interval_passed)

    def _interval_passed(self) -> None:
        if self._is_idle():
            self._rearm()
            return
        self._woken_at = time.monotonic()
        self._commit_due = True
        self._source.wake()

    def _rearm(self) -> None:
        """Set the timer while nothing comes, so that those of all idle appends fire together."""
        loop = asyncio.get_running_loop()
        at = math.ceil((loop.time() + self._options.commit_interval) / IDLE_STEP) * IDLE_STEP
        self._timer = loop.call_at(at, self._interval_passed)

    def _is_idle(self) -> bool:
        """Return whether all that arrived before the timer last woke the source is committed, and none came since."""
        if self._woken_at is None or self._position != self._bytes_at_commit:
            return False
        if self._verification is None and self._position != self.upload.offset:
            return False  # the storage still has to make bytes safe
        return self._source.silent_for() >= time.monotonic() - self._woken_at

    async def _commit(self, *, everything: bool = False) -> Upload:
        """Make what has arrived part of the upload; with a checksum only the request for a commit is answered."""
        requested, self._commit_requested = self._commit_requested, False
        self._commit_due = False
        self._bytes_at_commit = self._position
        now = time.monotonic()
        if everything or requested or now - self._flushed_at >= FLUSH_INTERVAL:
            self._flushed_at = now
            await self._batches.flush(sync=self._sync and self._verification is None)
        else:
            await self._batches.flush_available(sync=self._sync and self._verification is None)
        if self._verification is not None:  # not even a length that the request declared counts yet
            return await self._answer_commit_request(requested)
        return await self._commit_snapshot(requested)

    async def _answer_commit_request(self, requested: bool) -> Upload:
        """Answer a request for a commit with the record as it is."""
        if requested:
            before = self._stored_record
            after = replace(before, commit_requests_served=before.commit_requests_served + 1)
            self._stored_record = await self._commit_record(before, after, (), False)
            self.upload = replace(
                self.upload,
                commit_requests_served=self._stored_record.commit_requests_served,
                expires_at=self._stored_record.expires_at,
                token=self._stored_record.token,
            )
        return self._stored_record

    def _reached(self, snapshot: WriterSnapshot) -> Upload:
        """Return the upload with all that is stored."""
        return replace(
            self.upload, offset=snapshot.offset, synced=snapshot.synced, storage_state=snapshot.storage_state
        )

    async def _commit_snapshot(self, requested: bool, *, finished: bool = False) -> Upload:
        """Commit all that is stored."""
        snapshot = self._batches.snapshot()
        self.upload = self._reached(snapshot)
        if await self._commit_upload(requested, snapshot.new_parts, finished=finished):
            self._batches.committed(snapshot)
        return self.upload

    async def _commit_upload(
        self, requested: bool = False, parts: Sequence[UploadPart] = (), *, finished: bool = False
    ) -> bool:
        """Commit the upload as it is to be; return False if the state store has it so already."""
        before = self._stored_record
        if requested:
            self.upload = replace(self.upload, commit_requests_served=before.commit_requests_served + 1)
        if self.upload == before and not self.upload.has_all_bytes:
            return False
        self.upload = self._stored_record = await self._commit_record(before, self.upload, parts, finished)
        return True

    async def _finish(self) -> Upload:
        """Store and commit the last bytes, after the source has ended as announced."""
        if self._verification is not None:
            await self._batches.flush(sync=False)
            if not self._verification.matches():
                raise ChecksumMismatch
            self._verification = None
        if self._position != self.upload.length:
            return await self._commit(everything=True)
        sync = self._options.durability is not Durability.NEVER
        last = self._last_step
        size = self._batches.gathered
        slots = last.slots(size) if last is not None else None
        if last is not None and not (slots and slots.locked()) and last.writer.can_finish_by(with_bytes=size > 0):
            async with slots or contextlib.nullcontext():
                return await self._finish_in_thread(last, sync=sync)
        finished = await self._batches.finish(sync=sync)
        return await self._commit_snapshot(self._commit_requested, finished=finished)

    async def _finish_in_thread(self, last: LastStep, *, sync: bool) -> Upload:
        """Store and commit in one go, without coming back to the event loop in between."""
        before = self._stored_record
        served = before.commit_requests_served + self._commit_requested
        size = self._batches.gathered

        def run(store: Callable[[], None]) -> asyncio.Future[Upload]:
            def reach() -> Upload:
                store()
                return replace(self._reached(self._batches.snapshot()), commit_requests_served=served)

            return last.run(before, reach, size)

        self.upload = self._stored_record = await self._batches.finish_by(last.writer, run, sync=sync)
        last.committed(before, self.upload)
        return self.upload

    async def _commit_received(self) -> None:
        """Commit what had arrived before a failure; with a checksum, none of it."""
        if self._verification is not None:
            await self._batches.discard(self._stored_record.offset)
            # Without a length that the request declared, too; but the storage may have used up something for good.
            snapshot = self._batches.snapshot()
            self.upload = replace(self._stored_record, storage_state=snapshot.storage_state)
            if await self._commit_upload(self._commit_requested, snapshot.new_parts):
                self._batches.committed(snapshot)
            return
        try:
            await self._batches.flush(sync=self._sync)
        except StorageBehind:
            raise
        except UploadError:  # the storage is what fails; the snapshot says how far it got
            if self._sync:
                return  # and what is not synced does not count
        await self._commit_snapshot(self._commit_requested)

    async def _rewind(self, stored: int) -> None:
        """Take the offset back to the bytes that the storage has, after it lost some (a power cut)."""
        self.upload = self._stored_record.at(min(stored, self._stored_record.offset))
        await self._commit_upload()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._abandoned:
            await self._batches.close()


def _limit(upload: Upload, options: UploadOptions) -> int:
    """Return the largest offset that an append of this upload may reach."""
    if upload.length is not None:
        return upload.length
    limit = options.largest("deferred")
    return limit if limit is not None else (1 << 63) - 1
