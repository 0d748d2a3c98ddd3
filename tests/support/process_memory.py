"""Memory and processor time of a process, read from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path


def resident_size(pid: int) -> int:
    """Return the bytes of memory that the process holds now."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
