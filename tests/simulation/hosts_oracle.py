"""The model of what clients may expect of several hosts with Redis, which may lose its last changes."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tests.simulation.oracle import Attempt, Expected, Oracle, Unreadable
from tusd_py.core.upload import Upload


class HostsOracle(Oracle):
    """An oracle that knows how far Redis has gone back.

    A power cut and a failed sync take bytes, and no record; in the mode `never` a record may outlive all its bytes.
    """

    last_redis_loss = 0  # the number of `losses` after it
    keeps_completion_records = True  # beside the bytes, so that a finished upload outlives its record in Redis
    _since = 0  # losses before the request that is judged

    def lost_changes(self, record_of: Callable[[str], Upload | None], went_back: Collection[str]) -> None:
        """Redis has lost its last changes: an unfinished upload may go back to its record, and not below it.

        A partial upload counts as unfinished: it has no completion record. Without these the bytes that a record named
        earlier may have been removed since (`went_back` are the ids of such records).
        """
        self.losses += 1
        self.lost_at = self.now()
        self.last_redis_loss = self.losses
        for upload in self.uploads:
            record = record_of(upload.id)
            is_recognised = record is not None and upload.complete and upload.kind != "final"  # by its object
            is_recognised = is_recognised and not upload.is_gone and not upload.is_ending
            may_be_gone = upload.may_be_gone
            if upload.is_gone or upload.is_ending:
                upload.is_gone, upload.may_be_gone, upload.floor = False, True, 0  # the removal may be undone
            elif not self._has_completion_record(upload):
                self._go_back(upload, None if record is None else record.offset)
                if upload.kind == "partial":
                    upload.floor = 0  # its segments may have been joined since, and removed
            if upload.id in went_back and not self.keeps_completion_records:
                upload.floor, upload.complete, upload.may_be_gone = 0, False, True
                if is_recognised:
                    upload.may_be_gone = may_be_gone

    def _go_back(self, upload: Expected, offset: int | None) -> None:
        """Note the offset of the record; None if there is none."""
        if offset is None or offset < upload.floor:
            upload.floor = offset or 0
            upload.complete = False
            upload.may_be_gone = offset is None or upload.kind == "partial"  # a final upload may not find its part

    def lost_unsynced(self, *, records: bool) -> None:
        super().lost_unsynced(records=False)
        if self.durability == "never":
            for upload in self.uploads:
                upload.may_be_gone = True

    def acknowledged(self, upload: Expected, offset: int, attempt: Attempt | None, source: str, since: int) -> None:
        self._since = since
        super().acknowledged(upload, offset, attempt, source, since)

    def _weaken(self, upload: Expected, *, records: bool) -> None:
        super()._weaken(upload, records=False)
        if records and self.last_redis_loss > self._since:
            upload.is_gone = False
            if not self._has_completion_record(upload):
                self._go_back(upload, None)

    def created(self, upload: Expected, since: int) -> None:
        if self.last_redis_loss > since:
            upload.may_be_gone = True

    def refused(self, upload: Expected, offset: int | None, since: int) -> None:
        """Judge the offset that a refusal has told: an upload can go on from there only if its bytes are stored."""
        if offset is None:
            return
        if self.proves_nothing:
            return
        if since != self.losses or upload.is_ending or upload.is_gone or upload.kind == "final":
            return
        try:
            stored = self.look(upload.id)
        except Unreadable:
            return
        if len(stored or b"") < offset:
            self._wrong(
                upload, f"PATCH is refused with offset {offset}, and the storage has {len(stored or b'')} bytes"
            )

    def _has_completion_record(self, upload: Expected) -> bool:
        return self.keeps_completion_records and upload.complete and upload.kind != "partial"
