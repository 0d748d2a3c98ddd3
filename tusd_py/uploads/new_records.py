"""The records of new uploads, by the request of the client and the decision of the application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from tusd_py.contracts.hooks import HookType
from tusd_py.core.errors import StateFull, UploadExists, UploadNotFound
from tusd_py.core.request_context import owner_of
from tusd_py.core.upload import Status, Upload, new_upload_id
from tusd_py.uploads.components import Components
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.record_reader import RecordReader
from tusd_py.uploads.validation import NewUpload, check_size


class NewRecords:
    """The records of new uploads that are no final ones, and the checks of what the application chooses for any."""

    def __init__(
        self, components: Components, lifetimes: Lifetimes, records: RecordReader, decisions: Decisions
    ) -> None:
        self._storage = components.storage
        self._options = components.options
        self._clock = components.clock
        self._lifetimes = lifetimes
        self._records = records
        self._decisions = decisions

    async def make(self, new: NewUpload) -> Upload:
        """Return the record of a new upload as the application wants it.

        Raises `HookRejected`, `HookUnavailable`, `UploadExists`, `PathTaken`, `MaxSizeExceeded`.
        """
        record = self._record_of(new)
        if not self._decisions.asks(HookType.PRE_CREATE):
            return replace(record, location=self._storage.locate(record))
        new = await self._decisions.on_creation(new, record)
        return await self.placed(new, self._record_of(new))

    async def placed(self, new: NewUpload, record: Upload) -> Upload:
        """Return the record of a new upload with its location; raises as `make` does."""
        if new.id is not None:
            await self._refuse_stored_bytes(replace(record, location=self._storage.locate(record)))
        return await self._decisions.placed(new, record)

    @contextlib.asynccontextmanager
    async def creating(self, record: Upload) -> AsyncIterator[None]:
        """Give up what the application chose for an upload, if the context finds that its record cannot be added.

        After another error the record may have been added all the same.
        """
        try:
            yield
        except (UploadExists, StateFull):
            await self._decisions.give_up_place(record)
            raise

    async def _refuse_stored_bytes(self, new: Upload) -> None:
        """Raise `UploadExists` if there are bytes of an upload with this id, whose record was lost."""
        with contextlib.suppress(UploadNotFound):
            if await self._records.load_completion_record(new.id) is not None or await self._storage.stored_size(new):
                raise UploadExists

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
        )
