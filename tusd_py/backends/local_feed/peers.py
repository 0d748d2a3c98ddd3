"""The two ends of a connection between processes: one wants changes, the other sends them.

The one that wants has connected, and sends lines `want JSON`; lines `change JSON` and `lost` come back. A process that
starts sends `hello NAME` to all others, so that those that want changes connect to it. One that asks which locks
another holds sends `locks`, and gets `locks JSON`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tusd_py.core.progress import NO_INTERESTS, Change
from tusd_py.core.progress_codec import decode_interests, encode_change

MAX_LINE = 1 << 20  # bytes
MAX_HELD = 10_000  # changes that are held for a process that does not read


class Lines(asyncio.Protocol):
    """A connection of lines."""

    def __init__(self, ended: Callable[[Any], object]) -> None:
        """Take what is called with the connection once it has ended."""
        self._ended = ended
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.is_paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            kind, _, rest = line.decode(errors="replace").partition(" ")
            self.take(kind, rest)
        if len(self._received) > MAX_LINE:
            self.abort()

    def take(self, kind: str, rest: str) -> None:
        """Take a line; those of an unknown kind are of a later version."""

    def send(self, kind: str, rest: str = "") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(f"{kind} {rest}\n".encode())

    def close(self) -> None:
        """Close the connection after what is being sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False


class Subscriber(Lines):
    """The connection of a process that wants changes of this one."""

    def __init__(
        self,
        ended: Callable[[Any], object],
        changed: Callable[[], object],
        greeted: Callable[[str], object],
        locks: Callable[[], str],
    ) -> None:
        """Take what is called with events.

        Args:
            ended: is called once the connection has ended.
            changed: is called after the interests of the process have changed.
            greeted: is called with the name of a process that has started.
            locks: returns the locks that this process holds.
        """
        super().__init__(ended)
        self._locks = locks
        self.interests = NO_INTERESTS
        self._changed = changed
        self._greeted = greeted
        self._held: dict[str, Change] | None = {}  # by upload; None: too many, so that some were lost

    def take(self, kind: str, rest: str) -> None:
        if kind == "want":
            self.interests = decode_interests(rest)
            self._changed()
        elif kind == "hello":
            self._greeted(rest)
        elif kind == "locks":
            self.send("locks", self._locks())

    def publish(self, change: Change) -> None:
        """Send a change; while the process does not read, hold the last one of each upload."""
        if not self.is_paused:
            self.send("change", encode_change(change))
        elif self._held is not None:
            self._held[change.id] = change
            if len(self._held) > MAX_HELD:
                self._held = None

    def resume_writing(self) -> None:
        super().resume_writing()
        held, self._held = self._held, {}
        if held is None:
            self.send("lost")
        for change in (held or {}).values():
            self.publish(change)


class Subscription(Lines):
    """The connection to a process whose changes this one wants."""

    def __init__(self, ended: Callable[[Any], object], received: Callable[[str, str], object]) -> None:
        """Take what is called with every line."""
        super().__init__(ended)
        self._take = received

    def take(self, kind: str, rest: str) -> None:
        self._take(kind, rest)


class Question(Lines):
    """The connection to a process that is asked which locks it holds."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()  # None: it sends none
        super().__init__(lambda _: self._settle(None))

    def take(self, kind: str, rest: str) -> None:
        if kind == "locks":
            self._settle(rest)

    def _settle(self, answer: str | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
