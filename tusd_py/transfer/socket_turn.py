"""The receiving of a body in the thread that stores it: the kernel moves the bytes from the socket to the file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time

MIN_TURN = 256 << 10  # bytes; fewer are not worth a turn
LOW_WATER = 256 << 10  # bytes for which a turn waits after the first ones, unless fewer are missing
PAUSE = 10  # milliseconds without so many bytes after which a turn ends
MIN_WAITING = 64 << 10  # bytes that a fast client has sent in advance
PIPE_SIZE = 1 << 20
MIN_PIPE = 64 << 10  # bytes; with a smaller pipe buffers are faster
NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)  # EPERM: of a filter of system calls


def can_lend_socket(scheme: str | None) -> bool:
    """Return whether a thread can take the bytes of a connection of this scheme: not of TLS, which Python decrypts."""
    return scheme == "http" and hasattr(os, "splice") and hasattr(select, "poll")


class SocketTurn:
    """The transfer of the next bytes of a body to a file, until enough have come, the client pauses, or it is ended.

    Nobody else reads from the connection meanwhile. A client that is slower than `LOW_WATER` bytes in a `PAUSE` is left
    to the event loop.
    """

    def __init__(self, connection: socket.socket, most: int) -> None:
        """Take a duplicate of the socket, and the number of bytes after which the turn ends."""
        self._connection = connection
        self._room = most
        self._low_water = 1
        self._pipe: tuple[int, int] | None = None
        self._held = 0  # bytes that were received and not stored yet
        self._copied = memoryview(b"")  # those of them that are not in the pipe
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._is_ended = False
        self._finishes = False
        self._is_last = False  # whether only what the kernel held is still taken
        self.in_use = False  # from the moment when it is handed to a thread until that has left the context
        self.splices = True  # whether bytes could be moved through a pipe
        self.received = 0
        self.waited = 0.0  # seconds that were spent waiting for the client
        self.last_arrival = 0.0  # time.monotonic() when the last bytes were received

    @classmethod
    def of(cls, transport_socket: socket.socket, most: int, waiting: int) -> SocketTurn | None:
        """Return a turn; None if less than `waiting` bytes have come in advance, or no descriptor is left."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = transport_socket.fileno()
            if most >= MIN_TURN and (not waiting or _arrived(descriptor) >= waiting):
                return cls(_duplicate(descriptor), most)
        return None

    # The event loop's side.

    def end(self) -> None:
        """Have the thread return soon, once what it has received is stored."""
        self._is_ended = True

    def finish(self) -> None:
        """Have the thread return soon, once what the kernel holds by then is stored."""
        self._finishes = True

    def connection_lost(self) -> None:
        """End the turn and the connection, which its duplicate would keep open."""
        self.end()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicate, after the turn."""
        self._connection.close()

    # The thread's side.

    def __enter__(self) -> None:
        try:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # no descriptor is left: the event loop receives the body
            self._room = 0
            return
        try:
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # the user has too many pipes: this one holds less
            if fcntl.fcntl(self._pipe[1], fcntl.F_GETPIPE_SZ) < MIN_PIPE:
                self._room = 0

    def __exit__(self, *_: object) -> None:
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
        self._await_bytes(1)

    def receive(self) -> bool:
        """Take the next bytes, unless some are still to be stored; return False at the end of the turn. Blocks."""
        return self._held > 0 or self._receive()

    def store(self, file: int, position: int) -> int:
        """Move bytes that were received to a file; return their number. Blocks.

        Raises:
            OSError: they could not be stored. All bytes received with them are lost.
        """
        moved = self._store(file, position)
        if moved == 0:
            raise OSError(errno.EIO, "the file takes no bytes")
        self._held -= moved
        return moved

    def _receive(self) -> bool:
        """Receive bytes into the pipe; return False at the end of the turn.

        The event loop finds the end of the connection by itself, and reads past urgent data: a splice does not, and the
        bytes behind make the socket readable.
        """
        has_waited = False
        while self._pipe is not None and not self._is_ended and self._take_last():
            try:
                flags = os.SPLICE_F_NONBLOCK
                self._held = os.splice(
                    self._connection.fileno(), self._pipe[1], min(self._room, PIPE_SIZE), flags=flags
                )
            except BlockingIOError:
                if not has_waited and self._wait():
                    has_waited = True
                    continue
                break
            except OSError as error:
                self.splices = error.errno not in NO_SPLICE
                break
            if self._held:
                self.last_arrival = time.monotonic()
            self.received += self._held
            self._room -= self._held
            return self._held > 0
        return False

    def _take_last(self) -> bool:
        """Return whether more is to be received: after `finish` only what the kernel holds when the thread sees it."""
        if self._finishes and not self._is_last:
            self._is_last = True
            self._room = min(self._room, _arrived(self._connection.fileno()))
        return self._room > 0

    def _wait(self) -> bool:
        """Wait for bytes; return whether enough have come.

        The kernel enlarges the buffer of the socket for good for the bytes that it waits for: not for a silent client.
        """
        if self._is_last:
            return False
        self._await_bytes(min(LOW_WATER, self._room) if self.received else 1)
        started = time.monotonic()
        try:
            return bool(self._poll.poll(PAUSE))
        finally:
            self.waited += time.monotonic() - started

    def _await_bytes(self, count: int) -> None:
        """Have the kernel call the socket readable once it has so many bytes."""
        if count != self._low_water:
            with contextlib.suppress(OSError):  # the connection is closed
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._low_water = count

    def _store(self, file: int, position: int) -> int:
        assert self._pipe is not None
        if not self._copied:
            try:
                return os.splice(self._pipe[0], file, self._held, offset_dst=position)
            except OSError as error:
                if error.errno not in NO_SPLICE:
                    raise
            self.splices, self._room = False, 0
            self._copied = memoryview(os.read(self._pipe[0], self._held))
        written = os.pwritev(file, [self._copied], position)
        self._copied = self._copied[written:]
        return written


def _duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise


def _arrived(descriptor: int) -> int:
    """Return the number of bytes that the kernel holds for the reader of a socket."""
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])
