"""Places that the application chooses for the bytes of new uploads."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tusd_py.contracts.locks import Lock, named_lock
from tusd_py.contracts.storage import TakesPlaces
from tusd_py.core.errors import BrokenRecord, PathTaken, QuotaExceeded, StateFull, UploadExists
from tusd_py.core.upload import Upload
from tusd_py.uploads.components import Components
from tusd_py.uploads.decisions import unusable
from tusd_py.uploads.lock_holders import NonInterruptibleHolder
from tusd_py.uploads.locked_work import LockedWork


class ChosenPlaces:
    """The claims of places for new uploads.

    A place is claimed, and the record added, under a lock of the place. So a claim without a record is one that a crash
    or a failure of the records left, and the next creation takes it over.
    """

    def __init__(self, components: Components, work: LockedWork) -> None:
        self._state = components.state
        self._storage = components.chosen_places
        self._options = components.options
        self._work = work

    async def add(self, record: Upload, path: str, create: Callable[[Upload], Awaitable[Upload]]) -> Upload:
        """Claim a place for a new upload and add its record, to the end even if the caller is cancelled.

        Args:
            record: the record of the new upload.
            path: the place, as the application names it.
            create: adds the record.

        Returns:
            What `create` returns.

        Raises:
            HookUnavailable: the place cannot be one of this upload.
            PathTaken: the place is taken.
            LockTimeout: another creation claims the place.
            UploadError: of `create`.
        """
        if self._storage is None or record.is_partial:
            raise unusable(record, "this upload cannot have a path that a hook chooses")
        storage = self._storage
        try:
            record = replace(record, location=storage.place(path))
        except ValueError as error:
            raise unusable(record, str(error)) from None

        async def claim_and_create(lock: Lock) -> Upload:
            await self._claim(storage, record)
            try:
                return await create(record)
            except (UploadExists, StateFull, QuotaExceeded):  # after any other error the record may have been added
                await storage.give_up_place(record)
                raise

        return await self._work.run(
            _lock_of(record.location),
            NonInterruptibleHolder(),
            self._options.lock_timeout,
            claim_and_create,
            to_remove=True,
        )

    async def _claim(self, storage: TakesPlaces, record: Upload) -> None:
        for upload_id, location in storage.files_above(record.location):
            above = await self._state.get(upload_id)
            if above is not None and above.location == location:
                raise PathTaken
        try:
            await storage.claim_place(record)
        except PathTaken as error:
            if not error.holder or await self._has_record(error.holder):
                raise
            await storage.give_up_place(replace(record, id=error.holder))
            await storage.claim_place(record)

    async def _has_record(self, upload_id: str) -> bool:
        try:
            return await self._state.get(upload_id) is not None
        except BrokenRecord:
            return True


def _lock_of(location: str) -> str:
    return named_lock(f"place-{hashlib.sha256(location.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}")
