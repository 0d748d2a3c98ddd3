"""File descriptors: the limit of this process, and the number of connections that it allows."""

from __future__ import annotations

import contextlib
import resource

MAX_DESCRIPTORS = 1 << 20  # libraries that close all descriptors one by one would take minutes for more
RESERVED_DESCRIPTORS = 64  # for records, locks, the log, folders and what libraries open
RECEIVING_DESCRIPTORS = 24  # of the eight threads that receive: a duplicate of a socket and a pipe each
PER_CONNECTION = 2  # its socket, and the file of its upload
DEFAULT_MAX_CONNECTIONS = 16384  # connections of one process


def raise_descriptor_limit() -> int:
    """Raise the soft limit of this process to its hard limit; return the limit in effect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection_limit(descriptors: int, reserved: int, wanted: int | None, workers: int) -> int:
    """Return the number of connections that one of `workers` processes may have at a time.

    `reserved` descriptors are needed for other purposes, `wanted` connections for all processes together. Raises
    ValueError if these need more descriptors than there are.
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
