"""The model of what clients may expect of several hosts with Redis, which may lose its last changes."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.oracle import Expected, Oracle
from tusd_py.core.upload import Upload


class HostsOracle(Oracle):
    """An oracle that knows how far Redis has gone back."""

    redis_losses = 0

    def lost_changes(self, record_of: Callable[[str], Upload | None]) -> None:
        """Redis has lost its last changes: an unfinished upload may go back to its record, and not below it.

        A partial upload counts as unfinished: it has no completion record.
        """
        self.losses += 1
        self.redis_losses += 1
        for upload in self.uploads:
            record = record_of(upload.id)
            if upload.is_gone or upload.may_be_gone:
                upload.is_gone, upload.floor = False, 0  # the removal may be undone
            elif not _has_completion_record(upload):
                self._go_back(upload, None if record is None else record.offset)

    def _go_back(self, upload: Expected, offset: int | None) -> None:
        """Note the offset of the record; None if there is none."""
        if offset is None or offset < upload.floor:
            upload.floor = offset or 0
            upload.complete = False
            upload.may_be_gone = offset is None or upload.kind == "partial"  # a final upload may not find its part

    def _weaken(self, upload: Expected, *, records: bool) -> None:
        super()._weaken(upload, records=records)
        if records and self.redis_losses and not _has_completion_record(upload):
            self._go_back(upload, None)


def _has_completion_record(upload: Expected) -> bool:
    return upload.complete and upload.kind != "partial"
