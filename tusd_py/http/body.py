"""The body of a request as a source of bytes that can be interrupted, and that does not wait for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.types import Message, Receive, Scope

from tusd_py.core.buffers import Buffer, PooledBuffer
from tusd_py.core.errors import ClientDisconnected, IncompleteBody, ReadTimeout, UploadError
from tusd_py.transfer.budget import BufferPool

BODY_EXTENSION = "tusd_py.arrivals"  # ASGI scope extension: an `Arrivals`
READ_AHEAD = 128 << 10  # bytes of a body held for a reader that is busy, under a server that cannot be asked
RATE_WINDOW = 60.0  # seconds over which the minimum rate is an average


class BodyExtension(Protocol):
    """Facts of a body that a server may tell beyond ASGI messages."""

    last_arrival: float  # by time.monotonic
    trailers: list[tuple[bytes, bytes]]  # fields after the body; all of them once it has ended

    @property
    def whole(self) -> Buffer | None:
        """Return the bytes that `take` would give, if these are, or were, all of the body."""

    @property
    def reader_timed_out(self) -> bool:
        """Whether the client took too little of the answer for too long, so that the connection was closed."""

    def take(self) -> Buffer:
        """The bytes that have arrived, without waiting."""

    def close(self) -> None:
        """No more bytes are wanted."""

    def use_buffer_pool(self, pool: BufferPool) -> None:
        """Receive into blocks of this pool from now on; messages are then whole blocks, as memoryviews."""


class BehindMiddleware:
    """The `Arrivals` behind a middleware that has a `receive` of its own.

    Bytes may be on their way through it, so that the server cannot be asked for those that follow.
    """

    def __init__(self, extension: BodyExtension) -> None:
        self._extension = extension
        self.last_arrival = 0.0  # of bytes that nobody sees yet
        self.trailers = extension.trailers

    @property
    def whole(self) -> Buffer | None:
        return None

    @property
    def reader_timed_out(self) -> bool:
        return self._extension.reader_timed_out

    def take(self) -> Buffer:
        return b""

    def close(self) -> None:
        self._extension.close()

    def use_buffer_pool(self, pool: BufferPool) -> None: ...


def arrivals_of(scope: Scope, receive: Receive) -> BodyExtension | None:
    """The server's extension for the body that `receive` gives; None under a server that has none."""
    extension: BodyExtension | None = scope.get("extensions", {}).get(BODY_EXTENSION)
    if extension is None or getattr(receive, "__self__", None) is extension:
        return extension
    return BehindMiddleware(extension)


class RequestBody:
    """Reads a body through ASGI messages.

    `idle_timeout` (seconds) bounds the wait for the next bytes; `min_rate` (bytes a second) what arrives on
    average. Only the time spent waiting for the client counts, not the time the server takes to store.

    Only the task of the request calls `receive`, which servers and middleware may bind to it: either it reads itself,
    or it feeds another task (`feed`), which nothing that happens to the request can then cancel.
    """

    def __init__(
        self,
        receive: Receive,
        declared_size: int | None,
        *,
        idle_timeout: float = 60,
        min_rate: float = 0,
        offers_upgrade: bool = False,
        expects_continue: bool = False,
        extension: BodyExtension | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        self.declared_size = declared_size
        self.bytes_received = 0
        self.started = False  # the client was let send
        self.ended = False  # nothing of the body is left on the connection
        self._receive = receive
        self._offers_upgrade = offers_upgrade and extension is None
        self._expects_continue = expects_continue
        self._extension = extension
        self._pool = pool
        self._idle_timeout = idle_timeout
        self._min_rate = min_rate
        self._stop: UploadError | None = None
        self._woken = False
        self._task: asyncio.Task[object] | None = None  # while it waits in `receive`
        self._kicked = False
        self._waiting = False  # for the client
        self._feeding = False
        self._expected: asyncio.Future[Message | None] | None = None  # while the reader that is fed waits
        self._hunger: asyncio.Future[None] | None = None  # while the feeder waits for that
        self._fed: list[Message | Exception] = []  # messages that came while the reader did not wait for one
        self._received_last = False  # no message of the body follows those that were received
        self._silent_since: float | None = None  # began to wait for what has not come yet
        self._window_waited = 0.0
        self._window_received = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self) -> Buffer | None:
        """See `transfer.body_source.BodySource.read`."""
        if self.arrived is not None:
            self.started = self.ended = True
            return self._take_arrived()
        while not (self._stop or self._woken or self.ended):
            if not self.started:
                self._begin()
            message = await self._next_message()
            if message is not None:
                return self._accept(message)
        if self.ended:
            return None
        self._woken = False
        if self._fed:
            return self._accept(self._next_fed())
        data = self._take_arrived()
        if self._stop is not None and not data:
            raise self._stop
        return data

    @property
    def arrived(self) -> Buffer | None:
        """See `transfer.body_source.BodySource.arrived`."""
        return self._extension.whole if self._extension is not None and not self.started else None

    def _begin(self) -> None:
        self.started = True
        if self._extension is not None and self._pool is not None:
            self._extension.use_buffer_pool(self._pool)

    def _accept(self, message: Message) -> Buffer:
        if message["type"] == "http.disconnect":
            self._stop = ClientDisconnected()
            raise self._stop
        self.ended = not message.get("more_body", False)
        self._silent_since = None
        data: Buffer = message.get("body", b"")
        self._count(len(data))
        if self.ended and not self.bytes_received and self._was_dropped():
            self._stop = IncompleteBody()
            raise self._stop
        return data

    def _was_dropped(self) -> bool:
        """Whether there must have been a body: uvicorn drops what comes with an offer to upgrade."""
        return self._offers_upgrade if self.declared_size is None else self.declared_size > 0

    def _take_arrived(self) -> Buffer:
        """Take the bytes that have arrived and were not handed over yet, where the server can be asked."""
        data = self._extension.take() if self._extension is not None else b""
        if data and self._extension is not None:
            self._silent_since = self._extension.last_arrival
        self._count(len(data))
        return data

    def release(self, buffers: Sequence[Buffer]) -> None:
        """See `transfer.body_source.BodySource.release`."""
        for buffer in buffers:
            if isinstance(buffer, memoryview) and isinstance(buffer.obj, PooledBuffer):
                buffer.obj.pool.release(buffer.obj)

    @property
    def is_watched(self) -> bool:
        """Whether the server has a deadline for every state of the connection itself."""
        return self._extension is not None

    @property
    def reader_timed_out(self) -> bool:
        """Whether the server has closed the connection because the client did not read."""
        return self._extension is not None and self._extension.reader_timed_out

    @property
    def has_trailers(self) -> bool:
        """Whether trailers can be seen here."""
        return self._extension is not None

    def trailer(self, name: str) -> str | None:
        """A field that came after the body; None if it did not, or more than once."""
        trailers = self._extension.trailers if self._extension is not None else []
        values = [value.decode("latin-1").strip(" \t") for field, value in trailers if field.decode("latin-1") == name]
        return values[0] if len(values) == 1 else None

    def silent_for(self) -> float:
        if self._silent_since is None:
            return 0.0
        if self._extension is not None and self._extension.last_arrival > self._silent_since:
            return time.monotonic() - self._extension.last_arrival
        return time.monotonic() - self._silent_since

    def interrupt(self, reason: UploadError) -> None:
        if self._stop is None:
            self._stop = reason
            self._kick()

    def wake(self) -> None:
        self._woken = True
        self._kick()

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """See `transfer.body_source.BodySource.feed`."""
        self._feeding = True
        reader.add_done_callback(self._reader_done)
        try:
            while not reader.done():
                if (self._expected is None or self._expected.done()) and not self._may_read_ahead():
                    self._hunger = asyncio.get_running_loop().create_future()
                    await self._hunger
                    continue
                message = await self._receive_for_reader()
                if message is not None:
                    self._serve(message)
        except asyncio.CancelledError:
            self.interrupt(ClientDisconnected())
            raise
        finally:
            self._hunger = None
            self._feeding = False
            reader.remove_done_callback(self._reader_done)

    def _may_read_ahead(self) -> bool:
        """Whether to receive a message before the reader asks for it.

        Servers drop the bytes that they hold when the client disconnects. Where they cannot be asked for them, only
        bytes that were received in time are kept. A client that waits for `100 Continue` is left waiting.
        """
        may_send = self.started or not self._expects_continue
        if self._extension is not None or not may_send or self._received_last:
            return False
        held = sum(len(message.get("body", b"")) for message in self._fed if not isinstance(message, Exception))
        return held < READ_AHEAD

    async def _receive_for_reader(self) -> Message | Exception | None:
        try:
            return await self._receive_here()
        except Exception as error:  # of the server or a middleware: it is the reader's, as if it had called itself
            return error

    def _serve(self, message: Message | Exception) -> None:
        self._received_last = isinstance(message, Exception) or not message.get("more_body", False)
        if self._expected is None or self._expected.done():
            self._fed.append(message)
        elif isinstance(message, Exception):
            self._expected.set_exception(message)
        else:
            self._expected.set_result(message)

    def _next_fed(self) -> Message:
        message = self._fed.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    def _reader_done(self, reader: object) -> None:
        if self._hunger is not None and not self._hunger.done():
            self._hunger.set_result(None)
        self._leave_receive()

    async def _next_message(self) -> Message | None:
        """The next ASGI message; None if `interrupt` or `wake` ended the wait for it."""
        if self._fed:
            return self._next_fed()
        started = time.monotonic()
        if self._silent_since is None:
            self._silent_since = started
        self._arm()
        self._waiting = True
        try:
            return await (self._wait_to_be_fed() if self._feeding else self._receive_here())
        finally:
            self._waiting = False
            self._window_waited += time.monotonic() - started

    async def _wait_to_be_fed(self) -> Message | None:
        self._expected = asyncio.get_running_loop().create_future()
        if self._hunger is not None and not self._hunger.done():
            self._hunger.set_result(None)
        try:
            return await self._expected
        finally:
            self._expected = None

    async def _receive_here(self) -> Message | None:
        """The next message, in the task of the request; None if `_leave_receive` ended the wait for it.

        That cancels the task, which leaves a message that is just arriving where it is.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._kicked:
                raise
            self._kicked = False
            if task.uncancel() > 0:  # somebody else cancelled it too
                raise
            return None
        finally:
            if self._kicked:  # the server's `receive` swallowed the cancellation
                self._kicked = False
                task.uncancel()
            self._task = None

    def _leave_receive(self) -> None:
        if self._task is not None and not self._kicked:
            self._kicked = True
            self._task.cancel()

    def _kick(self) -> None:
        """End the wait for the client, if there is one; a reader that is fed is woken without disturbing `receive`."""
        if not self._feeding:
            self._leave_receive()
        elif self._expected is not None and not self._expected.done():
            self._expected.set_result(None)

    def _arm(self) -> None:
        if self._timer is None and self._idle_timeout:
            self._timer = asyncio.get_running_loop().call_later(self._idle_timeout, self._idle)

    def _idle(self) -> None:
        """The timer is set once and looks, when it fires, how long the silence really is."""
        self._timer = None
        if not self._waiting:
            return  # the next wait sets it again
        remaining = self._idle_timeout - self.silent_for()
        if remaining <= 0:
            self.interrupt(ReadTimeout())
        else:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._idle)

    def _count(self, received: int) -> None:
        self.bytes_received += received
        self._window_received += received
        if self._window_waited >= RATE_WINDOW and not self.ended:
            if self._window_received < self._min_rate * self._window_waited:
                self.interrupt(ReadTimeout())
            self._window_waited = 0.0
            self._window_received = 0

    def close(self) -> None:
        """The application is done with the request."""
        if self._extension is not None:
            self._extension.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def discard(self, seconds: float) -> None:
        """Read on for a while without keeping anything, so that the client gets to see the answer."""
        self._stop = None
        try:
            async with asyncio.timeout(seconds):
                while (data := await self.read()) is not None:
                    self.release((data,))
        except (TimeoutError, UploadError):
            pass

    async def wait_for_disconnect(self) -> None:
        """Return once the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
