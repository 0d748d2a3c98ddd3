"""Sends files by the kernel (sendfile), past the memory of this process.

The calls are made in threads, since they wait for the disk when the file is not in memory. A thread stays with a
client for a turn; while the client takes nothing, the event loop waits until the socket is writable. Turns are long
while threads are spare, since each costs two changes of threads, and short while other clients may need the thread.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tusd_py.asyncutil.futures import settle
from tusd_py.asyncutil.threads import Threads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of a turn: `seconds` of a thread for one client, `pause` milliseconds in which that takes nothing."""

    seconds: float
    pause: int


SHORT = Patience(0.05, 2)
LONG = Patience(0.5, 50)
CALL_SIZE = 4 << 20  # bytes asked for in one call
MAX_FLUSH_PAUSE = 0.05  # seconds between two looks whether the transport has sent the head


def can_send_files(scheme: str | None) -> bool:
    """Return whether files can be sent on a connection of this scheme: the kernel does not encrypt."""
    return scheme == "http" and hasattr(os, "sendfile") and hasattr(select, "poll")


class FileThreads(Threads):
    """The threads that send files, shared by all connections."""

    def __init__(self, count: int) -> None:
        super().__init__(count, "tusd-py-send")
        self._patient = count // 2  # turns that may be long at the same time
        self._pending = 0  # calls whose result the event loop does not have yet

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        result = super().run(work)
        self._pending += 1
        result.add_done_callback(self._ended)
        return result

    def _ended(self, _: object) -> None:
        self._pending -= 1

    def patience(self) -> Patience:
        """Return the bounds of the next turn: half of the threads always come back soon."""
        return LONG if self._pending < self._patient else SHORT


@dataclass(slots=True)
class Turn:
    """The sending of a part of a file to one client, until it takes no more or its time is over."""

    socket: int
    file: int
    offset: int
    end: int
    patience: Patience
    is_ended: bool = False  # set by the event loop: nobody waits for more

    def run(self) -> int:
        """Return the offset after the last byte that was sent. Runs in a worker thread."""
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        deadline = time.monotonic() + self.patience.seconds
        while self.offset < self.end and not self.is_ended:
            asked = min(CALL_SIZE, self.end - self.offset)
            try:
                sent = os.sendfile(self.socket, self.file, self.offset, asked)
            except BlockingIOError:
                sent = 0
            else:
                if sent == 0:
                    raise OSError("the file is shorter than it was")
                self.offset += sent
            if time.monotonic() >= deadline or (sent < asked and not poll.poll(self.patience.pause)):
                break
        return self.offset


class FileSender:
    """The transmission of ranges of files on one connection, one range at a time."""

    def __init__(
        self,
        transport: asyncio.Transport,
        threads: FileThreads,
        watch: Callable[[], None],
        stop_watching: Callable[[], None],
    ) -> None:
        """Call `watch` when the client takes nothing at once, and `stop_watching` when it takes something again."""
        self._transport = transport
        self._threads = threads
        self._watch = watch
        self._stop_watching = stop_watching
        self._loop = asyncio.get_running_loop()
        self._writable: asyncio.Future[None] | None = None
        self._turn: Turn | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Give up: the connection is lost."""
        self._is_stopped = True
        if self._turn is not None:
            self._turn.is_ended = True
        if self._writable is not None:
            settle(self._writable, None, None)

    async def send(self, file: int, offset: int, count: int) -> None:
        """Send `count` bytes of a file from `offset` on, after all that was written to the transport.

        Raises:
            ConnectionError: the connection is lost.
            OSError: the file cannot be read, or has fewer bytes.
        """
        await self._flush()
        # Copies, which a thread can use to the end of its call whatever happens to the originals meanwhile.
        socket, own_file = os.dup(self._transport.get_extra_info("socket").fileno()), os.dup(file)
        turn = self._turn = Turn(socket, own_file, offset, offset + count, LONG)
        step: asyncio.Future[int] | None = None
        try:
            while offset < turn.end:
                self._check()
                turn.patience = self._threads.patience()
                step = self._threads.run(turn.run)
                offset = await asyncio.shield(step)
                if offset < turn.end:
                    await self._wait_until_writable(socket)
        finally:
            self._turn = None
            turn.is_ended = True
            if step is None or step.done():
                _close(socket, own_file)
            else:
                step.add_done_callback(partial(_close_after, socket, own_file))

    def _check(self) -> None:
        if self._is_stopped or self._transport.is_closing():
            raise ConnectionResetError

    async def _flush(self) -> None:
        """Wait until the transport has handed everything to the kernel."""
        self._check()
        if not self._transport.get_write_buffer_size():
            return
        self._watch()
        try:
            pause = 0.0
            while self._transport.get_write_buffer_size():
                await asyncio.sleep(pause)
                pause = min(2 * pause + 0.001, MAX_FLUSH_PAUSE)
                self._check()
        finally:
            self._leave_client()

    def _leave_client(self) -> None:
        """End the watch, unless the transport closes: it still has to deliver what it holds."""
        if not self._transport.is_closing():
            self._stop_watching()

    async def _wait_until_writable(self, socket: int) -> None:
        self._check()
        writable = self._writable = self._loop.create_future()
        self._loop.add_writer(socket, settle, writable, None, None)
        self._watch()
        try:
            await writable
        finally:
            self._writable = None
            self._loop.remove_writer(socket)
            self._leave_client()


def _close_after(socket: int, file: int, step: asyncio.Future[int]) -> None:
    if not step.cancelled():
        step.exception()  # retrieved, so that asyncio does not log it: the request was cancelled
    _close(socket, file)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
