"""The progress of long commands as a text, and the line that shows it."""

from __future__ import annotations

import io
import logging

import pytest

from tusd_py.commands.progress_line import ProgressLine, progress_text


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, None, 0.0, "uploads: 0"),
        (0, 40, 5.0, "[....................] uploads: 0 of 40"),
        (0, 0, 0.0, "[####################] uploads: 0 of 0"),
        (30, 40, 0.5, "[###############.....] uploads: 30 of 40"),
        (30, 40, 10.0, "[###############.....] uploads: 30 of 40, 3.0/s, 0:00:03 left"),
        (1234, 100_000, 10.0, "[....................] uploads: 1,234 of 100,000, 123/s, 0:13:20 left"),
        (41, 40, 10.0, "[####################] uploads: 41 of 40, 4.1/s, 0:00:00 left"),  # one came meanwhile
        (1234, None, 10.0, "uploads: 1,234, 123/s"),
    ],
)
def test_text_tells_what_is_known(done: int, total: int | None, seconds: float, text: str) -> None:
    assert progress_text("uploads", done, total, seconds, 100) == text


@pytest.mark.parametrize("width", [1, 10, 30, 50, 80])
def test_text_leaves_the_last_cell_free(width: int) -> None:
    text = progress_text("uploads", 12_345, 100_000, 10.0, width)
    assert len(text) < width
    assert text.startswith(("uploads: 12,345"[: width - 1], "[##..."))


def test_nothing_is_written_without_a_terminal() -> None:
    with ProgressLine(None) as line:
        line.stage("uploads")(1, 2)
        line.clear()
    assert not line.is_shown


class Gone(io.StringIO):
    """A terminal that has closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_work_goes_on_when_the_terminal_has_gone() -> None:
    with ProgressLine(Gone()) as line:
        line.stage("uploads")(1, 2)
    assert not line.is_shown


def test_log_line_begins_where_the_progress_was() -> None:
    terminal = io.StringIO()
    handler = logging.StreamHandler(terminal)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with ProgressLine(terminal) as line:
            line.stage("uploads")
            logging.getLogger("tusd_py.test").warning("a sentence")
            before = terminal.getvalue()
        logging.getLogger("tusd_py.test").warning("another")
    finally:
        root.removeHandler(handler)
    assert before.endswith("uploads: 0\r\x1b[Ka sentence\n")
    assert terminal.getvalue() == f"{before}another\n"
    assert not handler.filters
