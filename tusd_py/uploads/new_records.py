"""The records of new uploads, by the request of the client and the decision of the application."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from dataclasses import replace

from tusd_py.contracts.hooks import HookType
from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import (
    CodedError,
    HookUnavailable,
    PathTaken,
    UploadError,
    UploadExists,
    UploadGone,
    UploadNotFound,
)
from tusd_py.core.outbox import EventType
from tusd_py.core.request_context import client_of, owner_of
from tusd_py.core.upload import Status, Upload, changed, new_upload_id
from tusd_py.uploads.chosen_places import ChosenPlaces
from tusd_py.uploads.components import Components
from tusd_py.uploads.content_checks import refuse_declared_type
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.disk_reserve import DiskReserve
from tusd_py.uploads.event_log import EventLog
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.validation import NewUpload, Reservation, check_size


class NewRecords:
    """The records of new uploads that are no final ones, and the checks of what the application chooses for any."""

    def __init__(
        self,
        components: Components,
        lifetimes: Lifetimes,
        records: RecordReader,
        decisions: Decisions,
        event_log: EventLog,
        work: LockedWork,
        quotas: Quotas,
    ) -> None:
        self._state = components.state
        self._storage = components.storage
        self._options = components.options
        self._clock = components.clock
        self._reserve = None
        if self._options.reserve and components.free_space is not None:
            self._reserve = DiskReserve(components.free_space, self._options.reserve)
        self._chosen_places = components.chosen_places
        self._lifetimes = lifetimes
        self._records = records
        self._decisions = decisions
        self._event_log = event_log
        self._work = work
        self._places = ChosenPlaces(components, work)
        self._quotas = quotas

    async def make(self, new: NewUpload) -> tuple[NewUpload, Upload]:
        """Return a request for a new upload as the application wants it, and the record that it leads to.

        Raises `HookRejected`, `HookUnavailable`, `UploadExists`, `MaxSizeExceeded`, `StorageFull`, `TypeNotAllowed`.
        """
        await self._refuse_if_low()
        record = self._record_of(new)
        self._quotas.refuse_unsupported(record)
        if not self._decisions.asks(HookType.PRE_CREATE):
            return new, await self.located(new, record)
        new = await self._decisions.on_creation(new, record)
        return new, await self.located(new, self._record_of(new))

    async def _refuse_if_low(self) -> None:
        """Raise `StorageFull` if the storage has less free space than the setting `reserve_disk`."""
        if self._reserve is not None:
            await self._reserve.refuse_if_low()

    async def close(self) -> None:
        """End the measurements of free space."""
        if self._reserve is not None:
            await self._reserve.close()

    async def located(self, new: NewUpload, record: Upload) -> Upload:
        """Return the record of a new upload with its location, unless the application chooses a place.

        Raises `UploadExists` if the id is no new one, and there are bytes of it, and `StorageFull` for a final upload.
        """
        if record.is_final:
            await self._refuse_if_low()
        record = self._numbered(record)
        if new.id is not None or new.reservation is not None:
            await self._refuse_stored_bytes(record)
        return record

    def _numbered(self, record: Upload) -> Upload:
        """Return the record of a new upload with its location, and the number of the event of its creation."""
        number = self._event_log.number(EventType.CREATED)
        return changed(record, location=self._storage.locate(record), event_sequence=number)

    async def refuse_taken_id(self, new: NewUpload, record: Upload) -> None:
        """Raise `UploadExists` if a chosen or reserved id is that of a record, before its lock is asked for.

        A request that appends to that upload would be made to release the lock.
        """
        has_given_id = new.id is not None or new.reservation is not None
        if has_given_id and await self._state.get(record.id) is not None:
            raise UploadExists

    async def add(self, new: NewUpload, record: Upload) -> Upload:
        """Add the record of a new upload, at the place that the application chose, if it did; return the record.

        Raises `HookUnavailable`, `PathTaken`, `LockTimeout`, and the errors of `StateStore.create`, `UploadExists` also
        if its reservation is taken.
        """
        if new.reservation is None or record.reserved_until is not None:
            return await self._add(new, record)
        await self._take(new.reservation, record)
        try:
            return await self._add(new, record)
        except (HookUnavailable, PathTaken, UploadExists):  # there is no upload; after other errors there may be one
            await self._state.delete(new.reservation.upload_id, 0)
            raise

    async def giving_back(self, new: NewUpload, record: Upload, creation: Awaitable[Upload]) -> Upload:
        """Await a creation; if that is refused and the upload removed, its reservation is free again.

        A crash in between leaves the reservation taken, and so does another request that removes the upload meanwhile.
        """
        try:
            return await creation
        except (UploadGone, UploadNotFound):  # removed by another request: the creation was not refused
            raise
        except CodedError:
            if new.reservation is not None:
                with contextlib.suppress(UploadError):  # the client is told of the first error
                    await self._give_back(new.reservation, record)
            raise

    async def _give_back(self, reservation: Reservation, record: Upload) -> None:
        """Remove the record that takes a reservation, if this request took it and its upload has ended."""
        found = await self._records.find(reservation.upload_id)
        if found is None or not found.has_ended:  # an append to it would be made to release the lock
            return

        async def remove(lock: Lock) -> None:
            found = await self._records.get_under(lock)
            if found is None or not found.has_ended or found.created_at != record.created_at:
                return
            if found.id == record.id or not await self._is_kept(record):
                await self._state.delete(found.id, lock.token)

        upload_id, timeout = reservation.upload_id, self._options.lock_timeout
        await self._work.run(upload_id, NonInterruptibleHolder(), timeout, remove, to_remove=True)

    async def _is_kept(self, record: Upload) -> bool:
        """Return whether the upload of a new record exists, and has not ended."""
        upload = await self._records.find(record.id)
        return upload is not None and not upload.has_ended and upload.created_at == record.created_at

    async def _take(self, reservation: Reservation, record: Upload) -> None:
        """Add a record that takes a reservation for an upload whose id the application chose."""
        taken = Upload(
            id=reservation.upload_id,
            created_at=record.created_at,
            length=0,
            status=Status.TERMINATED,
            expires_at=reservation.until,
            reserved_until=reservation.until,
        )
        await self._state.create(replace(taken, location=self._storage.locate(taken)))

    async def _add(self, new: NewUpload, record: Upload) -> Upload:
        if new.path is None:
            return await self._event_log.create(record, new.context)
        return await self._places.add(record, new.path, lambda placed: self._event_log.create(placed, new.context))

    async def _refuse_stored_bytes(self, new: Upload) -> None:
        """Raise `UploadExists` if there are bytes of an upload with this id, whose record was lost."""
        with contextlib.suppress(UploadNotFound):
            if await self._records.load_completion_record(new.id) is not None or await self._is_occupied(new):
                raise UploadExists

    async def _is_occupied(self, new: Upload) -> bool:
        if self._chosen_places is not None:
            return await self._chosen_places.is_occupied(new)
        return await self._storage.stored_size(new) > 0

    def _record_of(self, new: NewUpload) -> Upload:
        check_size(new.length, self._options.limited_to(new.max_size))
        now = self._clock.wall()
        reserved = new.reservation if new.id is None else None
        record = Upload(
            id=new.id or (reserved.upload_id if reserved is not None else new_upload_id()),
            created_at=now,
            length=new.length,
            deferred=new.length is None,
            status=Status.FINISHING if new.length == 0 else Status.ACTIVE,
            metadata=new.metadata,
            concatenation=new.concatenation,
            concat_header=new.concat_header,
            expires_at=self._lifetimes.of_unfinished(now) if new.expires_at is None else new.expires_at,
            owner=owner_of(new.context) if new.owner is None else new.owner,
            max_size=new.max_size,
            given_expiry=new.expires_at,
            quota_bytes=self._options.quota_bytes if new.quota_bytes is None else new.quota_bytes,
            quota_uploads=self._options.quota_uploads,
            reserved_until=None if reserved is None else reserved.until,
            conditions=new.conditions.encode(),
            client=client_of(new.context),
        )
        refuse_declared_type(record, self._options)
        return record
