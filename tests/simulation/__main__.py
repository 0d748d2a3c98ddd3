"""Starts the command line of the simulation, `python -m tests.simulation`, with hashes that are the same each time."""

from __future__ import annotations

import os
import sys

HASHES = "PYTHONHASHSEED"  # the order of sets of texts depends on it


def start() -> int:
    """Run the command line, in another Python first if the hashes of this one are random."""
    if os.environ.get(HASHES) != "0":
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, HASHES: "0"})
    from tests.simulation.command_line import main  # takes seconds, and is wasted on a Python that is replaced

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
