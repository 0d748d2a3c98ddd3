"""The upload service: one method for each action on uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tusd_py.contracts.hooks import BlockingHooks, HookType
from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import (
    BrokenRecord,
    ClientDisconnected,
    CodedError,
    ContentRefused,
    HookRejected,
    HookUnavailable,
    UploadError,
    UploadNotFound,
    UploadStopped,
)
from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadCreated, UploadProgressed
from tusd_py.uploads.administration import Administration
from tusd_py.uploads.admission import ANY_UPLOAD, Admission, admission_to
from tusd_py.uploads.appending import Appending
from tusd_py.uploads.completion import Completion
from tusd_py.uploads.components import Components
from tusd_py.uploads.content_checks import ContentChecks
from tusd_py.uploads.decisions import Decisions, naming_created
from tusd_py.uploads.downloads import Downloads
from tusd_py.uploads.event_log import EventLog
from tusd_py.uploads.expiration import Expiration, SweepResult
from tusd_py.uploads.final_uploads import FinalUploads
from tusd_py.uploads.health import Health
from tusd_py.uploads.inspection import Inspection
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import HeldLock, LockedWork, outcome
from tusd_py.uploads.new_records import NewRecords
from tusd_py.uploads.power_cuts import PowerCuts
from tusd_py.uploads.progress_hooks import ProgressHooks
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.recovery import Recovery
from tusd_py.uploads.removal import Removal
from tusd_py.uploads.termination import Termination
from tusd_py.uploads.validation import AppendRequest, NewUpload, check_size, verify_no_more_bytes
from tusd_py.uploads.waiting_finals import WaitingFinals

T = TypeVar("T")


class UploadService:
    """All actions on uploads, independent of the kinds of state store, locker and storage."""

    def __init__(self, components: Components, hooks: BlockingHooks | None = None) -> None:
        self.state = components.state
        self.locker = components.locker
        self.storage = components.storage
        self.events = components.events
        self.budget = components.budget
        self.options = components.options
        self.clock = components.clock
        self.can_concatenate = components.concatenation is not None
        self.downloads = Downloads(components)
        self.health = Health(components)
        self._work = LockedWork(self.locker, self.events)
        self._lifetimes = Lifetimes(self.options, self.clock)
        self.power_cuts = PowerCuts(self.state, self.locker, self.storage, self._lifetimes)
        self._records = RecordReader(components)
        self._event_log = EventLog(components)
        removal = Removal(components, self._event_log)
        waiting = WaitingFinals(self.state, self.clock)
        self.hooks = hooks
        self._decisions = Decisions(components, hooks, removal)
        self._quotas = Quotas(components)
        self._new_records = NewRecords(
            components, self._lifetimes, self._records, self._decisions, self._event_log, self._work, self._quotas
        )
        self._checks = ContentChecks(components, removal)
        completion = Completion(
            components, self._lifetimes, self._records, self._event_log, self._decisions, self._checks, self._quotas
        )
        self._recovery = Recovery(components, self._records, completion, removal, waiting, self._work)
        self._inspection = Inspection(components, self._records, completion, self._recovery, self._work)
        self._appending = Appending(
            components, self._lifetimes, self._records, completion, self._recovery, self._work, self._quotas
        )
        self._termination = Termination(
            components, self._records, removal, self._decisions, self._appending, self._work
        )
        self._finals = FinalUploads(
            components,
            self._records,
            self._new_records,
            self._decisions,
            self._recovery,
            waiting,
            self._work,
            self._quotas,
        )
        self._expiration = Expiration(components, self._lifetimes, self._records, self._recovery, removal, self._work)
        self._administration = Administration(
            components, self._records, self._recovery, removal, self._work, self.append
        )
        self._progress = ProgressHooks(
            self._decisions, self._work, self.options.progress_interval, self._termination.stop
        )
        if self._decisions.asks(HookType.POST_RECEIVE):
            self.events.observe(UploadProgressed, self._progress.progressed)
        if self.options.concatenation_unfinished:
            self._finals.observe()

    # Creating.

    async def create(self, new: NewUpload) -> Upload:
        """Create an upload and return its record; one of length zero is complete at once.

        Raises `HookRejected`, `HookUnavailable`, `UploadExists`, `PathTaken`, `MaxSizeExceeded`, `QuotaExceeded`.
        """
        new, record = await self._new_records.make(new)
        return await self._new_records.giving_back(new, record, self._create(new, record))

    async def _create(self, new: NewUpload, record: Upload) -> Upload:
        finishing = record.status is Status.FINISHING
        upload = await (self._create_finishing(new, record) if finishing else self._add(new, record))
        await self._wait_for_deliveries(upload.id)
        return upload

    async def _add(self, new: NewUpload, record: Upload) -> Upload:
        upload = await self._new_records.add(new, record)
        self.events.publish(UploadCreated(upload, new.context))
        return upload

    async def _create_finishing(self, new: NewUpload, record: Upload) -> Upload:
        """Create an upload that has all its bytes, and complete it, to the end even if the caller is cancelled.

        Both under its lock: the sweeper, which looks for such uploads, would else be told of a refusal in place of the
        sender.
        """
        await self._new_records.refuse_taken_id(new, record)

        async def create(lock: Lock) -> Upload:
            upload = await self._add(new, replace(record, token=lock.token))
            with naming_created(upload.id):
                return await self._recovery.recover(upload, lock.token, new.context)

        return await self._work.run(record.id, NonInterruptibleHolder(), self.options.lock_timeout, create)

    async def create_with(self, new: NewUpload, append_request: AppendRequest) -> Upload:
        """Create an upload, which exists even if its first bytes are refused, and append them; return its record.

        Raises `ClientDisconnected`, `MaxSizeExceeded`, the errors of `create`, and those of a hook that is asked about
        the completion.
        """
        new, record = await self._new_records.make(new)
        return await self._new_records.giving_back(new, record, self._create_with(new, record, append_request))

    async def _create_with(self, new: NewUpload, record: Upload, append_request: AppendRequest) -> Upload:
        await self._quotas.admit_first_bytes(record, append_request)
        made: tuple[Upload, bool] | None = None
        has_own_id = new.id is None or new.reservation is None
        if new.path is None and has_own_id and self._appending.suits_creation(new, append_request):
            made = await self._appending.create(record, append_request)
        upload, appended = (await self._create(new, record), False) if made is None else made
        if appended:
            await self._wait_for_deliveries(upload.id)
            return upload
        admission = admission_to(upload)
        try:
            with naming_created(upload.id):
                return await self.append(upload.id, replace(append_request, admission=admission))
        except (ClientDisconnected, ContentRefused, HookRejected, HookUnavailable):
            raise
        except CodedError:
            return await self._records.get(upload.id, admission=admission)

    # Reading.

    async def get(self, upload_id: str) -> Upload:
        """Return the record as committed, see `RecordReader.get`; raises `UploadNotFound` or `UploadGone`."""
        return await self._records.get(upload_id)

    async def find(self, upload_id: str) -> Upload | None:
        """Return the record of an upload, also of one that has ended; None if there is none.

        Raises `BrokenRecord`, `StateUnavailable`.
        """
        return await self._records.find(upload_id)

    def find_at_once(self, upload_id: str) -> Upload | None:
        """Return the record of an upload that has not ended, if that takes no waiting; otherwise None.

        Raises `BrokenRecord`.
        """
        return self._records.get_at_once(upload_id)

    async def miss(self) -> None:
        """Take the time that `find` takes for an unknown upload, beyond that of reading a record."""
        await self._records.miss()

    async def find_finished(self, upload_id: str) -> Upload | None:
        """Return the record of a finished upload; None for a partial one, any other, and if it cannot be read now."""
        try:
            upload = await self._records.find(upload_id)
        except UploadError:
            return None
        return upload if upload is not None and upload.is_complete and not upload.is_partial else None

    async def get_completed(self, upload_id: str) -> Upload:
        """Return the record of a complete upload that may be downloaded; raises `UploadNotFound` for any other."""
        upload = await self.get(upload_id)
        if not upload.is_complete and await self._records.is_outdated(upload):
            upload = await self._recovery.resume(upload_id)
        if not upload.is_complete:
            raise UploadNotFound("the upload is not finished yet")
        if self._checks.spares_piece(upload):
            raise UploadNotFound("a partial upload is not checked, and cannot be downloaded here")
        return upload

    async def list(self, *, after: str, limit: int, condition: UploadFilter) -> Page:
        """Return a page of the records that can be read (`StateStore.list`)."""
        return await self.state.list(after=after, limit=limit, condition=condition)

    @property
    def max_size(self) -> int | None:
        """The largest size of a new upload in bytes; None if it is not limited."""
        return self.options.largest()

    def check_size(self, size: int, *, deferred: bool, max_size: int | None = None) -> None:
        """Raise `MaxSizeExceeded` if a new upload of `size` bytes is too large.

        `deferred` tells of its length, and `max_size` is the most that its sender may upload.
        """
        check_size(size, self.options.limited_to(max_size), "deferred" if deferred else "declared")

    async def inspect(self, upload_id: str, deadline: float | None = None) -> Upload:
        """Return the upload with the offset of the next append, even if a component hangs.

        A running append is asked to commit its bytes.

        Args:
            upload_id: the id.
            deadline: in the time of the event loop; within two seconds without it.

        Raises:
            LockTimeout: a completion is under way, or something hangs.
            UploadNotFound, UploadGone: there is no such upload.
        """
        return await self._inspection.inspect(upload_id, deadline)

    # Appending.

    async def append(self, upload_id: str, append_request: AppendRequest) -> Upload:
        """Append the bytes of the source; return the upload as committed.

        Raises the reason of an early end, after a commit of the bytes that had arrived (`BodySource.read`,
        `Writer.flush`), or `OffsetMismatch`, `SizeExceeded`, `MaxSizeExceeded`, `InvalidLength`, `ChecksumMismatch`,
        `FinalUploadModified`, `LockTimeout`, `UploadNotFound`, `UploadGone`.
        """
        self.refuse_when_draining()
        try:
            upload, done = await self._appending.append(upload_id, append_request)
        except UploadStopped:
            await self._termination.remove_stopped(upload_id, append_request.context, append_request.admission)
            raise
        if not done:
            return await verify_no_more_bytes(upload, append_request, self.options)
        await self._wait_for_deliveries(upload_id)
        return upload

    async def expires_at(self, upload_id: str, admission: Admission = ANY_UPLOAD) -> float | None:
        """Return the expiry of an upload in seconds since the epoch; None if it has none, or does not exist."""
        upload = await self.state.get(upload_id)
        if upload is None or upload.is_gone(self.clock.steady()) or not admission.fits(upload):
            return None
        return upload.announced_expiry

    @property
    def is_draining(self) -> bool:
        """Whether the server refuses new work, because it is about to end."""
        return self._work.is_draining

    def refuse_when_draining(self) -> None:
        """Raise `ServerShutdown` if the server is draining."""
        self._work.refuse_when_draining()

    # Concatenating.

    async def concatenate(self, new: NewUpload) -> Upload:
        """Create a final upload of partial ones and return it. A repeated request returns the same upload.

        Raises `UploadNotFound`, `InvalidConcatenation`, `PartialUnfinished`, `MaxSizeExceeded`.
        """
        self.refuse_when_draining()
        return await self._finals.concatenate(new)

    async def _wait_for_deliveries(self, upload_id: str) -> None:
        """Return when waiting final uploads and subscribers have heard of an upload, or have had the time to."""
        await self._finals.made_of(upload_id)
        await self.events.delivered(upload_id)

    # Ending.

    async def terminate(
        self, upload_id: str, context: RequestContext | None = None, admission: Admission = ANY_UPLOAD
    ) -> None:
        """Remove an upload with its bytes and its record, also one whose record cannot be read.

        A running append is told that its upload has ended. `context` is the request to name in the event. No other
        upload than that of `admission` is removed.
        """
        # A subscriber that waits for itself would never return.
        may_be_a_subscriber = self.events.is_delivering(upload_id)
        await self._termination.terminate(upload_id, context, admission)
        if not may_be_a_subscriber:
            await self._wait_for_deliveries(upload_id)

    async def expire(self, upload_id: str, context: RequestContext | None = None) -> None:
        """Remove an unfinished upload as the sweeper does when its time has run out, on behalf of an administrator.

        A running append is told that its upload has ended. Raises `WrongStatus` for an upload that has all its bytes,
        and the errors of `terminate`.
        """
        await self._administration.expire(upload_id, context)
        await self._wait_for_deliveries(upload_id)

    async def complete(self, upload_id: str, context: RequestContext | None = None) -> Upload:
        """Complete an abandoned upload of unknown length at its offset, on behalf of an administrator.

        Everything that is done at the end of an upload is done: checks, hooks, quotas, events. Returns the upload.
        Raises `WrongStatus` for an upload that is not active, whose length is known, or that a request is using, and
        the errors of `append`.
        """
        return await self._administration.complete(upload_id, context)

    @property
    def held_locks(self) -> Sequence[HeldLock]:
        """The locks that this process holds now."""
        return self._work.held

    def is_over(self, upload: Upload) -> bool:
        """Return whether the sweeper removes this upload."""
        return self._lifetimes.is_over(upload)

    async def sweep(self, upload: Upload, patience: float | None = None) -> SweepResult | None:
        """Remove a due upload that has ended, or resume its completion (`StateStore.due`).

        Returns None if a request holds its lock, nothing was to be done, or the work goes on after so many seconds.
        """
        return await self._expiration.sweep(upload, patience)

    def broken(self) -> AsyncIterator[BrokenRecord]:
        """Yield an error for every record that cannot be read."""
        return self.state.broken()

    async def count(self) -> int:
        """Return the number of records that can be read."""
        return sum([1 async for _ in self.state.all()])

    async def carry_out(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work that acquires its locks itself to its end, even if the caller is cancelled."""
        return await outcome(self._work.start_unlocked(work))

    # Running.

    def interrupt_hooks(self) -> None:
        """Go on without the answers of hooks that are being asked, and end the checks of stored bytes."""
        self._decisions.interrupt()
        self._checks.interrupt()

    async def check(self) -> None:
        """Raise `StateUnavailable`, `StorageUnavailable` or `ServerShutdown` if requests cannot be served now."""
        self.refuse_when_draining()
        await self.health.check()

    def watch_by(self, is_watched: Callable[[Upload], bool]) -> None:
        """Commit the offsets of running appends more often of uploads of which `is_watched` tells so."""
        self._appending.is_watched = is_watched

    def watchers_changed(self) -> None:
        """Take note that somebody has begun to watch uploads."""
        self._appending.watchers_changed()

    def observe_stored_events(self, observer: Callable[[], object]) -> None:
        """Call `observer` in the event loop after changes that have stored events for sinks."""
        self._event_log.observe(observer)

    def unobserve_events(self) -> None:
        """Stop observing events, before another service replaces this one."""
        self.events.unobserve(UploadProgressed, self._progress.progressed)
        self._finals.unobserve()

    def open(self) -> None:
        """Accept requests, again after `close`."""
        self._checks.resume()
        self._work.open()

    async def drain(self) -> None:
        """Make running appends commit and end, and refuse new ones; return when no work is left."""
        self._work.drain()
        self._appending.drain()
        await self._work.settle()

    async def close(self) -> None:
        """Refuse all work from now on, and wait until no work is left."""
        await self._work.close()
        await self._new_records.close()
