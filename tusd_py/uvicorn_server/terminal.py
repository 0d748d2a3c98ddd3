"""SIGHUP, sent by an operator or by the kernel when the terminal that started the server has closed."""

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
    """The controlling terminal, to find out whether a SIGHUP means that it has closed.

    Create the object before SIGHUP gets a handler: it records whether SIGHUP is ignored, as under nohup, where the
    server must continue.
    """

    def __init__(self) -> None:
        self._existed = _has_controlling_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def has_closed(self) -> bool:
        return self._existed and not _has_controlling_terminal()


def _has_controlling_terminal() -> bool:
    """Return whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def handle_hangups() -> None:
    """Install a handler of SIGHUP that ends the process if the terminal has closed, and logs a line otherwise."""
    terminal = Terminal()

    def handle(number: int, frame: FrameType | None) -> None:
        if terminal.has_closed():
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # in a thread: the signal may have interrupted the writing of another line
            threading.Thread(target=logger.info, args=(NOTHING_TO_RELOAD,)).start()

    signal.signal(signal.SIGHUP, handle)
