"""Settings of Python's garbage collector, for a server whose requests leave no cycles of references behind."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 5000  # new objects before the young ones are searched; Python's 700 are those of some ten requests


def tune_garbage_collection() -> None:
    """Search for cycles of references less often, and no longer among the objects of the start.

    A request makes no cycles, so that a search finds next to nothing: with Python's thresholds it took 5 % of the CPU
    time of a small upload. Call it when the server has started.
    """
    gc.collect()
    gc.freeze()
    _, middle, old = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, middle, old)
