"""The command line `tusd-py` as an operator runs it, to its end.

Most of a run would be imports, so it is a fork of a process that has done them (`tests.support.forking`), unless it
starts worker processes or has variables that only a new interpreter reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.harness import FORKERS, ROOT, ServerProcess
from tests.support.timing import scaled
from tusd_py.cli import main

INTERPRETER = (sys.executable, "-W", "error", "-m")
TIMEOUT = scaled(60)  # seconds


def execute(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with these arguments and environment variables; return its exit code and output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_PY_")}
    environment = inherited | variables
    forker = FORKERS.find((*INTERPRETER, "tests.support.command_line"), environment)
    if forker is not None and ServerProcess.may_fork and "--workers" not in arguments:
        return forker.run(arguments, environment, folder=cwd, timeout=TIMEOUT)
    return subprocess.run(
        [*INTERPRETER, "tusd_py", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def assert_refused_in_one_line(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("tusd-py: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def run(arguments: Sequence[str]) -> int:
    """Run the command line in a forked process; return its exit code."""
    return main(arguments)
