"""The changes of uploads that this process makes, as the event bus tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tusd_py.core.progress import ProgressKind
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    PartialFinished,
    UploadCreated,
    UploadExpired,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)


class TakesChanges(Protocol):
    """The receiver of changes."""

    def __call__(self, upload: Upload, kind: ProgressKind, code: str = "") -> None:
        """Take a change of this kind; `code` is that of the refusal of an upload that has failed."""


class BusChanges:
    """The observer of the bus, while it observes."""

    def __init__(self, events: EventBus, take: TakesChanges) -> None:
        """Call `take` with every change."""
        self._events = events
        self._take = take
        self._observers: dict[type[Any], Callable[[Any], None]] = {
            UploadCreated: self._created,
            AppendStarted: self._append_started,
            UploadProgressed: self._progressed,
            AppendEnded: self._append_ended,
            UploadFinished: self._finished,
            PartialFinished: self._finished,
            UploadTerminated: self._terminated,
            UploadExpired: self._expired,
        }

    def observe(self) -> None:
        """Begin to observe."""
        for kind, observer in self._observers.items():
            self._events.observe(kind, observer)

    def unobserve(self) -> None:
        """Cease to observe."""
        for kind, observer in self._observers.items():
            self._events.unobserve(kind, observer)

    def _created(self, event: UploadCreated) -> None:
        self._take(event.upload, ProgressKind.CREATED)

    def _append_started(self, event: AppendStarted) -> None:
        self._take(event.upload, ProgressKind.STARTED)

    def _progressed(self, event: UploadProgressed) -> None:
        if event.upload.status is Status.ACTIVE:
            self._take(event.upload, ProgressKind.PROGRESS)
        elif event.upload.status is Status.FINISHING:
            self._take(event.upload, ProgressKind.FINISHING)

    def _append_ended(self, event: AppendEnded) -> None:
        if event.upload.status is Status.ACTIVE:
            self._take(event.upload, ProgressKind.INTERRUPTED if event.interrupted else ProgressKind.ENDED)

    def _finished(self, event: UploadFinished | PartialFinished) -> None:
        self._take(event.upload, ProgressKind.FINISHED)

    def _terminated(self, event: UploadTerminated) -> None:
        self._take(event.upload, ProgressKind.FAILED if event.code else ProgressKind.TERMINATED, event.code)

    def _expired(self, event: UploadExpired) -> None:
        self._take(event.upload, ProgressKind.EXPIRED)
