"""Metrics files of several processes: one for each running process, and one with the sums of all ended ones.

prometheus_client keeps the files of every ended process for ever. The supervisor merges them instead.

Invariant: a reader sees the counts of an ended process exactly once, in its own file or in the sums. A lock file
excludes readers while the supervisor merges.
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
KINDS = ("counter", "histogram")  # kinds of metrics whose sums include ended processes
ENDED = "ended"  # in place of the process id in a file name


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a metrics folder, shared by readers or exclusive. Blocks. Raises OSError."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def merge_counts(folder: Path, pid: int) -> None:
    """Add the counts of an ended process to the sums, and remove its files. Blocks. Raises OSError."""
    with locked(folder, shared=False):
        for kind in KINDS:
            source = folder / f"{kind}_{pid}.db"
            if source.exists():
                _add(source, folder / f"{kind}_{ENDED}.db", folder / f"{kind}.new")
                source.unlink()


def _add(source: Path, target: Path, new: Path) -> None:
    """Add the values of `source` to `target`, which `new` then replaces atomically."""
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
    """Return the keys and values of a file; none if it is missing, or was left incomplete by a dying process."""
    try:
        found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        return [(key, value) for key, value, *_ in found]
    except (FileNotFoundError, RuntimeError, ValueError, struct.error):
        return []
