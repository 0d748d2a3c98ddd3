"""SIGHUP: from an operator, or from the terminal that a server was started from and that has closed."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

logger = logging.getLogger("tusd_py.uvicorn_server")

NOTHING_TO_RELOAD = (
    "SIGHUP: nothing to reload; settings are read at the start only,"
    " and with --workers 2 or more processes are replaced without a gap"
)


class Terminal:
    """Tells whether a SIGHUP came from a terminal that has closed: then nobody is there any more to stop the server.

    Create the object before SIGHUP gets a handler: it finds out whether SIGHUP is ignored, as under nohup, where the
    server must live on.
    """

    def __init__(self) -> None:
        self._existed = _exists() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def has_closed(self) -> bool:
        return self._existed and not _exists()


def _exists() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def outlive_hangups() -> None:
    """Have SIGHUP, which ends a process by default, end it as SIGTERM does or be answered with a log line."""
    terminal = Terminal()

    def handle(number: int, frame: FrameType | None) -> None:
        if terminal.has_closed():
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # in a thread: the signal may have interrupted the writing of another line
            threading.Thread(target=logger.info, args=(NOTHING_TO_RELOAD,)).start()

    signal.signal(signal.SIGHUP, handle)
