"""A receiver of long bodies of known length straight into pooled buffers: no parser, no copies, few objects."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tusd_py.core.buffers import Buffer, PooledBuffer
from tusd_py.transfer.budget import LendsBuffers
from tusd_py.transfer.socket_turn import SocketTurn

if TYPE_CHECKING:
    from tusd_py.uvicorn_server.cycle import UploadCycle
    from tusd_py.uvicorn_server.protocol import UploadProtocol

SCRATCH_SIZE = 64 << 10
SMALL_SHARE = 4  # a buffer that is filled to less than one in SMALL_SHARE is copied, not handed over


class BufferedBodyReceiver(asyncio.BufferedProtocol):
    """The protocol of a connection from the switch to buffers until the end of the body.

    A class of its own, because uvloop treats a protocol that is also an `asyncio.Protocol` as an unbuffered one.
    """

    def __init__(self, protocol: UploadProtocol, cycle: UploadCycle, pool: LendsBuffers, remaining: int) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._pool = pool
        self._transport = cycle.transport
        self._remaining = remaining
        self._buffer: PooledBuffer | None = None
        self._view = memoryview(b"")
        self._discarding = False
        self._turn: SocketTurn | None = None
        self._closed_meanwhile = False  # during the turn
        self.filled = 0
        self._switch_to(self)

    def _switch_to(self, protocol: asyncio.BaseProtocol) -> None:
        # A transport chooses between buffered and unbuffered reading when it starts to read.
        paused = self._cycle.flow.read_paused
        self._cycle.flow.pause_reading()
        self._transport.set_protocol(protocol)
        if not paused:
            self._cycle.flow.resume_reading()

    @property
    def is_full(self) -> bool:
        return self._remaining == 0 or (self._buffer is not None and self.filled == len(self._buffer))

    def provide_buffer(self) -> None:
        """Acquire a buffer unless there is one."""
        if self._buffer is None:
            self._buffer = self._pool.acquire()
            self._view = memoryview(self._buffer)
            self.filled = 0

    def read_buffered(self) -> Buffer:
        """Return the bytes received so far; mostly the buffer itself, which the caller gives back to the pool.

        The next buffer has the size that is fair then.
        """
        buffer, view = self._buffer, self._view[: self.filled]
        if buffer is None:
            return b""
        self._detach_buffer()
        if len(view) * SMALL_SHARE >= len(buffer):
            return view
        data = bytes(view)
        self._pool.release(buffer)
        return data

    def lend_socket(self, most: int, waiting: int) -> SocketTurn | None:
        """Return a turn of a thread with the socket, see `BodyExtension.lend_socket`."""
        if self._buffer is not None or self._discarding or self._transport.is_closing():
            return None
        self._turn = SocketTurn.of(self._transport.get_extra_info("socket"), min(most, self._remaining), waiting)
        if self._turn is not None:
            self._cycle.flow.lend()
        return self._turn

    def take_back_socket(self, turn: SocketTurn) -> None:
        """Continue after the bytes of a turn."""
        if turn.in_use:  # the event loop ends, and the thread may still take bytes
            turn.end()
            return
        turn.close()
        self._turn = None
        if turn.received:
            self._cycle.last_arrival = turn.last_arrival
        self._remaining -= turn.received
        resumes = self._cycle.flow.take_back()
        if self._remaining == 0:
            self._end_body()
            resumes = True  # to notice the end of the connection
        elif self._closed_meanwhile:
            self.close()
        if resumes:
            self._cycle.flow.resume_reading()

    def close(self) -> None:
        """Drop the buffer, and read and discard the rest of the body."""
        if self._turn is not None:
            self._turn.end()
            self._closed_meanwhile = True
            return
        if self._buffer is not None:
            buffer = self._buffer
            self._detach_buffer()
            self._pool.release(buffer)
        if self._remaining and not self._discarding and not self._transport.is_closing():
            self._discarding = True
            self._view = memoryview(bytearray(SCRATCH_SIZE))
            self._cycle.flow.resume_reading()

    def _detach_buffer(self) -> None:
        """Detach the buffer from the pool and pause reading until the next one is provided."""
        assert self._buffer is not None
        if self._remaining:
            self._cycle.flow.pause_reading()
        self._pool.detach(self._buffer)
        self._buffer = None
        self._view = memoryview(b"")
        self.filled = 0

    # The transport's side.

    def get_buffer(self, sizehint: int) -> memoryview:
        room = len(self._view) - self.filled
        return self._view[self.filled : self.filled + min(room, self._remaining)]

    def buffer_updated(self, nbytes: int) -> None:
        self._remaining -= nbytes
        if not self._discarding:
            self.filled += nbytes
            self._cycle.last_arrival = time.monotonic()
        if self._remaining == 0:
            self._end_body()
        elif not self._discarding and self.filled == len(self._view):
            self._cycle.flow.pause_reading()
            self._cycle.message_event.set()

    def _end_body(self) -> None:
        self._switch_to(self._protocol)
        self._protocol.buffered_body_ended()

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._turn is not None:
            self._turn.connection_lost()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
