"""The progress of long commands, as one line at the end of a terminal that is drawn again and again."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Self, TextIO

from tusd_py.core.command_progress import Progress
from tusd_py.migration.report import Reporter
from tusd_py.observability.logging import formats_json

REDRAW_INTERVAL = 0.1  # seconds between two drawings at least
MIN_TIME = 1.0  # seconds after which a rate tells anything
BAR = 20  # cells
USUAL_WIDTH = 80  # cells of a terminal that does not tell its own
CLEAR = "\r\x1b[K"


class ProgressLine:
    """The line of one command, within the context of which it is on the terminal.

    The command prints all else through `before`, and log lines are seen to, so that none begins behind the line. At the
    end of the context, also after an interruption, nothing of the line is left.
    """

    def __init__(self, terminal: TextIO | None) -> None:
        """Take the terminal; None for no line at all."""
        self._terminal = terminal
        self._is_drawn = False
        self._handlers: Sequence[logging.Handler] = ()

    def __enter__(self) -> Self:
        if self._terminal is not None:
            self._handlers = list(logging.getLogger().handlers)
            for handler in self._handlers:
                handler.addFilter(self._before_log_line)
        return self

    def __exit__(self, *exception: object) -> None:
        for handler in self._handlers:
            handler.removeFilter(self._before_log_line)
        self.clear()
        self._terminal = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal."""
        return self._terminal is not None

    def stage(self, title: str) -> Progress:
        """Begin to count; return what takes the number that is done, and the number of all, None if it is not known.

        Args:
            title: the things that are counted, such as `due uploads`.
        """
        started = time.monotonic()
        drawn_at = started - REDRAW_INTERVAL

        def show(done: int, total: int | None) -> None:
            nonlocal drawn_at
            now = time.monotonic()
            if now - drawn_at >= REDRAW_INTERVAL:
                drawn_at = now
                self._draw(title, done, total, now - started)

        self._draw(title, 0, None, 0.0)
        return show

    def before(self, report: Reporter) -> Reporter:
        """Return what does the same as `report`, which prints a line, without the progress before it."""

        def report_alone(text: str) -> None:
            self.clear()
            report(text)

        return report_alone

    def clear(self) -> None:
        """Take the line away until it is drawn again."""
        if self._is_drawn:
            self._is_drawn = False
            self._write(CLEAR)

    def _draw(self, title: str, done: int, total: int | None, seconds: float) -> None:
        if self._terminal is not None:
            self._is_drawn = True
            width = USUAL_WIDTH
            with contextlib.suppress(OSError):
                width = os.get_terminal_size(self._terminal.fileno()).columns or USUAL_WIDTH
            self._write(f"{CLEAR}{progress_text(title, done, total, seconds, width)}")

    def _write(self, text: str) -> None:
        if self._terminal is None:
            return
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except OSError:  # the terminal has gone, and the work goes on without it
            self._terminal = None

    def _before_log_line(self, record: logging.LogRecord) -> bool:
        self.clear()
        return True


def watched_terminal() -> TextIO | None:
    """Return standard error if it is a terminal that can clear a line, for people and not for JSON; None otherwise."""
    terminal: TextIO | None = sys.stderr  # None if it was closed before the command began
    if terminal is None or not terminal.isatty():
        return None
    return terminal if os.environ.get("TERM", "dumb") != "dumb" and not formats_json() else None


def progress_text(title: str, done: int, total: int | None, seconds: float, width: int) -> str:
    """Return the progress as a text of less than `width` cells: a bar, the numbers, the rate and the remaining time."""
    parts = [f"{title}: {done:,}" if total is None else f"{title}: {done:,} of {total:,}"]
    bar = ""
    if seconds >= MIN_TIME and done:
        rate = done / seconds
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        if total is not None:
            parts.append(f"{timedelta(seconds=round(max(0, total - done) / rate))} left")
    if total is not None:
        filled = BAR * min(done, total) // total if total else BAR
        bar = f"[{'#' * filled}{'.' * (BAR - filled)}] "
    text = ", ".join(parts)
    return f"{bar}{text}" if len(bar) + len(text) < width else text[: width - 1]
