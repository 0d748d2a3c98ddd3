"""Files of metrics of several processes: one for each process that lives, and one for all that have ended.

prometheus_client leaves the files of every process that ever was. A reader must see what a process counted once,
neither in both files nor in none: a reader and the process that merges exclude each other by a lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

LOCK = "merging.lock"
KINDS = ("counter", "histogram")  # what goes on counting when its process has ended
ENDED = "ended"  # in the place of a process id


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a folder of metrics; blocks. Raises OSError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def merge_counts(folder: Path, pid: int) -> None:
    """Add what an ended process has counted to what those before it have. Raises OSError."""
    with locked(folder, shared=False):
        for kind in KINDS:
            source = folder / f"{kind}_{pid}.db"
            if source.exists():
                _add(source, folder / f"{kind}_{ENDED}.db", folder / f"{kind}.new")
                source.unlink()


def _add(source: Path, target: Path, new: Path) -> None:
    """Add the values of one file to those of another, which is replaced as a whole."""
    sums: dict[str, float] = {}
    for path in (target, source):
        for key, value in _values(path):
            sums[key] = sums.get(key, 0.0) + value
    new.unlink(missing_ok=True)
    values = MmapedDict(str(new))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        values.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]
    new.rename(target)


def _values(path: Path) -> list[tuple[str, float]]:
    """Keys and values of a file; none of one that is not there, or was torn by the end of its process."""
    try:
        found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        return [(key, value) for key, value, *_ in found]
    except (FileNotFoundError, RuntimeError, ValueError, struct.error):
        return []
