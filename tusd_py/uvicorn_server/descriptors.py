"""File descriptors: how many this process may have, and how many connections that is enough for."""

from __future__ import annotations

import contextlib
import resource

ENOUGH = 1 << 20  # descriptors; libraries that close all of them one by one would take minutes for more
RESERVED = 64  # for records, locks, the log, folders and what libraries open
PER_CONNECTION = 2  # its socket, and the file of its upload
DEFAULT_MAX_CONNECTIONS = 16384  # connections of one process


def raise_descriptor_limit() -> int:
    """Raise the soft limit of this process to its hard one; returns the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def connection_limit(descriptors: int, reserved: int, wanted: int | None, workers: int) -> int:
    """Connections that one of so many processes may have at a time.

    `reserved` descriptors are needed for other purposes. Raises ValueError if those that are wanted of all processes
    together need more descriptors than there are.
    """
    possible = max(1, (descriptors - reserved) // PER_CONNECTION)
    if wanted is None:
        return min(possible, DEFAULT_MAX_CONNECTIONS)
    share = -(-wanted // workers)
    if share > possible:
        needed = share * PER_CONNECTION + reserved
        raise ValueError(
            f"{wanted} connections need {needed} file descriptors a process, and the limit is {descriptors}"
        )
    return share
