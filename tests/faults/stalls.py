"""Faults in the system calls of this process, for tests that call storages, services and applications directly.

    def test_it(os_faults: OSFaults) -> None:
        stall = os_faults.stall("pwritev", "*/uploads/*")
        ...
        stall.wait()  # in a coroutine: `await asyncio.to_thread(stall.wait)`
        stall.lift()

The functions of the module `os` are replaced, so that the faults affect Python code only, not SQLite (`preload.py`).
"""

from __future__ import annotations

import errno
import fnmatch
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

# Position of the argument that names the file: a descriptor or a path.
CALLS = {
    "pread": 0,
    "pwritev": 0,
    "pwrite": 0,
    "write": 0,
    "fsync": 0,
    "fdatasync": 0,
    "ftruncate": 0,
    "copy_file_range": 1,
    "unlink": 0,
    "rename": 1,
    "replace": 1,
    "link": 1,
    "mkdir": 0,
    "open": 0,
}
SPLICED = 1  # position of the target of os.splice, which fails and stalls as pwritev does


class OSFault:
    """One active fault: the matching calls fail or stall until it is lifted."""

    def __init__(self, calls: str, pattern: str, error: int | None, skip: int, times: int) -> None:
        self._calls = calls.split(",")
        self._pattern = pattern
        self._error = error
        self._skip = skip
        self._times = times
        self._seen = 0
        self._changed = threading.Condition()
        self._lifted = False
        self.hits: list[str] = []
        self.stalled = 0  # calls that stall now

    def before_call(self, call: str, path: str) -> None:
        """Fail or stall a matching call; runs in the thread of the call, before it."""
        if call not in self._calls or not fnmatch.fnmatchcase(path, self._pattern):
            return
        with self._changed:
            number, self._seen = self._seen, self._seen + 1
            if self._lifted or number < self._skip or (self._times and number >= self._skip + self._times):
                return
            self.hits.append(path)
            self.stalled += self._error is None
            self._changed.notify_all()
            if self._error is None:
                self._changed.wait_for(lambda: self._lifted)
                self.stalled -= 1
                self._changed.notify_all()
                return
        raise OSError(self._error, os.strerror(self._error), path)

    def wait(self, count: int = 1, timeout: float = 60) -> None:
        """Wait until `count` calls were affected, at most `timeout` seconds. Blocks."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.hits) >= count, timeout), f"{len(self.hits)} of {count}"

    def lift(self) -> None:
        """End the fault; a stalled call continues."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()


class OSFaults:
    """The faults of the functions of the module `os` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._faults: list[OSFault] = []
        for call, position in CALLS.items():
            monkeypatch.setattr(os, call, self._replacement(call, position, getattr(os, call)))
        monkeypatch.setattr(os, "splice", self._replacement("pwritev", SPLICED, os.splice))

    def fail(self, calls: str, pattern: str, error: int = errno.EIO, *, skip: int = 0, times: int = 0) -> OSFault:
        """Make the calls fail with this errno; of the matching ones `skip` pass first, then `times` fail (0: all)."""
        return self._add(OSFault(calls, pattern, error, skip, times))

    def stall(self, calls: str, pattern: str, *, skip: int = 0, times: int = 0) -> OSFault:
        """Make the calls wait until the fault is lifted, before they do their work."""
        return self._add(OSFault(calls, pattern, None, skip, times))

    def clear(self) -> None:
        """Lift every fault."""
        for fault in self._faults:
            fault.lift()

    def _add(self, fault: OSFault) -> OSFault:
        self._faults.append(fault)
        return fault

    def _replacement(self, call: str, position: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments: Any, **named: Any) -> Any:
            if self._faults:
                path = _path(arguments[position])
                for fault in self._faults:
                    fault.before_call(call, path)
            return real(*arguments, **named)

        return replaced


def _path(where: Any) -> str:
    """Return the path of a descriptor or of a path-like argument."""
    if isinstance(where, int):
        try:
            return os.readlink(f"/proc/self/fd/{where}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(where))
