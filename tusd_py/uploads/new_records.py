"""The records of new uploads, by the request of the client and the decision of the application."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from tusd_py.contracts.hooks import HookType
from tusd_py.core.errors import UploadExists, UploadNotFound
from tusd_py.core.outbox import EventType
from tusd_py.core.request_context import owner_of
from tusd_py.core.upload import Status, Upload, new_upload_id
from tusd_py.uploads.chosen_places import ChosenPlaces
from tusd_py.uploads.components import Components
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.event_log import EventLog
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.locked_work import LockedWork
from tusd_py.uploads.quotas import Quotas
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.validation import NewUpload, check_size


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
        self._storage = components.storage
        self._options = components.options
        self._clock = components.clock
        self._chosen_places = components.chosen_places
        self._lifetimes = lifetimes
        self._records = records
        self._decisions = decisions
        self._event_log = event_log
        self._places = ChosenPlaces(components, work)
        self._quotas = quotas

    async def make(self, new: NewUpload) -> tuple[NewUpload, Upload]:
        """Return a request for a new upload as the application wants it, and the record that it leads to.

        Raises `HookRejected`, `HookUnavailable`, `UploadExists`, `MaxSizeExceeded`.
        """
        record = self._record_of(new)
        self._quotas.refuse_unsupported(record)
        if not self._decisions.asks(HookType.PRE_CREATE):
            return new, self._numbered(record)
        new = await self._decisions.on_creation(new, record)
        return new, await self.located(new, self._record_of(new))

    async def located(self, new: NewUpload, record: Upload) -> Upload:
        """Return the record of a new upload with its location, unless the application chooses a place.

        Raises `UploadExists` if the application chose an id of which there are bytes.
        """
        record = self._numbered(record)
        if new.id is not None:
            await self._refuse_stored_bytes(record)
        return record

    def _numbered(self, record: Upload) -> Upload:
        """Return the record of a new upload with its location, and the number of the event of its creation."""
        number = self._event_log.number(EventType.CREATED)
        return replace(record, location=self._storage.locate(record), event_sequence=number)

    async def add(self, new: NewUpload, record: Upload) -> Upload:
        """Add the record of a new upload, at the place that the application chose, if it did; return the record.

        Raises `HookUnavailable`, `PathTaken`, `LockTimeout`, and the errors of `StateStore.create`.
        """
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
        return Upload(
            id=new.id or new_upload_id(),
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
        )
