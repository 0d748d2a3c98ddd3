"""One upload that somebody watches: its state, the last messages about it, and who gets the next ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from tusd_py.core.progress import FINAL_KINDS, RESUME_PAUSE, Change, ProgressKind, change_of, kind_of
from tusd_py.core.upload import Status, Upload
from tusd_py.progress.listener import Listener
from tusd_py.progress.messages import Message, message_of
from tusd_py.progress.rate import RateMeter

MESSAGE_INTERVAL = 0.25  # seconds between two messages of progress
RING = 64  # messages that are kept for listeners that come back

Numbers = Callable[[bool], int]  # returns the next number of a message; tells whether the message is the last one
Told = Callable[[ProgressKind, int], object]  # told of a message of a kind for so many listeners
Ended = Callable[["Watched", Collection[Listener]], object]  # told of the end of an upload, and of those who watched it


class Watched:
    """The state of one upload as far as its listeners have been told.

    Changes come in any order and may be lost. One counts if its token is newer than the known one, or the same and the
    change is later: a holder that has lost its lock changes nothing. `reconcile` compares with the record.
    """

    def __init__(self, upload_id: str, numbers: Numbers, ended: Ended, told: Told) -> None:
        """Begin without any knowledge of the upload.

        Args:
            upload_id: the upload.
            numbers: returns the numbers of messages.
            ended: is called after the last message, which leaves no listeners.
            told: is called after each message.
        """
        self.upload_id = upload_id
        self.listeners: set[Listener] = set()
        self.readers = 0  # listeners to be, that read the record
        self.version = 0  # number of changes that have counted
        self.last: Change | None = None
        self.appending = False  # whether an append runs, as far as known
        self.heard_at = asyncio.get_running_loop().time()  # time of the event loop of the last change
        self._was_interrupted: bool | None = None  # whether the last append was; None: not known
        self._numbers = numbers
        self._ended = ended
        self._told = told
        self._number = 0  # of the last message
        self._floor = -1  # number of the last message before those in the ring
        self._ring: deque[Message] = deque(maxlen=RING)
        self._meter = RateMeter()
        self._told_at = 0.0  # time of the event loop of the last message
        self._timer: asyncio.TimerHandle | None = None  # of the message that is held back

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to the upload."""
        return self.last is not None and self.last.kind in FINAL_KINDS

    def is_of(self, upload: Upload) -> bool:
        """Return whether this is the state of the upload, and not of another one that has had its id."""
        return self.last is not None and self.last.is_of(upload)

    # Changes.

    def take(self, change: Change) -> None:
        """Take a change that some process has told, unless a newer one is known."""
        last = self.last
        if last is not None and last.created_at != change.created_at:
            if change.created_at < last.created_at:
                return
            self._forget(change.time)
        elif last is not None and (self.has_ended or (change.token, change.time) < (last.token, last.time)):
            return
        self._accept(change)

    def reconcile(self, upload: Upload | None, time: float) -> None:
        """Compare with the record, None if there is none, which is as of `time` and newer than all changes so far."""
        last = self.last
        if upload is None:
            if last is not None and not self.has_ended:
                self._accept(replace(last, kind=ProgressKind.TERMINATED, status=Status.TERMINATED, time=time))
            return
        if last is not None and not last.is_of(upload):
            self._forget(time)
            last = None
        now = change_of(upload, kind_of(upload), time)
        if last is None:
            self.last = now
            self._number = self._floor = self._numbers(self.has_ended)
            self.heard_at -= max(0.0, time - upload.changed_at)
            self._meter.restart(time, upload.offset)
        elif (now.status, now.offset, now.length) != (last.status, last.offset, last.length):
            self._accept(now)
        elif now.token != last.token:
            self.last = replace(last, token=now.token)

    def silence(self, time: float) -> None:
        """Tell that the append which ran has ended without a word: its process is dead."""
        if self.last is not None and self.appending:
            self._accept(replace(self.last, kind=ProgressKind.INTERRUPTED, time=time))

    def _forget(self, time: float) -> None:
        """End the upload that had the id before."""
        self.reconcile(None, time)
        self.last, self._was_interrupted, self.appending = None, None, False
        self._ring.clear()

    def _accept(self, change: Change) -> None:
        before, self.last = self.last, change
        if before is None:
            self._number = self._floor = self._numbers(False)
        self.version += 1
        idle = asyncio.get_running_loop().time() - self.heard_at
        self.heard_at += idle
        if change.kind is ProgressKind.STARTED:
            self._append_started(change, idle)
        elif change.kind is ProgressKind.PROGRESS:
            self.appending, self._was_interrupted = True, False
            self._meter.add(change.time, change.offset)
            if before is None or (before.offset, before.length, before.status) != (
                change.offset,
                change.length,
                change.status,
            ):
                self._tell_soon()
        elif change.kind in (ProgressKind.ENDED, ProgressKind.CREATED):
            self.appending, self._was_interrupted = False, False
        else:
            self.appending, self._was_interrupted = False, change.kind is ProgressKind.INTERRUPTED
            self._meter.restart(change.time, change.offset)
            if before is None or before.kind is not change.kind:
                self._tell(change.kind)

    def _append_started(self, change: Change, idle: float) -> None:
        resumes = self._was_interrupted or (self._was_interrupted is None and idle >= RESUME_PAUSE)
        self.appending, self._was_interrupted = True, False
        if resumes:
            self._meter.restart(change.time, change.offset)
        else:
            self._meter.add(change.time, change.offset)
        if resumes and change.offset:
            self._tell(ProgressKind.RESUMED)

    # Messages.

    def _tell_soon(self) -> None:
        """Tell of progress, now or once `MESSAGE_INTERVAL` has passed since the last message."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            due = self._told_at + MESSAGE_INTERVAL
            if loop.time() >= due:
                self._tell(ProgressKind.PROGRESS)
            else:
                self._timer = loop.call_at(due, self._tell, ProgressKind.PROGRESS)

    def _tell(self, kind: ProgressKind) -> None:
        self.close()
        if self.last is None:
            return
        self._told_at = asyncio.get_running_loop().time()
        self._number = self._numbers(kind in FINAL_KINDS)
        message = self._message(kind, self.last.time)
        if len(self._ring) == RING:
            self._floor = self._ring[0].number
        self._ring.append(message)
        for listener in self.listeners:
            listener.put(message)
        self._told(kind, len(self.listeners))
        if kind in FINAL_KINDS:
            listeners, self.listeners = self.listeners, set()
            self._ended(self, listeners)

    def _message(self, kind: ProgressKind, time: float) -> Message:
        assert self.last is not None
        return message_of(self.last, kind, self._number, self._meter.rate(time))

    def snapshot(self, time: float, kind: ProgressKind = ProgressKind.SNAPSHOT) -> Message:
        """Return the state as a message, for one listener, that is as of the last one."""
        self._told(kind, 1)
        return self._message(kind, time)

    def since(self, number: int | None) -> Sequence[Message] | None:
        """Return the messages after the one with this number; None if that is not one of the last ones."""
        if number is None:
            return None
        numbers = [self._floor, *(message.number for message in self._ring)]
        return list(self._ring)[numbers.index(number) :] if number in numbers else None

    def close(self) -> None:
        """Drop the message that is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
