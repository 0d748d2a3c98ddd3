"""The verbs of the domain: create, inspect, append, terminate, concatenate, finish, expire."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from tusd_py.errors import (
    FinalUploadModified,
    LockTimeout,
    MaxSizeExceeded,
    OffsetMismatch,
    PartialUnfinished,
    ServerShutdown,
    StorageAhead,
    StorageBehind,
    UploadError,
    UploadExists,
    UploadGone,
    UploadNotFound,
)
from tusd_py.events.base import (
    AppendEnded,
    AppendStarted,
    EventBus,
    LockWaited,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.locks.base import Lock, Locker, LockHolder
from tusd_py.state.base import StateStore
from tusd_py.storage.base import Concatenates, Remembers, Storage
from tusd_py.upload import Part, Status, Upload, final_upload_id, new_upload_id
from tusd_py.uploads.append import Append
from tusd_py.uploads.budget import ByteBudget
from tusd_py.uploads.concatenation import new_final, with_length
from tusd_py.uploads.holders import Relay, Undisturbed
from tusd_py.uploads.policy import Durability, Policy
from tusd_py.uploads.requests import Addition, NewUpload, append_nothing, check_addition, check_size

INSPECT_PATIENCE = 1.5  # seconds a reader waits for the lock holder's commit
INSPECT_POLL = 0.01
SETTLE_TIME = 0.4  # seconds a reader follows an offset that moves
NOBODY = "-"  # the id of no upload
MOST_WAITING = 1000  # uploads looked through for finals that wait for a partial


class UploadService:
    """Everything that can be done with uploads, on whatever state store, locker and storage."""

    def __init__(
        self,
        state: StateStore,
        locker: Locker,
        storage: Storage,
        events: EventBus,
        budget: ByteBudget,
        policy: Policy,
    ) -> None:
        self.state = state
        self.locker = locker
        self.storage = storage
        self.events = events
        self.budget = budget
        self.policy = policy
        self._appends: set[Append] = set()
        self._no_appends = asyncio.Event()
        self._draining = False

    @property
    def can_concatenate(self) -> bool:
        return isinstance(self.storage, Concatenates)

    # Creating.

    async def create(self, new: NewUpload) -> Upload:
        """A new upload, complete at once if its length is zero."""
        check_size(new.length, self.policy)
        now = time.time()
        upload = Upload(
            id=new_upload_id(),
            created_at=now,
            length=new.length,
            deferred=new.length is None,
            status=Status.FINISHING if new.length == 0 else Status.ACTIVE,
            metadata=new.metadata,
            concatenation=new.concatenation,
            concat_header=new.concat_header,
            expires_at=self._expiry(now),
        )
        await self.state.create(upload)
        await self.events.publish(UploadCreated(upload))
        if upload.status is Status.FINISHING:
            upload = await self._finish(upload, token=0)
        return upload

    def _expiry(self, now: float) -> float | None:
        return now + self.policy.expires_after if self.policy.expires_after else None

    # Looking.

    async def get(self, upload_id: str, lock: Lock | None = None) -> Upload:
        """The record as committed, as the lock brought it if it did; raises `UploadNotFound` or `UploadGone`."""
        upload = (lock and lock.record) or await self.state.get(upload_id)
        if upload is None:
            upload = await self._restore(upload_id)
        if upload.has_ended(time.time()):
            raise UploadGone if self.policy.gone_for else UploadNotFound
        return upload

    async def _restore(self, upload_id: str) -> Upload:
        """A finished upload whose record was lost; raises `UploadNotFound` if there is none."""
        upload = await self._remembered(upload_id)
        if upload is None:
            raise UploadNotFound
        with contextlib.suppress(UploadExists):
            await self.state.create(upload)
        return upload

    async def _remembered(self, upload_id: str) -> Upload | None:
        """What the storage knows of an upload that was finished before its record was lost, or went back in time."""
        upload = await self.storage.remembered(upload_id) if isinstance(self.storage, Remembers) else None
        return None if upload is None else replace(upload, token=0)

    async def finished(self, upload_id: str) -> Upload:
        """The record of an upload that is complete; raises `UploadNotFound` otherwise."""
        upload = await self.get(upload_id)
        if not upload.is_complete and await self._remembered(upload_id) is not None:
            upload = await self._drive(upload_id)
        if not upload.is_complete:
            raise UploadNotFound("the upload is not finished yet")
        return upload

    async def inspect(self, upload_id: str) -> Upload:
        """The upload with the offset that the next append needs, within two seconds.

        A running append is asked to commit what it has. Raises `LockTimeout` while completion is under way.
        """
        upload = await self.get(upload_id)
        if upload.is_complete:
            return upload
        upload, held = await self._committed_now(upload)
        if upload.status is Status.FINISHING:
            return await self._drive(upload_id)
        if not held:
            stored = await self.storage.stored(upload)
            ahead = stored > upload.offset and await self._remembered(upload_id) is not None
            if stored < upload.offset or ahead:
                return await self._drive(upload_id)
        return upload

    async def _committed_now(self, upload: Upload) -> tuple[Upload, bool]:
        """The upload after its lock holder, if there is one, has committed what it has; and whether there is one.

        The connection of a client that comes back may have left bytes in the kernel that the holder is still
        reading: while the offset moves, this asks again for a moment.
        """
        deadline = time.monotonic() + SETTLE_TIME
        while True:
            async with self.locker.request_commit(upload.id) as held:
                before = upload
                if held:
                    upload = await self._wait_for_checkpoint(upload)
            if not held or upload.offset == before.offset or upload.is_complete or time.monotonic() >= deadline:
                return upload, held

    async def _wait_for_checkpoint(self, before: Upload) -> Upload:
        deadline = time.monotonic() + INSPECT_PATIENCE
        while True:
            held = await self.locker.is_held(before.id)
            upload = await self.get(before.id)
            answered = upload.checkpoint > before.checkpoint or upload.is_complete
            if answered or not held or time.monotonic() >= deadline:
                return upload
            await asyncio.sleep(INSPECT_POLL)

    async def _drive(self, upload_id: str) -> Upload:
        """Under the lock: finish what was left unfinished, and go back to what storage really holds."""
        async with self._locked(upload_id, Undisturbed(), INSPECT_PATIENCE) as lock:
            return await self._recover(await self.get(upload_id, lock), lock.token)

    async def _recover(self, upload: Upload, token: int) -> Upload:
        if upload.is_final and not upload.is_complete:
            return await self._recover_final(upload, token)
        if upload.status is Status.FINISHING:
            return await self._finish(upload, token)
        stored = await self.storage.stored(upload) if upload.status is Status.ACTIVE else upload.offset
        if stored < upload.offset:
            return await self.state.update(upload, upload.at(stored), token)
        finished = None if upload.is_complete else await self._remembered(upload.id)
        if finished is not None:
            return await self.state.update(upload, finished, token)
        return upload

    async def _recover_final(self, upload: Upload, token: int) -> Upload:
        try:
            return await self._finish(upload, token)
        except PartialUnfinished:
            return upload  # it waits for its parts; the policy allowed that when it was made
        except (UploadNotFound, UploadGone, MaxSizeExceeded):  # it can never be made any more
            await self._remove(upload, token, Status.TERMINATED)
            raise

    # Appending.

    async def append(self, upload_id: str, addition: Addition) -> Upload:
        """Append what the source gives; returns the upload as committed.

        Raises what ended the append early, after committing what had arrived (`Source.read`, `Writer.flush`), or
        `OffsetMismatch`, `SizeExceeded`, `MaxSizeExceeded`, `InvalidLength`, `ChecksumMismatch`,
        `FinalUploadModified`, `LockTimeout`, `UploadNotFound`, `UploadGone`.
        """
        self._refuse_when_draining()
        holder = Relay()
        async with self._locked(upload_id, holder, self.policy.lock_timeout) as lock:
            record = await self.get(upload_id, lock)
            if record.is_final:
                raise FinalUploadModified
            if record.status is Status.FINISHING:
                record = await self._finish(record, lock.token)
            if not record.is_complete:
                try:
                    return await self._append(record, addition, lock, holder)
                except StorageAhead as error:
                    record = await self._recover(await self.get(upload_id), lock.token)
                    raise OffsetMismatch(record.offset) from error
        return await append_nothing(record, addition, self.policy)

    async def _append(self, record: Upload, addition: Addition, lock: Lock, holder: Relay) -> Upload:
        upload = check_addition(record, addition, self.policy)
        self._refuse_when_draining()
        append = self._new_append(upload, addition, lock)
        holder.target = append
        self._appends.add(append)
        await self.events.publish(AppendStarted(upload))
        try:
            await append.run(record)
        finally:
            self._appends.discard(append)
            if not self._appends:
                self._no_appends.set()
            await self.events.publish(AppendEnded(append.upload))
            if append.upload.is_complete:
                await self._publish_finished(append.upload)
            elif append.upload.status is Status.FINISHING:  # also when more bytes came than the length allows
                append.upload = await self._finish(append.upload, lock.token)
        return append.upload

    async def expires_at(self, upload_id: str) -> float | None:
        """When the upload expires, in seconds since the epoch; None if it does not, or does not exist."""
        upload = await self.state.get(upload_id)
        return None if upload is None or upload.has_ended(time.time()) else upload.expires_at

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise ServerShutdown

    def _new_append(self, upload: Upload, addition: Addition, lock: Lock) -> Append:
        sync = self.policy.durability is Durability.ALWAYS or (
            self.policy.durability is Durability.COMPLETE and upload.deferred
        )
        verification = addition.verification
        observer = verification.update if verification is not None else None

        async def commit(before: Upload, after: Upload, parts: Sequence[Part], whole: bool) -> Upload:
            now = time.time()
            if whole:
                after = self._completed(after, now, lock.token)
            elif after.has_all_bytes:
                after = replace(after, status=Status.FINISHING, token=lock.token)
            else:
                after = replace(after, expires_at=self._expiry(now), token=lock.token)
            if whole:
                await self._remember(after)
            durable = sync or (whole and self.policy.durability is not Durability.NEVER)
            stored = await self.state.update(before, after, lock.token, parts=parts, durable=durable)
            await self.events.publish(UploadProgressed(stored, max(0, stored.offset - before.offset)))
            return stored

        return Append(
            upload,
            addition.source,
            self.storage.writer(upload, lock.token, observer, inherited=lock.inherited),
            self.budget,
            self.policy,
            commit,
            sync=sync,
            verification=verification,
        )

    # Finishing.

    async def _finish(self, upload: Upload, token: int) -> Upload:
        """All bytes are stored: make the upload complete. Left in `finishing` if that fails."""
        sync = self.policy.durability is not Durability.NEVER
        try:
            if upload.is_final:
                assembled = await self._assemble(upload, sync=sync)
            else:
                parts = await self.state.parts(upload.id) if upload.layout else ()
                assembled = replace(upload, layout=await self.storage.complete(upload, parts, sync=sync))
        except StorageBehind as error:
            back = replace(upload, status=Status.ACTIVE, offset=error.stored, expires_at=self._expiry(time.time()))
            await self.state.update(upload, back, token)
            raise OffsetMismatch(error.stored) from error
        complete = self._completed(assembled, time.time(), token)
        await self._remember(complete)
        complete = await self.state.update(upload, complete, token, durable=sync)
        await self._publish_finished(complete)
        return complete

    def _completed(self, upload: Upload, now: float, token: int) -> Upload:
        expires_at = self._expiry(now) if upload.is_partial else None
        return replace(upload, status=Status.COMPLETE, completed_at=now, expires_at=expires_at, token=token)

    async def _remember(self, complete: Upload) -> None:
        if isinstance(self.storage, Remembers) and not complete.is_partial:
            await self.storage.remember(complete)

    async def _publish_finished(self, upload: Upload) -> None:
        await self.events.publish(UploadFinished(upload))
        if upload.is_partial and self.policy.concatenation_unfinished:
            await self._finish_finals_of(upload)

    async def _finish_finals_of(self, partial: Upload) -> None:
        """The last of its parts is complete: a final upload that waited can be made."""
        for upload in await self.state.due(time.time(), MOST_WAITING):
            if partial.id in upload.partial_ids:
                with contextlib.suppress(UploadError):  # the sweeper tries again
                    await self.sweep(upload)

    # Concatenating.

    async def concatenate(self, new: NewUpload) -> Upload:
        """A final upload made of partial ones. The same request again gives the same upload again.

        Raises `UploadNotFound`, `InvalidConcatenation`, `PartialUnfinished`, `MaxSizeExceeded`.
        """
        upload_id = final_upload_id(new.partial_ids, new.metadata)
        async with self._locked(upload_id, Undisturbed(), self.policy.lock_timeout) as lock:
            existing = await self.state.get(upload_id)
            if existing is not None and not existing.has_ended(time.time()):
                return await self._recover(existing, lock.token)
            partials = [await self.get(partial_id) for partial_id in new.partial_ids]
            upload = new_final(upload_id, new, partials, self.policy)
            if existing is not None:
                await self.state.delete(upload_id, lock.token)
            await self.state.create(upload)
            await self.events.publish(UploadCreated(upload))
            return await self._recover(upload, lock.token)

    async def _assemble(self, final: Upload, *, sync: bool) -> Upload:
        """Put the partial uploads together; returns the final one with its length."""
        assert isinstance(self.storage, Concatenates)
        partials = [await self.get(partial_id) for partial_id in final.partial_ids]
        final = with_length(final, partials, self.policy)
        final = replace(final, layout=await self.storage.concatenate(final, partials, sync=sync))
        grace_end = time.time() + self.policy.partial_grace
        for partial in {partial.id: partial for partial in partials}.values():
            if partial.expires_at is None or partial.expires_at > grace_end:
                with contextlib.suppress(UploadError):  # it was terminated meanwhile, or is about to be
                    await self.state.update(partial, replace(partial, expires_at=grace_end), partial.token)
        return final

    # Ending.

    async def terminate(self, upload_id: str) -> None:
        """Remove an upload and all that belongs to it."""
        await self.get(upload_id)
        async with self._locked(upload_id, Undisturbed(), self.policy.lock_timeout) as lock:
            upload = await self.get(upload_id, lock)
            await self._remove(upload, lock.token, Status.TERMINATED)
        await self.events.publish(UploadTerminated(upload))

    async def sweep(self, upload: Upload) -> bool:
        """One upload that is due (`StateStore.due`): remove it if it has ended, drive it on if it is finishing.

        False if somebody is using it, or nothing was to be done.
        """
        try:
            async with self._locked(upload.id, Undisturbed(), 0) as lock:
                current = await self.state.get(upload.id)
                if current is None:
                    return False
                if current.status is Status.FINISHING:
                    return (await self._recover(current, lock.token)).is_complete
                if not current.has_ended(time.time()):
                    return False
                if current.status is Status.ACTIVE and await self._remembered(current.id) is not None:
                    return (await self._recover(current, lock.token)).is_complete
                expired = current.status in (Status.ACTIVE, Status.COMPLETE)
                status = Status.EXPIRED if expired else current.status
                await self._remove(current, lock.token, status, remember=expired)
        except LockTimeout:
            return False
        if expired:
            await self.events.publish(UploadExpired(current))
        return True

    async def _remove(self, upload: Upload, token: int, status: Status, *, remember: bool = True) -> None:
        # First the record says that the upload has ended, so that a crash on the way is cleaned up by the sweeper.
        gone_until = time.time() + (self.policy.gone_for if remember else 0)
        ended = await self.state.update(upload, replace(upload, status=status, expires_at=gone_until), token)
        await self.storage.delete(ended)
        if not (remember and self.policy.gone_for):
            await self.state.delete(ended.id, token)

    # Running.

    async def check(self) -> None:
        """Whether requests can be served now; raises `StateUnavailable`, `ServerShutdown`."""
        self._refuse_when_draining()
        await self.state.get(NOBODY)

    async def drain(self) -> None:
        """Running appends commit what they have and end, new ones are refused; returns when none is left."""
        self._draining = True
        self._no_appends.clear()
        for append in list(self._appends):
            append.interrupt(ServerShutdown())
        if self._appends:
            await self._no_appends.wait()

    @contextlib.asynccontextmanager
    async def _locked(self, upload_id: str, holder: LockHolder, timeout: float) -> AsyncIterator[Lock]:
        started = time.monotonic()
        try:
            lock = await self.locker.acquire(upload_id, holder, timeout)
        except LockTimeout:
            if timeout > 0:
                await self.events.publish(LockWaited(upload_id, time.monotonic() - started, obtained=False))
            raise
        try:
            waited = time.monotonic() - started
            await self.events.publish(LockWaited(upload_id, waited, obtained=True, inherited=lock.inherited))
            yield lock
        finally:
            await lock.release()
