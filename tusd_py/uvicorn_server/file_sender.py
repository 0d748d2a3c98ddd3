"""Sends files by the kernel (sendfile), past the memory of this process.

The calls are made in threads, since they wait for the disk when the file is not in memory. A thread stays with a
client only as long as it takes bytes at once; otherwise the event loop waits until the socket is writable.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from functools import partial

from tusd_py.asyncutil.futures import settle
from tusd_py.asyncutil.threads import Threads

SLICE = 0.05  # seconds that a thread spends on one client at a time
PAUSE = 2  # milliseconds that a thread waits for a client
CALL_SIZE = 4 << 20  # bytes asked for in one call
MAX_FLUSH_PAUSE = 0.05  # seconds between two looks whether the transport has sent the head


def can_send_files(scheme: str | None) -> bool:
    """Return whether files can be sent on a connection of this scheme: the kernel does not encrypt."""
    return scheme == "http" and hasattr(os, "sendfile") and hasattr(select, "poll")


class FileSender:
    """The transmission of ranges of files on one connection, one range at a time."""

    def __init__(
        self,
        transport: asyncio.Transport,
        threads: Threads,
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
        self._is_stopped = False

    def stop(self) -> None:
        """Give up: the connection is lost."""
        self._is_stopped = True
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
        step: asyncio.Future[int] | None = None
        try:
            end = offset + count
            while offset < end:
                self._check()
                step = self._threads.run(partial(_send, socket, own_file, offset, end - offset))
                offset += await asyncio.shield(step)
                if offset < end:
                    await self._wait_until_writable(socket)
        finally:
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


def _send(socket: int, file: int, offset: int, count: int) -> int:
    """Send until the client takes no more at once; return the number of bytes. Runs in a worker thread."""
    poll = select.poll()
    poll.register(socket, select.POLLOUT)
    deadline = time.monotonic() + SLICE
    sent = 0
    while sent < count and time.monotonic() < deadline:
        try:
            size = os.sendfile(socket, file, offset + sent, min(CALL_SIZE, count - sent))
        except BlockingIOError:
            if not poll.poll(PAUSE):
                break
            continue
        if size == 0:
            raise OSError("the file is shorter than it was")
        sent += size
    return sent


def _close_after(socket: int, file: int, step: asyncio.Future[int]) -> None:
    if not step.cancelled():
        step.exception()  # retrieved, so that asyncio does not log it: the request was cancelled
    _close(socket, file)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
