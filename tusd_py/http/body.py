"""The body of a request as a `BodySource`: interruptible, with an idle timeout and a minimum rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive

from tusd_py.core.buffers import Buffer, PooledBuffer
from tusd_py.core.errors import ClientDisconnected, IncompleteBody, ReadTimeout, UploadError
from tusd_py.http.body_extension import BodyExtension
from tusd_py.transfer.budget import LendsBuffers, SmallBuffers
from tusd_py.transfer.socket_turn import MIN_WAITING, SocketTurn

READ_AHEAD = 128 << 10  # bytes received for a busy reader in advance, under a server without a body extension
RATE_WINDOW = 60.0  # seconds over which the minimum rate is an average


class RequestBody:
    """The body of one request, read through ASGI messages and the server's body extension.

    `idle_timeout` (seconds) bounds the wait for the next bytes, `min_rate` (bytes a second) the average rate from
    below. Only the time spent waiting for the client counts, not the time that the server takes to store bytes.

    Only the task of the request calls `receive`, since servers and middleware may bind `receive` to that task. Either
    this task calls `read` itself, or it calls `feed` to pass messages to another task, which then survives a
    cancellation of the request. The server with the body extension has no such bond: there the other task receives.
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
        pool: LendsBuffers | None = None,
    ) -> None:
        self.declared_size = declared_size
        self.bytes_received = 0
        self.started = False  # whether the client was allowed to send (`100 Continue`)
        self.ended = False  # whether the whole body was read from the connection
        self._receive = receive
        self._offers_upgrade = offers_upgrade and extension is None
        self._expects_continue = expects_continue
        self._extension = extension
        self._reader_receives = extension is not None and getattr(receive, "__self__", None) is extension
        self._pool = pool
        self._idle_timeout = idle_timeout
        self._min_rate = min_rate
        self._interruption: UploadError | None = None
        self._wake_requested = False
        self._receiving_task: asyncio.Task[object] | None = None  # the task that waits in `receive`
        self._receive_cancelled = False
        self._waits_for_client = False
        self._is_feeding = False
        self._awaited_message: asyncio.Future[Message | None] | None = None  # while a fed reader waits
        self._reader_wants_data: asyncio.Future[None] | None = None  # while `feed` waits for the reader to wait
        self._queued_messages: list[Message | Exception] = []  # received while the reader did not wait
        self._received_last = False  # whether the last message of the body was received
        self._silent_since: float | None = None  # monotonic time when the wait for the next bytes began
        self._window_waited = 0.0
        self._window_received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._turn: SocketTurn | None = None  # while a thread receives
        self._is_new = True  # until the first turn

    async def read(self) -> Buffer | None:
        """See `transfer.body_source.BodySource.read`."""
        if self.arrived is not None:
            self.started = self.ended = True
            return self._read_arrived()
        while not (self._interruption or self._wake_requested or self.ended):
            if not self.started:
                self._start_receiving()
            message = await self._next_message()
            if message is not None:
                return self._accept(message)
        if self.ended:
            return None
        self._wake_requested = False
        if self._queued_messages:
            return self._accept(self._next_queued_message())
        data = self._read_arrived()
        if self._interruption is not None and not data:
            raise self._interruption
        return data

    @property
    def arrived(self) -> Buffer | None:
        """See `transfer.body_source.BodySource.arrived`."""
        return self._extension.whole if self._extension is not None and not self.started else None

    def lend(self, most: int) -> SocketTurn | None:
        """See `transfer.body_source.LendsSocket.lend`."""
        if self._extension is None or not self._reader_receives or self.ended:
            return None
        if self._interruption or self._wake_requested or self._queued_messages:
            return None
        if not self.started:
            if self._expects_continue or self.arrived is not None:
                return None
            self._start_receiving()
        # For the first bytes of a client, whose speed is not known yet, a thread waits itself.
        turn = self._turn = self._extension.lend_socket(most, 0 if self._is_new else MIN_WAITING)
        if turn is not None:
            self._is_new, self._silent_since = False, None
        return turn

    def take_back(self, turn: SocketTurn) -> None:
        """See `transfer.body_source.LendsSocket.take_back`."""
        assert self._extension is not None
        self._turn = None
        self._extension.take_back_socket(turn)
        if turn.received:
            self._silent_since = None
        self._window_waited += turn.waited
        self._count_received(turn.received)

    def receive_in_small_buffers(self, most: int) -> None:
        """Receive at most so many bytes at a time from now on, if the server receives into buffers."""
        if self._pool is not None:
            self._pool = SmallBuffers(self._pool, most)

    def forget_silence(self) -> None:
        """Count the silence of the client from now on: until now the server did not want to receive."""
        self._silent_since = None

    def _start_receiving(self) -> None:
        self.started = True
        if self._extension is not None and self._pool is not None:
            self._extension.use_buffer_pool(self._pool)

    def _accept(self, message: Message) -> Buffer:
        if message["type"] == "http.disconnect":
            self._interruption = ClientDisconnected()
            raise self._interruption
        self.ended = not message.get("more_body", False)
        self._silent_since = None
        data: Buffer = message.get("body", b"")
        self._count_received(len(data))
        if self.ended and not self.bytes_received and self._was_body_dropped():
            self._interruption = IncompleteBody()
            raise self._interruption
        return data

    def _was_body_dropped(self) -> bool:
        """Return whether the server dropped a body: uvicorn drops one that comes with an offer to upgrade."""
        return self._offers_upgrade if self.declared_size is None else self.declared_size > 0

    def _read_arrived(self) -> Buffer:
        """Return the bytes that the server has received and not handed over yet; none if it has no body extension."""
        data = self._extension.read_buffered() if self._extension is not None else b""
        if data and self._extension is not None:
            self._silent_since = self._extension.last_arrival
        self._count_received(len(data))
        return data

    def release(self, buffers: Sequence[Buffer]) -> None:
        """See `transfer.body_source.BodySource.release`."""
        for buffer in buffers:
            if isinstance(buffer, memoryview) and isinstance(buffer.obj, PooledBuffer):
                buffer.obj.pool.release(buffer.obj)

    @property
    def is_watched(self) -> bool:
        """Whether the server itself has a deadline for every state of the connection."""
        return self._extension is not None

    @property
    def reader_timed_out(self) -> bool:
        """Whether the server closed the connection because the client read the response too slowly."""
        return self._extension is not None and self._extension.reader_timed_out

    def limit_send_buffer(self) -> None:
        """Have the server hold little of the response for a client that does not read it, if it can.

        The connection then ends with the response.
        """
        if self._extension is not None:
            self._extension.limit_send_buffer()

    def reset_connection(self) -> None:
        """Have the server close the connection at once, if it can."""
        if self._extension is not None:
            self._extension.reset_connection()

    @property
    def has_trailers(self) -> bool:
        """Whether the server passes trailers on."""
        return self._extension is not None

    def trailer(self, name: str) -> str | None:
        """Return the value of a field of the trailers; None if it is missing or came more than once."""
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
        if self._interruption is None:
            self._interruption = reason
            if self._turn is not None:
                self._turn.end()
            self._end_wait()

    def wake(self) -> None:
        self._wake_requested = True
        if self._turn is not None:
            self._turn.finish()
        self._end_wait()

    async def feed(self, reader: asyncio.Future[Any]) -> None:
        """See `transfer.body_source.BodySource.feed`."""
        if self._reader_receives:
            try:
                await asyncio.wait((reader,))
            except asyncio.CancelledError:
                self.interrupt(ClientDisconnected())
                raise
            return
        self._is_feeding = True
        reader.add_done_callback(self._reader_done)
        try:
            while not reader.done():
                if (self._awaited_message is None or self._awaited_message.done()) and not self._may_read_ahead():
                    self._reader_wants_data = asyncio.get_running_loop().create_future()
                    await self._reader_wants_data
                    continue
                message = await self._receive_for_reader()
                if message is not None:
                    self._pass_to_reader(message)
        except asyncio.CancelledError:
            self.interrupt(ClientDisconnected())
            raise
        finally:
            self._reader_wants_data = None
            self._is_feeding = False
            reader.remove_done_callback(self._reader_done)

    def _may_read_ahead(self) -> bool:
        """Return whether to receive a message before the reader asks for it.

        A server without a body extension drops the bytes that it holds when the client disconnects: only those that
        were received before are kept. A client that waits for `100 Continue` is left waiting.
        """
        may_send = self.started or not self._expects_continue
        if self._extension is not None or not may_send or self._received_last:
            return False
        held = sum(
            len(message.get("body", b"")) for message in self._queued_messages if not isinstance(message, Exception)
        )
        return held < READ_AHEAD

    async def _receive_for_reader(self) -> Message | Exception | None:
        try:
            return await self._receive_cancellable()
        except Exception as error:  # of the server or a middleware: raised in the reader, for which this task receives
            return error

    def _pass_to_reader(self, message: Message | Exception) -> None:
        self._received_last = isinstance(message, Exception) or not message.get("more_body", False)
        if self._awaited_message is None or self._awaited_message.done():
            self._queued_messages.append(message)
        elif isinstance(message, Exception):
            self._awaited_message.set_exception(message)
        else:
            self._awaited_message.set_result(message)

    def _next_queued_message(self) -> Message:
        message = self._queued_messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    def _reader_done(self, reader: object) -> None:
        if self._reader_wants_data is not None and not self._reader_wants_data.done():
            self._reader_wants_data.set_result(None)
        self._cancel_receive()

    async def _next_message(self) -> Message | None:
        """Wait for the next ASGI message; return None if `interrupt` or `wake` ended the wait."""
        if self._queued_messages:
            return self._next_queued_message()
        started = time.monotonic()
        if self._silent_since is None:
            self._silent_since = started
        self._start_idle_timer()
        self._waits_for_client = True
        try:
            return await (self._wait_for_reader_message() if self._is_feeding else self._receive_cancellable())
        finally:
            self._waits_for_client = False
            self._window_waited += time.monotonic() - started

    async def _wait_for_reader_message(self) -> Message | None:
        self._awaited_message = asyncio.get_running_loop().create_future()
        if self._reader_wants_data is not None and not self._reader_wants_data.done():
            self._reader_wants_data.set_result(None)
        try:
            return await self._awaited_message
        finally:
            self._awaited_message = None

    async def _receive_cancellable(self) -> Message | None:
        """Receive the next message in the task of the request; return None if `_cancel_receive` ended the wait.

        `_cancel_receive` cancels the task. A message that arrives at that moment stays in the server.
        """
        task = asyncio.current_task()
        assert task is not None
        self._receiving_task = task
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._receive_cancelled:
                raise
            self._receive_cancelled = False
            if task.uncancel() > 0:  # another caller cancelled the task too
                raise
            return None
        finally:
            if self._receive_cancelled:  # the server's `receive` swallowed the cancellation
                self._receive_cancelled = False
                task.uncancel()
            self._receiving_task = None

    def _cancel_receive(self) -> None:
        if self._receiving_task is not None and not self._receive_cancelled:
            self._receive_cancelled = True
            self._receiving_task.cancel()

    def _end_wait(self) -> None:
        """End the wait of the reader for the client; a fed reader is woken without a cancellation of `receive`."""
        if not self._is_feeding:
            self._cancel_receive()
        elif self._awaited_message is not None and not self._awaited_message.done():
            self._awaited_message.set_result(None)

    def _start_idle_timer(self) -> None:
        if self._timer is None and self._idle_timeout:
            self._timer = asyncio.get_running_loop().call_later(self._idle_timeout, self._check_idle)

    def _check_idle(self) -> None:
        """Interrupt a silent client, or wait for the rest of the idle timeout.

        The timer is not reset when bytes arrive; when it fires, the time without bytes decides.
        """
        self._timer = None
        if not self._waits_for_client:
            return  # the next wait starts the timer again
        remaining = self._idle_timeout - self.silent_for()
        if remaining <= 0:
            self.interrupt(ReadTimeout())
        else:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._check_idle)

    def _count_received(self, received: int) -> None:
        self.bytes_received += received
        self._window_received += received
        if self._window_waited >= RATE_WINDOW and not self.ended:
            if self._window_received < self._min_rate * self._window_waited:
                self.interrupt(ReadTimeout())
            self._window_waited = 0.0
            self._window_received = 0

    def close(self) -> None:
        """Stop the idle timer and drop the rest of the body; called when the application is done with the request."""
        if self._extension is not None:
            self._extension.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def discard(self, seconds: float) -> None:
        """Read and drop the body for at most `seconds`, so that the client reads the response before the close."""
        self._interruption = None
        try:
            async with asyncio.timeout(seconds):
                while (data := await self.read()) is not None:
                    self.release((data,))
        except (TimeoutError, UploadError):
            pass

    async def wait_for_disconnect(self) -> None:
        """Wait until the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
