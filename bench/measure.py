"""Resources used by the process tree of a server: CPU time and peak memory from /proc, wall time from the clock."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# Work that a server does right after its last answer still counts as its CPU time.
SETTLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Usage:
    seconds: float
    cpu_seconds: float
    idle_bytes: int
    peak_bytes: int


def stat_fields(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command name, which may hold spaces: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def process_tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(stat_fields(int(entry.name))[1]), []).append(int(entry.name))
    tree = [root]
    for process in tree:
        tree += children.get(process, [])
    return tree


def cpu_clock(process: int) -> int:
    """Return the identity of the clock that counts the CPU time of a process, see clock_getcpuclockid(3) of Linux."""
    return ~process << 3 | 2


def cpu_seconds(tree: Sequence[int]) -> float:
    """Return user and system time of these processes, and of their ended children in steps of 10 ms, in seconds."""
    seconds = 0.0
    for process in tree:
        with contextlib.suppress(OSError):
            ended = sum(int(field) for field in stat_fields(process)[13:15])
            seconds += time.clock_gettime(cpu_clock(process)) + ended / CLOCK_TICKS
    return seconds


def memory_bytes(tree: Sequence[int], field: str) -> int:
    """Return the sum of VmRSS or VmHWM in bytes; pages that processes share count once for each of them."""
    total = 0
    for process in tree:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1]) * 1024
    return total


def reset_peaks(tree: Sequence[int]) -> None:
    """Restart VmHWM from now. Where the kernel refuses, the peak is the one since the server started."""
    for process in tree:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


@contextlib.contextmanager
def pinned_load() -> Iterator[None]:
    """Keep the load generator on one core for the context, so that the server has the others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Meter:
    """A measurement of one server, for the duration of a `with` block."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.usage: Usage | None = None
        self.exits = contextlib.ExitStack()

    def __enter__(self) -> None:
        tree = process_tree(self.process)
        reset_peaks(tree)
        self.idle_bytes = memory_bytes(tree, "VmRSS")
        self.cpu_before = cpu_seconds(tree)
        self.exits.enter_context(pinned_load())
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        self.exits.close()
        time.sleep(SETTLE_SECONDS)
        tree = process_tree(self.process)
        spent = cpu_seconds(tree) - self.cpu_before
        self.usage = Usage(seconds, spent, self.idle_bytes, memory_bytes(tree, "VmHWM"))
