"""Limits of time in tests: those that guard against hanging grow with the slowness of the machine.

A limit that the server promises is judged by what the machine can do at that moment; every other one only ends a test
that would never end, and costs nothing while everything works.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

SLOWNESS = "TEST_SLOWNESS"  # variable in the environment of this process and of those that it starts
SPIN = 400_000  # additions of one measurement
SPIN_SECONDS = 0.025  # seconds for these on an ordinary machine with an idle core
MARGIN = 3.0  # factor by which a machine may be slower than when it was measured
MAX_SLOWNESS = 20.0
ATTEMPTS = 5


def slowness_now() -> float:
    """Return the factor by which a computation takes longer than on an ordinary, idle machine, at least 1."""
    started = time.perf_counter()
    for _ in range(ATTEMPTS):  # long enough to be interrupted by other processes as usual
        sum(range(SPIN))
    took = time.perf_counter() - started
    return min(MAX_SLOWNESS, max(1.0, took / (ATTEMPTS * SPIN_SECONDS)))


def slowness() -> float:
    """Return the slowness of this machine, measured once for all processes of a run."""
    known = os.environ.get(SLOWNESS)
    if known is None:
        known = os.environ[SLOWNESS] = f"{slowness_now():.2f}"
    return float(known)


def scaled(seconds: float) -> float:
    """Return a limit that is no promise, scaled for this machine."""
    return seconds * max(MARGIN, slowness())


def promised(seconds: float, moments: int = 1) -> float:
    """Return a promised limit, as long as this machine needs for the work of an ordinary one in that time.

    The processes that run beside the tests leave more of the machine at one moment than at the next: the worst of so
    many moments counts.
    """
    return seconds * max(slowness_now() for _ in range(moments))


PROMPT = 2.0  # seconds within which a client that comes back is served
TIMEOUT = scaled(30.0)  # seconds after which a test gives up waiting


@contextlib.contextmanager
def promptly(what: str, seconds: float = PROMPT) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    if took > seconds:  # which may be the fault of the machine
        limit = promised(seconds, moments=5)
        assert took <= limit, f"{what} took {took:.2f} s, more than {limit:.2f} s"


def wait_until(condition: Callable[[], bool], what: str = "the condition holds", seconds: float = 30) -> None:
    """Wait for at most so many seconds of an ordinary machine."""
    seconds = scaled(seconds)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
