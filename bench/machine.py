"""Description of the machine that the benchmark runs on."""

import os
import platform
from pathlib import Path


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)


def file_system(directory: Path) -> str:
    """Return the type of the file system of a directory: that of the mount with the longest path above it."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    found = [(mount[1], mount[2]) for mount in mounts if directory.resolve().is_relative_to(mount[1])]
    return max(found, key=lambda mount: len(mount[0]))[1]


def description(directory: Path) -> list[tuple[str, str]]:
    return [
        ("CPU", f"{processor()}, {os.cpu_count()} cores"),
        ("Memory", f"{memory_gib():.0f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("File system", file_system(directory)),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
    ]
