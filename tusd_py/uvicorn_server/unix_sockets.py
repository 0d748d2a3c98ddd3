"""Listening Unix sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

MASK = 0o117  # of the permissions of a socket, so that the group may connect
CONNECT_TIMEOUT = 1.0  # seconds


@contextlib.contextmanager
def bound_unix(path: Path, backlog: int) -> Iterator[socket.socket]:
    """Listen at a path, in place of a socket that an ended server has left; remove the socket at the end.

    A process that ends by a signal leaves the socket where it is.

    Blocks, and changes the umask of the process for a moment. Raises `OSError`.
    """
    _remove_abandoned(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(MASK)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(backlog)  # at once, so that no other server takes the socket for one that was left
        inode = path.lstat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.lstat().st_ino == inode:  # not that of a later server
                    path.unlink()


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
