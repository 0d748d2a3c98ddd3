"""One listener: what it has still to be told, in bounded memory however slowly it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from tusd_py.core.progress import FINAL_KINDS, ProgressKind
from tusd_py.progress.messages import Message

FIRST_KINDS = (ProgressKind.SNAPSHOT, ProgressKind.CREATED)
MAX_SLOTS = 1000  # uploads with messages that a listener has not taken
OVERFLOW_RETRY = 1000  # milliseconds until a listener that was too slow comes back for snapshots


class Listener:
    """The messages for one client.

    Of each upload there is one message at most, besides its first one: every message tells all of the state, so that
    a newer one takes the place of those before it.
    """

    __slots__ = ("_closed", "_first", "_open_ids", "_pending", "_ping_is_due", "_waiter", "ended", "give_up", "retry")

    def __init__(self, upload_ids: Collection[str] | None) -> None:
        """Take the uploads after whose ends the stream ends; None for a stream that goes on."""
        self._open_ids = None if upload_ids is None else set(upload_ids)
        self._first: Sequence[Message] = ()
        self._pending: dict[str, list[Message]] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._ping_is_due = False
        self._closed = False
        self.ended = False  # nothing more comes
        self.retry: int | None = None  # milliseconds after which the client is to come back; None: by its own choice
        self.give_up: Callable[[], object] | None = None  # called if the client has not taken the end in time

    def begin(self, messages: Sequence[Message]) -> None:
        """Set the messages to begin with."""
        self._first = messages

    def put(self, message: Message) -> None:
        """Add a message, in place of an earlier one that has not been taken."""
        if self.ended:
            return
        pending = self._pending.get(message.upload_id)
        if pending is None and len(self._pending) >= MAX_SLOTS:
            self._pending.clear()
            self.end(OVERFLOW_RETRY)
            return
        first = [] if pending is None or pending[0].kind not in FIRST_KINDS else pending[:1]
        self._pending[message.upload_id] = [*first, message]
        if message.kind in FINAL_KINDS:
            self.upload_ended(message.upload_id)
        self._wake()

    def upload_ended(self, upload_id: str) -> None:
        """End the stream if this was the last upload that it is about."""
        if self._open_ids is not None:
            self._open_ids.discard(upload_id)
            if not self._open_ids:
                self.end()

    def ping(self) -> None:
        """Show the client, and proxies on the way, that the stream is alive."""
        self._ping_is_due = True
        self._wake()

    def end(self, retry: int | None = None) -> None:
        """End the stream after the messages that wait, and tell the client when to come back."""
        if not self.ended:
            self.ended, self.retry = True, retry
            self._wake()

    def close(self) -> None:
        """End the stream at once: the client is gone."""
        self.ended = self._closed = True
        self._first, self._pending = (), {}
        self._wake()

    async def next(self) -> Sequence[Message] | None:
        """Wait for messages; none of them stands for a ping, and None for the end of the stream."""
        while not self._closed:
            if self._first:
                first, self._first = self._first, ()
                return first
            if self._pending:
                pending, self._pending = self._pending, {}
                return sorted((one for some in pending.values() for one in some), key=lambda message: message.number)
            if self.ended:
                break
            if self._ping_is_due:
                self._ping_is_due = False
                return ()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
