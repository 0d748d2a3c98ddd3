"""Reading of records: as committed, as a lock provided them, or restored from a completion record."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from tusd_py.contracts.locks import Lock
from tusd_py.contracts.state import ReadsToChange
from tusd_py.core.errors import UploadExists, UploadGone, UploadNotFound
from tusd_py.core.upload import Status, Upload, new_upload_id
from tusd_py.uploads.admission import ANY_UPLOAD, Admission
from tusd_py.uploads.components import Components


class RecordReader:
    """The reader of records, which restores those that the state store has lost."""

    def __init__(self, components: Components) -> None:
        self._state = components.state
        self._get_to_change = self._state.get
        if isinstance(self._state, ReadsToChange):
            self._get_to_change = self._state.get_to_change
        self._options = components.options
        self._clock = components.clock
        self._reads_at_once = components.reads_at_once
        self._completion_records = components.completion_records
        self._finished_uploads = components.finished_uploads
        self._locations = components.locations

    async def get(self, upload_id: str, lock: Lock | None = None, admission: Admission = ANY_UPLOAD) -> Upload:
        """Return the record as committed, as the lock brought it if it did.

        Raises:
            UploadNotFound: there is no such upload, it has ended, or the admission is to another one.
            UploadGone: it has ended, within the time of the setting `gone_for`.
        """
        upload = (lock and lock.upload) or await (self._state.get if lock is None else self._get_to_change)(upload_id)
        if lock is not None and upload is not None:
            await lock.raise_token(upload.token)
        if upload is None:
            upload = await self._restore(upload_id)
        if not admission.fits(upload):
            await self.miss()  # the answer takes as long as one about an unknown upload
            raise UploadNotFound
        return await self.usable(upload)

    async def usable(self, upload: Upload) -> Upload:
        """Return a record that was found, with its location; raises as `get` does if the upload has ended.

        A record with all its bytes has their number as its length, also if it was written without one, as by earlier
        versions after Redis had lost the change that declared it.
        """
        has_all_bytes = upload.is_complete or (upload.status is Status.FINISHING and not upload.is_final)
        if has_all_bytes and upload.length is None:
            upload = replace(upload, length=upload.offset)
        if not upload.location:
            upload = await self._located(upload)
        if await self._has_ended(upload) and not await self._was_finished(upload):
            raise UploadGone if self._options.gone_for else UploadNotFound
        return upload

    async def find(self, upload_id: str) -> Upload | None:
        """Return the record as committed, also of an upload that has ended; None if there is none."""
        upload = await self._state.get(upload_id)
        if upload is None:
            with contextlib.suppress(UploadNotFound):
                return await self._restore(upload_id)
        return upload

    async def miss(self) -> None:
        """Look for the completion record of an upload that does not exist, as `find` does for every unknown one."""
        await self.load_completion_record(new_upload_id())

    def get_at_once(self, upload_id: str) -> Upload | None:
        """Return the record as committed, if that takes no waiting and no other lookup; otherwise None."""
        upload = self._reads_at_once.get_at_once(upload_id) if self._reads_at_once is not None else None
        if upload is None or not upload.location or upload.is_gone(self._clock.steady()):
            return None
        return upload

    async def get_under(self, lock: Lock) -> Upload | None:
        """Return the record of the upload of a lock, ended or not; None if there is none."""
        upload = await self._get_to_change(lock.upload_id)
        if upload is None:
            return None
        await lock.raise_token(upload.token)
        return upload if upload.location else await self._located(upload)

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        """Return the completion record of an upload whose record was lost or is older than the bytes."""
        if self._completion_records is None:
            return None
        upload = await self._completion_records.load_completion_record(upload_id)
        if upload is None:
            return None
        return replace(upload, token=0, quota_bytes=None, quota_uploads=None)  # no quota refuses bytes that are there

    async def finished_since(self, upload: Upload) -> Upload | None:
        """Return an unfinished upload with all its bytes, if its storage recognises that it was finished since.

        Its record is older than the bytes then, and the record of its completion is lost.
        """
        if self._finished_uploads is None:
            return None
        found = await self._finished_uploads.finished_since(upload)
        return None if found is None else replace(found, quota_bytes=None, quota_uploads=None)

    async def is_outdated(self, upload: Upload) -> bool:
        """Return whether an unfinished upload was finished after its record."""
        if await self.load_completion_record(upload.id) is not None:
            return True
        return upload.status is Status.ACTIVE and await self.finished_since(upload) is not None

    async def _located(self, upload: Upload) -> Upload:
        return upload if self._locations is None else await self._locations.located(upload)

    async def _has_ended(self, upload: Upload) -> bool:
        """Return whether clients may no longer use an upload.

        Before an upload counts as expired, the clock of its record is read again: that of another machine may have been
        set back since it was asked, and the upload been stamped by it.
        """
        if not upload.is_gone(self._clock.steady()):
            return False
        await self._state.refresh_clock()
        return upload.is_gone(self._clock.steady())

    async def _was_finished(self, upload: Upload) -> bool:
        """Return whether an expired record is older than its upload; if so, the caller recovers it."""
        return upload.status is Status.ACTIVE and await self.is_outdated(upload)

    async def _restore(self, upload_id: str) -> Upload:
        """Create the record of a finished upload again; raises `UploadNotFound` if there is none."""
        upload = await self.load_completion_record(upload_id)
        if upload is None:
            raise UploadNotFound
        with contextlib.suppress(UploadExists):
            await self._state.create(upload)
        return upload
