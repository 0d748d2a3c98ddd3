"""Faults in the system calls of a server process: calls that fail, stall, lie or kill, by path (`syscalls.c`).

    faults = PreloadedFaults(tmp_path / "faults", library)
    with ServerProcess(tmp_path / "uploads", env=faults.env) as server:
        stall = faults.stall("pwritev", "*/uploads/*")
        ...  # a PATCH
        stall.wait()  # until a call stalls
        stall.lift()

The library comes from the fixture `preload_library` in `tests/conftest.py`.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("syscalls.c")


def build(compiler: str, folder: Path) -> Path:
    """Compile the library into the folder."""
    library = folder / "syscalls.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


class PreloadedFaults:
    """The faults of every process that is started with `env`; none at first.

    `calls` names one call or several, separated by commas: pwritev, pwrite, write, fsync, fdatasync, ftruncate,
    copy_file_range, unlink, rename, link, mkdir, open; `*` is all of them. A splice to a file is a pwritev, and
    `splice` names it alone; so does `pipe2`, whose path is `pipe`. `pattern` is a glob of the whole path, in which `*`
    matches `/` too. Of the matching calls of a process the first `skip` pass, the next `times` are affected (0: all).
    """

    def __init__(self, folder: Path, library: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._library = library
        self._rules_file = folder / "rules"
        self._log_file = folder / "rules.log"
        self._rules: dict[str, str] = {}
        self._made = 0
        self._write()

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "TUSD_PY_FAULTS": str(self._rules_file)}

    def fail(self, calls: str, pattern: str, error: int = errno.EIO, *, skip: int = 0, times: int = 0) -> Fault:
        """Make the calls fail with this errno."""
        return self._add(calls, pattern, f"error:{error}", skip, times)

    def lose(self, calls: str, pattern: str, error: int = errno.EIO, *, skip: int = 0, times: int = 0) -> Fault:
        """Make the syncs fail, and turn what the process wrote to the file since its last good sync into zeros."""
        return self._add(calls, pattern, f"lose:{error}", skip, times)

    def stall(self, calls: str, pattern: str, *, after: bool = False, skip: int = 0, times: int = 0) -> Fault:
        """Make the calls wait until the fault is lifted, before they do their work or `after` it."""
        return self._add(calls, pattern, "stall-after" if after else "stall", skip, times)

    def slow(self, calls: str, pattern: str, seconds: float, *, skip: int = 0, times: int = 0) -> Fault:
        """Make the calls take `seconds` longer."""
        return self._add(calls, pattern, f"slow:{round(seconds * 1000)}", skip, times)

    def drop(self, calls: str, pattern: str, *, skip: int = 0, times: int = 0) -> Fault:
        """Make the calls succeed without doing anything."""
        return self._add(calls, pattern, "drop", skip, times)

    def short(self, calls: str, pattern: str, size: int, *, skip: int = 0, times: int = 0) -> Fault:
        """Make the calls write at most `size` bytes."""
        return self._add(calls, pattern, f"short:{size}", skip, times)

    def kill(self, calls: str, pattern: str, *, after: bool = False, skip: int = 0, times: int = 0) -> Fault:
        """Kill the process before the call, or `after` it."""
        return self._add(calls, pattern, "kill-after" if after else "kill", skip, times)

    def clear(self) -> None:
        """Lift every fault."""
        self._rules.clear()
        self._write()

    def lift(self, name: str) -> None:
        self._rules.pop(name, None)
        self._write()

    def affected_paths(self, name: str) -> list[str]:
        """Return the paths of the calls that a fault has affected so far, in order."""
        return self._phases(name, "begin")

    def ended(self, name: str) -> list[str]:
        """Return the paths of the calls whose stall is over."""
        return self._phases(name, "end")

    def _phases(self, name: str, phase: str) -> list[str]:
        if not self._log_file.exists():
            return []
        lines = (line.split(" ", 4) for line in self._log_file.read_text().splitlines())
        return [line[4] for line in lines if line[0] == name and line[3] == phase]

    def _add(self, calls: str, pattern: str, action: str, skip: int, times: int) -> Fault:
        self._made += 1
        name = f"f{self._made}"
        self._rules[name] = f"{name} {calls} {action} {int(skip)} {times} {pattern}\n"
        self._write()
        return Fault(self, name)

    def _write(self) -> None:
        new = self._rules_file.with_suffix(".new")
        new.write_text("".join(self._rules.values()))
        os.replace(new, self._rules_file)  # a process reads the rules at any moment


class Fault:
    """One active fault."""

    def __init__(self, faults: PreloadedFaults, name: str) -> None:
        self._faults = faults
        self.name = name

    def wait(self, count: int = 1, timeout: float = 60) -> None:
        """Wait until `count` calls were affected, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while len(self.hits) < count:
            assert time.monotonic() < deadline, f"{len(self.hits)} of {count} calls within {timeout} s"
            time.sleep(0.01)

    def lift(self) -> None:
        """End the fault; a stalled call continues."""
        self._faults.lift(self.name)

    @property
    def hits(self) -> list[str]:
        """Paths of the calls affected so far."""
        return self._faults.affected_paths(self.name)

    @property
    def ended(self) -> list[str]:
        """Paths of the calls whose stall is over."""
        return self._faults.ended(self.name)
