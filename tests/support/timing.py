"""Limits of time in tests: those that guard against hanging grow with the slowness of the machine.

A limit that the server promises is judged by what the machine can do at that moment; every other one only ends a test
that would never end, and costs nothing while everything works.
"""

from __future__ import annotations

import os
import time

SLOWNESS = "TEST_SLOWNESS"  # in the environment of this process and of those that it starts
SPIN = 400_000  # additions
SPIN_SECONDS = 0.025  # for them on an ordinary machine with a core to spare
MARGIN = 3.0  # by which a machine may be slower than it was when it was measured
MOST = 20.0
ATTEMPTS = 5


def slowness_now() -> float:
    """The factor by which a computation takes longer than on an ordinary, idle machine; never less than 1."""
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # long enough to be interrupted by others as often as they want to run
        sum(range(SPIN))
    took = time.perf_counter() - started
    return min(MOST, max(1.0, took / (ATTEMPTS * SPIN_SECONDS)))


def slowness() -> float:
    """The slowness of this machine, measured once for all processes of a run."""
    known = os.environ.get(SLOWNESS)
    if known is None:
        known = os.environ[SLOWNESS] = f"{slowness_now():.2f}"
    return float(known)


def scaled(seconds: float) -> float:
    """A limit that is no promise, for this machine."""
    return seconds * max(MARGIN, slowness())


def promised(seconds: float) -> float:
    """A promised limit, as long as this machine now needs for what an ordinary one does in that time."""
    return seconds * slowness_now()
