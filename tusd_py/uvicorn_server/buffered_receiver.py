"""Receives the rest of a body of known length straight into blocks: no parser, no copies, few objects."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tusd_py.core.buffers import Buffer, PooledBuffer
from tusd_py.transfer.budget import BufferPool

if TYPE_CHECKING:
    from tusd_py.uvicorn_server.cycle import UploadCycle
    from tusd_py.uvicorn_server.protocol import UploadProtocol

SCRATCH_SIZE = 64 << 10
SMALL_SHARE = 4  # a block that is less than this part full is copied out of rather than handed over


class BufferedBodyReceiver(asyncio.BufferedProtocol):
    """Takes the place of the connection's protocol until the body has ended.

    uvloop takes a protocol that is also an `asyncio.Protocol` for an unbuffered one, so this is a class of its own.
    """

    def __init__(self, protocol: UploadProtocol, cycle: UploadCycle, pool: BufferPool, remaining: int) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._pool = pool
        self._transport = cycle.transport
        self._remaining = remaining
        self._block: PooledBuffer | None = None
        self._view = memoryview(b"")
        self._discarding = False
        self.filled = 0
        self._switch_to(self)

    def _switch_to(self, protocol: asyncio.BaseProtocol) -> None:
        # A transport chooses how it reads when it starts to read.
        paused = self._cycle.flow.read_paused
        self._cycle.flow.pause_reading()
        self._transport.set_protocol(protocol)
        if not paused:
            self._cycle.flow.resume_reading()

    @property
    def is_full(self) -> bool:
        return self._remaining == 0 or (self._block is not None and self.filled == len(self._block))

    def provide_buffer(self) -> None:
        """Make sure that there is room for more."""
        if self._block is None:
            self._block = self._pool.acquire()
            self._view = memoryview(self._block)
            self.filled = 0

    def take(self) -> Buffer:
        """The bytes received so far; mostly the block itself, which the caller gives back to the pool.

        The next block has the size that is fair then.
        """
        block, view = self._block, self._view[: self.filled]
        if block is None:
            return b""
        self._detach_buffer()
        if len(view) * SMALL_SHARE >= len(block):
            return view
        data = bytes(view)
        self._pool.release(block)
        return data

    def close(self) -> None:
        """No more is wanted: what still comes is thrown away, up to the end of the body."""
        if self._block is not None:
            block = self._block
            self._detach_buffer()
            self._pool.release(block)
        if self._remaining and not self._discarding and not self._transport.is_closing():
            self._discarding = True
            self._view = memoryview(bytearray(SCRATCH_SIZE))
            self._cycle.flow.resume_reading()

    def _detach_buffer(self) -> None:
        """Nothing may be received into it any more: reading goes on with the next one."""
        assert self._block is not None
        if self._remaining:
            self._cycle.flow.pause_reading()
        self._pool.detach(self._block)
        self._block = None
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
            self._switch_to(self._protocol)
            self._protocol.body_was_received_elsewhere()
        elif not self._discarding and self.filled == len(self._view):
            self._cycle.flow.pause_reading()
            self._cycle.message_event.set()

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
