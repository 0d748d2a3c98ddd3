"""The events that the sinks of an application have taken, and the checks of every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.simulation.oracle import Expected, Oracle
from tusd_py.core.event_document import parse_document
from tusd_py.core.outbox import EventType, OutboxEvent

ENDS = (EventType.TERMINATED, EventType.EXPIRED)


class EventLedger:
    """The events that sinks have taken: each at least once, those of one upload in their order, and none invented.

    A power cut or a failed sync may take the change that an event tells of, and the event has been taken: after one,
    another event may have the same number, and an upload may be completed or removed twice. A final upload that was
    removed and is made again has the same id, and its events count from 1 again.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self._taken: dict[tuple[str, str], dict[int, OutboxEvent]] = {}  # by sink and upload, by their numbers
        self._rejected: set[str] = set()
        self._lost: set[str] = set()  # ids of uploads whose events may be lost

    # The decisions of the application.

    def rejects(self, upload_id: str) -> None:
        """The application does not let an upload be completed."""
        self._rejected.add(upload_id)
        self.oracle.ended.add(upload_id)

    def stops(self, upload_id: str) -> None:
        """The application ends an upload."""
        self.oracle.ended.add(upload_id)

    def saw(self, upload: Any, content: bytes) -> None:
        """The application has read all bytes of an upload that is about to be complete."""
        expected = self._find(upload.id)
        if len(content) != upload.offset:
            self._wrong(upload.id, f"the application reads {len(content)} bytes of {upload.offset}")
        elif expected is not None and not self.oracle.losses:
            known = bytes(expected.known)
            if content[: len(known)] != known[: len(content)]:
                self._wrong(upload.id, "the application reads other bytes than those acknowledged")

    # The events.

    def lost(self, upload_ids: Iterable[str]) -> None:
        """The state store has lost the last changes of uploads, and the events that told of them."""
        self._lost.update(upload_ids)

    def take(self, sink: str, event: OutboxEvent) -> None:
        """Note an event that a sink has taken, and check that it may come now."""
        taken = self._taken.setdefault((sink, event.upload_id), {})
        if event.type is EventType.CREATED and any(each.type in ENDS for each in taken.values()):
            taken.clear()
        earlier = taken.get(event.sequence)
        if not self.oracle.losses:
            if earlier is not None and earlier != event:
                self._wrong(event.upload_id, f"two events have the number {event.sequence}")
            if earlier is None and event.sequence != len(taken) + 1:
                self._wrong(event.upload_id, f"event {event.sequence} comes after {len(taken)} others")
            self._check_end(event, [each.type for each in taken.values() if each.sequence < event.sequence])
        taken[event.sequence] = event
        if event.type is EventType.FINISHED:
            self._check_finished(event)

    def _check_end(self, event: OutboxEvent, before: list[EventType]) -> None:
        if event.type is EventType.FINISHED and EventType.FINISHED in before:
            self._wrong(event.upload_id, "it is finished twice")
        if any(end in before for end in ENDS):
            self._wrong(event.upload_id, f"the event {event.type} comes after its end")

    def _check_finished(self, event: OutboxEvent) -> None:
        document = parse_document(event.document)
        if event.upload_id in self._rejected:
            self._wrong(event.upload_id, "it is finished, although the application rejected it")
        if document.offset != document.length:
            self._wrong(event.upload_id, f"it is finished with {document.offset} of {document.length} bytes")
        expected = self._find(event.upload_id)
        if expected is not None and document.length is not None and not expected.may_have(document.length):
            self._wrong(event.upload_id, f"it is finished with the length {document.length}")

    def check_all(self, uploads: Iterable[Expected], sinks: Iterable[str]) -> None:
        """Check at the end that no event is missing."""
        for upload in uploads:
            for sink in sinks:
                taken = {event.type for event in self._taken.get((sink, upload.id), {}).values()}
                for kind in self._wanted(upload) - taken:
                    self._wrong(upload.id, f"{sink} has never heard that it was {kind}")

    def _wanted(self, upload: Expected) -> set[EventType]:
        """Return the kinds of events that every sink must have."""
        is_lasting = not self.oracle.losses or (upload.complete and not upload.may_be_gone)
        if not is_lasting or upload.id in self._lost:
            return set()
        wanted = {EventType.CREATED}
        if upload.complete and upload.id not in self.oracle.ended:
            wanted.add(EventType.FINISHED)
        if upload.was_removed:
            wanted.add(EventType.TERMINATED)
        if upload.has_expired and upload.id not in self.oracle.ended:
            wanted.add(EventType.EXPIRED)
        return wanted

    def _find(self, upload_id: str) -> Expected | None:
        return next((upload for upload in self.oracle.uploads if upload.id == upload_id), None)

    def _wrong(self, upload_id: str, text: str) -> None:
        self.oracle.complain(f"events of upload {upload_id[:12]}: {text}")
