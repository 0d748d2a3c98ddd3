"""The progress of long commands on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import secrets
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import execute
from tests.support.harness import ROOT, serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import scaled, wait_until
from tests.support.tusd_directory import write_upload
from tests.support.wire.requests import create

WIDTH = 100  # cells
MANY = 2000  # uploads, whose import takes seconds since each is synced
# The terminal becomes the one that controls the process, so that Ctrl-C is a signal; a parent may have ignored that.
ON_THE_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.login_tty(os.open(sys.argv[1], os.O_RDWR))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Terminal:
    """A command that runs on a terminal of its own, with its output and errors."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, WIDTH))
        command = [sys.executable, "-W", "error", "-m", "tusd_py", *arguments]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_THE_TERMINAL, os.ttyname(theirs), *command],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"} | variables,
        )
        self._theirs = theirs
        self._output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65536):
                self._output += data
        except OSError:  # nobody has the terminal open any more, and all of it was read
            pass

    @property
    def output(self) -> str:
        return self._output.decode()

    def type(self, letters: bytes) -> None:
        os.write(self._ours, letters)

    def wait(self) -> int:
        """Wait for the end of the command; return its exit code."""
        try:
            return self._process.wait(scaled(60))
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._theirs)
            self._reader.join(scaled(10))
            os.close(self._ours)

    def screen(self) -> list[str]:
        """Return the lines that the user sees in the end, the one of the cursor last."""
        lines, column = [""], 0
        for part in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", self.output):
            if part == "\r":
                column = 0
            elif part == "\n":
                lines.append("")
            elif part == "\x1b[K":
                lines[-1] = lines[-1][:column]
            else:
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
                column += len(part)
        return lines


def run(*arguments: str, **variables: str) -> Terminal:
    terminal = Terminal(*arguments, **variables)
    assert terminal.wait() == 0, terminal.output
    return terminal


def directory_of_tusd(folder: Path, count: int) -> Path:
    for number in range(count):
        write_upload(folder / "tusd", f"upload-{number}", 5, b"12345")
    return folder / "tusd"


def test_import_shows_its_progress_and_leaves_the_summary(tmp_path: Path) -> None:
    directory = directory_of_tusd(tmp_path, 3)
    done = run("import-tusd", str(directory), "--upload-dir", str(tmp_path / "uploads"))
    assert "[....................] uploads: 0 of 3" in done.output
    assert done.screen() == ["3 imported, 0 there already", ""]


def test_lines_of_a_dry_run_are_whole(tmp_path: Path) -> None:
    directory = directory_of_tusd(tmp_path, 2)
    (directory / "broken.info").write_text("no JSON")
    terminal = Terminal("import-tusd", str(directory), "--dry-run", "--upload-dir", str(tmp_path / "uploads"))
    assert terminal.wait() == 1
    assert "of 3" in terminal.output
    assert terminal.screen() == [
        "tusd-py: broken.info is not JSON",
        "upload-0 5 of 5 bytes",
        "upload-1 5 of 5 bytes",
        "2 to import, 0 there already",
        "tusd-py: 1 not imported",
        "",
    ]


def test_migration_shows_its_progress(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for _ in range(2):
            create(server.port, 5)
    redis = ["--redis-url", shared_redis_url(), "--redis-prefix", f"{secrets.token_hex(8)}:"]
    arguments = ["--upload-dir", str(tmp_path / "uploads"), *redis]
    done = run("migrate", "--from", "sqlite", "--to", "redis", *arguments)
    assert "uploads: 0 of 2" in done.output
    assert done.screen() == ["2 copied, 0 there already", "now start the server with the same --redis-url", ""]


def test_sweep_shows_its_progress(tmp_path: Path) -> None:
    with serving(tmp_path, expires_after="1s", sweep_interval="0") as server:
        create(server.port, 5)
        wait_until(lambda: "bytes" in execute("sweep", "--dry-run", "--upload-dir", str(server.upload_dir)).stdout)
    done = run("sweep", "--upload-dir", str(tmp_path / "uploads"))
    assert "due uploads: 0" in done.output
    assert "records compared with the storage: 0" in done.output
    assert done.screen() == ["removed 1, completed 0", ""]


def test_log_in_json_and_a_terminal_that_clears_nothing_have_no_progress(tmp_path: Path) -> None:
    directory = directory_of_tusd(tmp_path, 1)
    for number, arguments, variables in ((1, ["--log-format", "json"], {}), (2, [], {"TERM": "dumb"})):
        arguments += ["--upload-dir", str(tmp_path / f"uploads-{number}")]
        assert run("import-tusd", str(directory), *arguments, **variables).output == "1 imported, 0 there already\r\n"


def test_errors_in_a_file_have_no_progress(tmp_path: Path) -> None:
    directory = directory_of_tusd(tmp_path, 1)
    done = execute("import-tusd", str(directory), "--upload-dir", str(tmp_path / "uploads"), TERM="xterm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 imported, 0 there already\n", "")


@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-"])
def test_command_works_without_standard_error(tmp_path: Path, closed: str) -> None:
    with serving(tmp_path):
        pass
    command = [sys.executable, "-m", "tusd_py", "sweep", "--upload-dir", str(tmp_path / "uploads")]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    done = subprocess.run([*shell, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=scaled(60))
    assert (done.returncode, done.stdout) == (0, "removed 0, completed 0\n")


def test_interruption_leaves_the_terminal_clean_and_a_second_run_does_the_rest(tmp_path: Path) -> None:
    directory = directory_of_tusd(tmp_path, MANY)
    arguments = ["import-tusd", str(directory), "--upload-dir", str(tmp_path / "uploads")]
    terminal = Terminal(*arguments)
    wait_until(has_begun(terminal))
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert terminal.screen() == [""]
    rest = execute(*arguments)
    numbers = re.fullmatch(r"(\d+) imported, (\d+) there already\n", rest.stdout)
    assert numbers is not None
    assert int(numbers[1]) + int(numbers[2]) == MANY
    assert int(numbers[2]) > 0


def has_begun(terminal: Terminal) -> Callable[[], bool]:
    """Return what tells whether a part of the uploads was imported."""
    return lambda: re.search(r"uploads: [1-9]\d* of", terminal.output) is not None
