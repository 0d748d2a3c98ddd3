"""Moments of a run that times seldom hit, such as the next failed sync: faults may wait for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CHANGE = "change"  # of a file, or a sync
CUT = "cut"  # a file was cut off
FAILED_SYNC = "failed sync"
HANG = "hang"  # a step of the storage begins to hang
ACKNOWLEDGEMENT = "acknowledgement"  # a client has read an answer that counts
CANCELLATION = "cancellation"  # of a request, by its web server
REQUEST = "request that S3 has carried out"
START = "start"  # a process serves


@dataclass(eq=False, slots=True)
class _Waiting:
    kind: str
    left: int
    callback: Callable[[], object]


class Moments:
    """The callbacks that wait for moments."""

    def __init__(self) -> None:
        self.reached = 0  # number of callbacks called
        self._waiting: list[_Waiting] = []

    def wait(self, kind: str, count: int, callback: Callable[[], object]) -> None:
        """Call back at the n-th moment of this kind from now on."""
        self._waiting.append(_Waiting(kind, count, callback))

    def note(self, kind: str) -> bool:
        """Note a moment; return whether one that a callback waited for was reached."""
        if not self._waiting:
            return False
        before = self.reached
        for waiting in [waiting for waiting in self._waiting if waiting.kind == kind]:
            waiting.left -= 1
            if waiting.left <= 0:
                self._waiting.remove(waiting)
                self.reached += 1
                waiting.callback()
        return self.reached > before

    def forget(self) -> None:
        """Drop all callbacks."""
        self._waiting.clear()
