"""One append: the bytes of a request are stored, and committed as soon as they are safe."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from tusd_py.contracts.storage import LastStepRefused, ThreadedWriter, Writer, WriterSnapshot
from tusd_py.core.buffers import Buffer
from tusd_py.core.durability import Durability, must_sync
from tusd_py.core.errors import (
    ChecksumMismatch,
    CodedError,
    LockLost,
    MaxSizeExceeded,
    OffsetMismatch,
    QuotaExceeded,
    SizeExceeded,
    StorageBehind,
    UploadError,
    UploadInterrupted,
)
from tusd_py.core.quotas import bytes_exceeded
from tusd_py.core.upload import MAX_UPLOAD_SIZE, Upload, UploadPart
from tusd_py.transfer.batch_writer import BatchWriter
from tusd_py.transfer.body_source import BodySource
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.checksum import Verification
from tusd_py.uploads.commit_pace import CommitPace
from tusd_py.uploads.commit_timer import CommitTimer
from tusd_py.uploads.content_checks import AppendChecks
from tusd_py.uploads.last_step import LastStep
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.socket_receiving import SocketReceiving
from tusd_py.uploads.validation import limit_text

FLUSH_INTERVAL = 10.0  # seconds after which all bytes are stored even where that costs extra
MAX_SILENCE = 1.0  # seconds without a byte after which a request for a commit ends the append

# Commits the second record, and these parts, in place of the first. The first flag says that the upload is finished:
# the storage has nothing left to do for it; the second that a power cut must not take the record back.
Commit = Callable[[Upload, Upload, Sequence[UploadPart], bool, bool], Awaitable[Upload]]


class Append:
    """The transfer of bytes from one source to the end of one upload, while the caller holds its lock.

    The append is the lock holder: it ends early when another request wants to write, and commits when one asks for the
    offset. Bytes with an announced checksum are committed after they were verified, or not at all.
    """

    def __init__(
        self,
        upload: Upload,
        source: BodySource,
        writer: Writer,
        budget: ByteBudget,
        options: UploadOptions,
        commit: Commit,
        stored_size: Callable[[Upload], Awaitable[int]],
        storage_written: Callable[[float], object],
        *,
        verification: Verification | None,
        threaded: ThreadedWriter | None = None,
        last_step: LastStep | None = None,
        quota_end: int | None = None,
        checks: AppendChecks | None = None,
        is_watched: Callable[[Upload], bool] | None = None,
    ) -> None:
        """Prepare the append.

        Args:
            upload: the upload with the length that the request declares.
            source: delivers the bytes.
            writer: stores the bytes.
            budget: bounds the memory of all appends.
            options: the options of all uploads.
            commit: changes the record.
            stored_size: returns the number of bytes that the storage has.
            storage_written: is told of the seconds of every wait for the storage.
            verification: verifies an announced checksum; None without one.
            threaded: the writer too, if it stores in threads.
            last_step: stores the last bytes and commits them in one thread, if that is possible.
            quota_end: the offset that the quota of the owner lets the append reach; None: any.
            checks: may refuse bytes before they are stored, and bytes with a checksum once they are verified.
            is_watched: tells whether somebody watches an upload, whose offset is then committed more often.
        """
        self._last_step = last_step
        self._checks = checks
        self._is_watched = is_watched
        self._pace = CommitPace()
        self.upload = upload  # the upload with all changes to be committed
        self._stored_record = upload  # the record in the state store
        self._source = source
        self._budget = budget
        self._batches = BatchWriter(writer, budget, source.release, storage_written)
        self._by_threads: SocketReceiving | None = None
        if threaded is not None and verification is None and checks is None:
            self._by_threads = SocketReceiving(source, threaded, self._batches)
        self._options = options.limited_to(upload.max_size)
        self._commit_record = commit
        self._stored_size = stored_size  # of the storage
        self._syncs_always = must_sync(options.durability, deferred=upload.deferred, unsynced=0)
        self._synced = upload.synced  # end of the bytes that the storage was last asked to sync
        self._has_synced = False  # since the last commit
        self._verification = verification
        self._quota_end = quota_end
        self._limit = _limit(upload, self._options, quota_end)
        self._start = upload.offset
        self._position = upload.offset  # offset of the next received byte
        self._timer: CommitTimer | None = None  # while the append receives: the timer refers to it
        self._loop_ended = False
        self._commit_due = False
        self._commit_requested = False
        self._bytes_at_commit = upload.offset
        self._flushed_at = time.monotonic()

    # The holder of the lock.

    def release_requested(self) -> None:
        self._source.interrupt(UploadInterrupted())

    def commit_requested(self) -> None:
        if self._source.silent_for() >= MAX_SILENCE:
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
            self._loop_ended = True  # only the end of the event loop cancels an append: nothing can be waited for
            raise
        finally:
            self._budget.writers -= 1
            await self._close()

    async def rewind(self, stored_record: Upload, error: StorageBehind) -> None:
        """Set the offset back to the bytes that the storage has left, in place of `run`."""
        self._stored_record = stored_record
        await self._rewind(error.stored)

    async def _receive(self) -> None:
        interval = self._options.commit_interval
        timer = CommitTimer(interval, self._pace, self._has_watchers, self._is_idle_since, self._make_commit_due)
        self._timer = timer
        if self._source.arrived is None:
            timer.start()
        while (received := await self._receive_next()) is not None:
            if received:
                timer.bytes_came()
            if self._commit_requested or self._commit_due:
                await self._commit()
                timer.start()

    async def _receive_next(self) -> int | None:
        """Take the next bytes and return their number, 0 if the source was woken; None at the end of the source."""
        received = await self._receive_in_thread()
        if received is not None:
            return received
        data = await self._source.read()
        if data is None:
            return None
        if data:
            await self._add(data)
        return len(data)

    async def _receive_in_thread(self) -> int | None:
        """Have a thread take the next bytes, and return their number; None if the source has to be read."""
        if self._by_threads is None:
            return None
        most = min(self._limit, self._bytes_at_commit + self._options.commit_bytes) - self._position
        received = await self._by_threads.receive(most)
        self._count(received or 0)
        return received

    def _count(self, received: int) -> None:
        self._position += received
        if self._position - self._bytes_at_commit >= self._options.commit_bytes:
            self._commit_due = True

    async def _add(self, data: Buffer) -> None:
        room = self._limit - self._position
        excess = len(data) > room
        if excess:
            data = data[:room]
        if data:
            if self._checks is not None and self._verification is None:
                self._checks.arrived(data)
            await self._batches.add(data)
            self._count(len(data))
        if excess:
            if self.upload.length is not None:
                raise SizeExceeded
            if self._limit == self._quota_end:
                raise bytes_exceeded(self.upload)
            raise MaxSizeExceeded(limit_text(self._options, "deferred"))

    def watchers_changed(self) -> None:
        """Commit more often from now on, if somebody has begun to watch the upload."""
        if self._timer is not None:
            self._timer.watchers_changed()

    def _has_watchers(self) -> bool:
        return self._is_watched is not None and self._is_watched(self.upload)

    def _make_commit_due(self) -> None:
        self._commit_due = True
        self._source.wake()

    def _is_idle_since(self, moment: float) -> bool:
        """Return whether all that arrived before a moment of `time.monotonic` is committed, and none came since."""
        if self._position != self._bytes_at_commit:
            return False
        if self._verification is None and self._position != self.upload.offset:
            return False  # the storage has not made all bytes safe yet
        return self._source.silent_for() >= time.monotonic() - moment

    async def _commit(self, *, everything: bool = False) -> Upload:
        """Commit the received bytes; before a checksum is verified, only answer a request for a commit."""
        requested, self._commit_requested = self._commit_requested, False
        self._commit_due = False
        self._bytes_at_commit = self._position
        started = time.monotonic()
        try:
            return await self._flush_and_commit(requested, everything=everything)
        finally:
            self._pace.committed(time.monotonic() - started)

    async def _flush_and_commit(self, requested: bool, *, everything: bool) -> Upload:
        if everything or requested:
            await self._refuse_lost_bytes()
        now = time.monotonic()
        if everything or requested or now - self._flushed_at >= FLUSH_INTERVAL:
            self._flushed_at = now
            await self._flush(self._batches.flush)
        else:
            await self._flush(self._batches.flush_available)
        if self._verification is not None:  # unverified, so that not even a declared length may be committed
            return await self._answer_commit_request(requested)
        return await self._commit_snapshot(requested)

    async def _flush(self, flush: Callable[..., Awaitable[None]]) -> None:
        """Store the received bytes, and sync them if they are verified and it is time to."""
        sync = self._verification is None and self._must_sync()
        await flush(sync=sync)
        if sync:
            self._synced, self._has_synced = self._position, True

    def _must_sync(self) -> bool:
        deferred, unsynced = self.upload.deferred, self._position - self._synced
        return must_sync(self._options.durability, deferred=deferred, unsynced=unsynced)

    async def _refuse_lost_bytes(self) -> None:
        """Raise `StorageBehind` if the storage has lost bytes. Before the first byte only: then the writer looks."""
        if self._position == self._start > 0:
            stored = await self._stored_size(self._stored_record)
            if stored < self._start:
                raise StorageBehind(stored)

    async def _answer_commit_request(self, requested: bool) -> Upload:
        """Commit the unchanged record with a higher number of commits, if one was requested."""
        if requested:
            before = self._stored_record
            after = replace(before, commit_requests_served=before.commit_requests_served + 1)
            self._stored_record = await self._commit_record(before, after, (), False, self._syncs_always)
            self.upload = replace(
                self.upload,
                commit_requests_served=self._stored_record.commit_requests_served,
                expires_at=self._stored_record.expires_at,
                token=self._stored_record.token,
            )
        return self._stored_record

    def _with_snapshot(self, snapshot: WriterSnapshot) -> Upload:
        """Return the upload with the bytes of a snapshot."""
        return replace(
            self.upload, offset=snapshot.offset, synced=snapshot.synced, storage_state=snapshot.storage_state
        )

    async def _commit_snapshot(self, requested: bool, *, finished: bool = False) -> Upload:
        """Commit all stored bytes."""
        snapshot = self._batches.snapshot()
        self.upload = self._with_snapshot(snapshot)
        if await self._commit_upload(requested, snapshot.new_parts, finished=finished):
            self._batches.committed(snapshot)
        return self.upload

    async def _commit_upload(
        self, requested: bool = False, parts: Sequence[UploadPart] = (), *, finished: bool = False
    ) -> bool:
        """Commit `self.upload`; return False if the state store has it already."""
        before = self._stored_record
        if requested:
            self.upload = replace(self.upload, commit_requests_served=before.commit_requests_served + 1)
        if self.upload == before and not self.upload.has_all_bytes:
            return False
        sync = self._syncs_always or self._has_synced
        self.upload = self._stored_record = await self._commit_record(before, self.upload, parts, finished, sync)
        self._has_synced = False
        return True

    async def _finish(self) -> Upload:
        """Store and commit the last bytes, after the source has ended as announced."""
        if self._verification is not None:
            await self._batches.flush(sync=False)
            if not self._verification.matches():
                raise ChecksumMismatch
            if self._checks is not None:
                self._checks.verified()
            self._verification = None
        if self._position != self.upload.length:
            return await self._commit(everything=True)
        await self._reserve_length()
        sync = self._options.durability is not Durability.NEVER
        last = self._last_step
        size = self._batches.gathered
        slots = last.slots(size) if last is not None else None
        if last is not None and not (slots and slots.locked()) and last.writer.can_finish_by(with_bytes=size > 0):
            with contextlib.suppress(LastStepRefused):
                async with slots or contextlib.nullcontext():
                    return await self._finish_in_thread(last, slots, sync=sync)
        finished = await self._batches.finish(sync=sync)
        return await self._commit_snapshot(self._commit_requested, finished=finished)

    async def _reserve_length(self) -> None:
        """Commit the length that a request with a checksum has declared, if a quota may forbid it.

        The last bytes are not stored for good before: they could not be discarded any more.
        """
        before = self._stored_record
        if before.length is None and before.quota_bytes is not None and before.offset != self.upload.length:
            after = replace(before, length=self.upload.length)
            self._stored_record = stored = await self._commit_record(before, after, (), False, self._syncs_always)
            self.upload = replace(self.upload, expires_at=stored.expires_at, token=stored.token)

    async def _finish_in_thread(self, last: LastStep, slots: asyncio.Semaphore | None, *, sync: bool) -> Upload:
        """Store and commit the last bytes in one thread, without a return to the event loop in between."""
        before = self._stored_record
        served = before.commit_requests_served + self._commit_requested

        def run(store: Callable[[], None]) -> asyncio.Future[Upload]:
            def reach() -> Upload:
                store()
                return replace(self._with_snapshot(self._batches.snapshot()), commit_requests_served=served)

            return last.run(before, reach, slots)

        self.upload = self._stored_record = await self._batches.finish_by(last.writer, run, sync=sync)
        last.committed(before, self.upload)
        return self.upload

    async def _commit_received(self) -> None:
        """Commit what had arrived before a failure; with a checksum, none of it."""
        if self._verification is not None:
            await self._discard_uncommitted()
            return
        try:
            await self._flush(self._batches.flush)
        except StorageBehind:
            raise
        except UploadError:  # of the storage; the snapshot tells how many bytes it has stored
            if self._syncs_always:
                return  # bytes that are not synced do not count
        try:
            await self._commit_snapshot(self._commit_requested)
        except QuotaExceeded:  # other uploads of the owner have taken the room since the append began
            await self._discard_uncommitted()

    async def _discard_uncommitted(self) -> None:
        """Drop the bytes that are not committed, and a length that is not; but the storage state may have changed."""
        await self._batches.discard(self._stored_record.offset)
        snapshot = self._batches.snapshot()
        self.upload = replace(self._stored_record, storage_state=snapshot.storage_state)
        if await self._commit_upload(self._commit_requested, snapshot.new_parts):
            self._batches.committed(snapshot)

    async def _rewind(self, stored: int) -> None:
        """Take the offset back to the bytes that the storage has, after it lost some (a power cut)."""
        self.upload = self._stored_record.at(min(stored, self._stored_record.offset))
        await self._commit_upload()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self._loop_ended:
            await self._batches.close()


def _limit(upload: Upload, options: UploadOptions, quota_end: int | None) -> int:
    """Return the largest offset that an append of this upload may reach."""
    if upload.length is not None:
        return upload.length
    limits = [limit for limit in (options.largest("deferred"), quota_end) if limit is not None]
    return min(limits, default=MAX_UPLOAD_SIZE)
