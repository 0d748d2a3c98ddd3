"""The removal of uploads: bytes, completion record and record."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from tusd_py.core.errors import StateFull, StoredElsewhere, UploadNotFound
from tusd_py.core.outbox import EventType
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.components import Components
from tusd_py.uploads.event_log import EventLog

logger = logging.getLogger("tusd_py.uploads")


EVENT_OF_END = {Status.TERMINATED: EventType.TERMINATED, Status.EXPIRED: EventType.EXPIRED}


class Removal:
    """The removal of uploads. The caller holds the lock of the upload, and gives its token."""

    def __init__(self, components: Components, event_log: EventLog) -> None:
        self._state = components.state
        self._event_log = event_log
        self._storage = components.storage
        self._options = components.options
        self._clock = components.clock
        self._logged_as_kept: set[str] = set()  # expired uploads that were logged

    async def remove(
        self,
        upload: Upload,
        token: int,
        status: Status,
        request: RequestContext | None = None,
        *,
        keep_record: bool = True,
    ) -> None:
        """Remove an upload, and its record unless `keep_record` and the setting `gone_for` keep it for a time.

        The record of an upload that took a reservation is kept until that has run out.

        `request` is the request to name in the event, if there is one.
        """
        # First the record is changed to "ended", so that the sweeper cleans up after a crash. A record that is not
        # kept is due at once: the clock that judges it may be behind for a while.
        now = self._clock.wall()
        kept_for = self._options.gone_for if keep_record else 0.0
        gone_until = now + kept_for if kept_for else 0.0
        if upload.reserved_until is not None and upload.reserved_until > now:
            gone_until = max(gone_until, upload.reserved_until)
        kind = None if upload.status in EVENT_OF_END else EVENT_OF_END[status]
        number = self._event_log.number(kind, upload.event_sequence)
        ended = replace(upload, status=status, expires_at=gone_until, event_sequence=number)
        try:
            ended = await self._event_log.update(upload, ended, token, kind, request)
        except StateFull:  # the bytes make room; if the record stays, the upload counts as one with lost bytes
            await self._storage.delete(upload)
            ended = await self._event_log.update(upload, ended, token, kind, request)
        await self._storage.delete(ended)
        if not gone_until:
            await self._state.delete(ended.id, token)

    async def remove_broken(self, remains: Upload, token: int) -> None:
        """Remove an upload whose record cannot be read, with all that the remains of the record name."""
        with contextlib.suppress(StoredElsewhere):  # the location or the storage state is broken too
            await self._storage.delete(remains)
        await self._state.delete(remains.id, token)

    async def is_kept(self, upload: Upload) -> bool:
        """Return whether the storage may hold a finished upload that this expired record does not know of.

        The record is then older than the bytes, as one from a backup is; a crash has the same effect only at the very
        end of an upload.
        """
        if upload.status is not Status.ACTIVE or upload.is_partial:
            return False
        try:
            stored = await self._storage.stored_size(upload)
        except UploadNotFound:  # the storage is certain, as of a multipart upload that was aborted
            return False
        kept = stored > upload.offset and (upload.length is None or stored >= upload.length)
        if kept and upload.id not in self._logged_as_kept:
            self._logged_as_kept.add(upload.id)
            logger.warning(
                "upload %s has expired but is kept: there are %d bytes of it, and %d by its record, which may be from "
                "a backup; remove its file if it is not wanted",
                upload.id,
                stored,
                upload.offset,
            )
        return kept
