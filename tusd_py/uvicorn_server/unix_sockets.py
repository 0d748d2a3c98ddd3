"""Listening Unix sockets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

MASK = 0o117  # of the permissions of a socket, so that the group may connect
CONNECT_TIMEOUT = 1.0  # seconds
TURN_TIMEOUT = 2.0  # seconds that a server waits for others that start in the same directory
TURN_PAUSE = 0.01  # seconds between two looks whether they have started


@contextlib.contextmanager
def bound_unix(path: Path, backlog: int) -> Iterator[socket.socket]:
    """Listen at a path, in place of a socket that an ended server has left; remove the socket at the end.

    Once the listener is closed, which may be before the end, another server may listen there.

    A process that ends by a signal leaves the socket where it is.

    Blocks, and changes the umask of the process for a moment. Raises `OSError`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with _turn_in(path.parent):  # a socket that does not listen yet looks like one that was left
            _remove_abandoned(path)
            mask = os.umask(MASK)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            listener.listen(backlog)
            identity = _identity(path)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError), _turn_in(path.parent):
                if _identity(path) == identity:  # not that of a later server
                    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a socket from every later one: the number of its inode alone may be used again."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns  # which neither chmod nor a connection changes


@contextlib.contextmanager
def _turn_in(directory: Path) -> Iterator[None]:
    """Let one server at a time look for sockets in a directory and make or remove its own.

    Every process that may read the directory can lock it as well, and not every directory can be locked. So a server
    goes on without the turn after `TURN_TIMEOUT`: only servers that start at the same moment need it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            _lock(descriptor)
        yield


def _lock(descriptor: int) -> None:
    """Wait for the lock on a file, at most `TURN_TIMEOUT`; raises `OSError`."""
    deadline = time.monotonic() + TURN_TIMEOUT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(TURN_PAUSE)


def _remove_abandoned(path: Path) -> None:
    """Remove a socket on which nobody listens; raises `OSError` for every other file, and for a socket in use."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_TIMEOUT)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another server listens there")
