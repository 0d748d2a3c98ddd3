"""Runs seeds, finds the fewest faults that still make a seed fail, and prints the story of a failure."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import tusd_py.application
import tusd_py.asyncutil.ttl_set
import tusd_py.backends.disk.copying
import tusd_py.backends.disk.files
import tusd_py.backends.disk.reader
import tusd_py.backends.disk.storage
import tusd_py.backends.disk.sync_marks
import tusd_py.backends.local_locks.locker
import tusd_py.backends.redis.feed
import tusd_py.backends.redis.locker
import tusd_py.backends.redis.state
import tusd_py.backends.sqlite.reserve
import tusd_py.backends.sqlite.state
import tusd_py.composition
import tusd_py.core.durability
import tusd_py.http.empty_patches
import tusd_py.transfer.budget
from tests.simulation.oracle import SYNC_DISTANCE
from tests.simulation.patches import Modules
from tests.simulation.world import Outcome
from tests.simulation.worlds import DISK, world_of
from tusd_py.uploads.options import UploadOptions

COLLECT_EVERY = 25  # runs

_modules: Modules | None = None


class _Bugs(logging.Handler):
    """A log handler that collects the bugs that a server reports itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and "unhandled exception" in message:
            self.found.append(f"{message}: {record.exc_info[1]!r}")


_bugs = _Bugs()


def prepare() -> Modules:
    """Put the simulated modules in place, and make sizes and intervals small; once."""
    global _modules
    if _modules is None:
        _modules = Modules()
        _modules.install()
        options = functools.partial(UploadOptions, commit_bytes=4096)
        vars(tusd_py.composition)["UploadOptions"] = options
        tusd_py.core.durability.SYNC_DISTANCE = SYNC_DISTANCE
        tusd_py.transfer.budget.MIN_BATCH_SIZE = 512
        tusd_py.transfer.budget.MAX_BATCH_SIZE = 2048
        tusd_py.backends.disk.copying.SLICE_SIZE = 4096
        tusd_py.backends.disk.files.READ_SIZE = 1024
        tusd_py.backends.disk.reader.DOWNLOAD_PIECE = 4096
        tusd_py.backends.disk.sync_marks.STEP_SIZE = 1024
        tusd_py.backends.local_locks.locker.POLL_INTERVAL = 0.1
        tusd_py.backends.sqlite.reserve.RESERVE_SIZE = 32 << 10
        logger = logging.getLogger("tusd_py")
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.addHandler(_bugs)
        # The attributes of each protocol are gathered for every object that is compared with it (Python 3.11).
        vars(typing)["_get_protocol_attrs"] = functools.cache(vars(typing)["_get_protocol_attrs"])
        sys.unraisablehook = lambda _: None  # of what is thrown away with its world
        gc.collect()
        gc.freeze()
        gc.disable()
    return _modules


def bugs() -> list[str]:
    """Return the bugs that servers have reported themselves since the last call."""
    found, _bugs.found = _bugs.found, []
    return found


def plant_defect(name: str) -> None:
    """Change the server for the worse, for the rest of this process; an empty name changes nothing."""
    if name:
        from tests.simulation.planted import PLANTS
        from tests.simulation.planted_records import RECORD_PLANTS
        from tests.simulation.redis_planted import REDIS_PLANTS
        from tests.simulation.s3_planted import S3_PLANTS

        prepare()
        (PLANTS | RECORD_PLANTS | S3_PLANTS | REDIS_PLANTS)[name]()


def warm_up(kind: str) -> None:
    """Have everything loaded that worlds of this kind use, for this process and its forks."""
    run(0, (), kind)
    gc.collect()
    gc.freeze()


def run(seed: int, without: Sequence[int] = (), kind: str = DISK, profile: str = "") -> Outcome:
    """Run one seed in a world of this kind, with this profile or the one that the seed draws."""
    modules = prepare()
    _bugs.found.clear()
    world = world_of(kind)(seed, modules, without, profile)
    outcome = world.run()
    outcome.violations += bugs()
    return outcome


def run_all(seeds: Iterable[int], kind: str = DISK, profile: str = "") -> Iterator[Outcome]:
    """Run seeds one after the other."""
    for number, seed in enumerate(seeds):
        yield run(seed, (), kind, profile)
        if number % COLLECT_EVERY == COLLECT_EVERY - 1:
            gc.collect()


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A failing run with as few faults as were found to suffice."""

    outcome: Outcome
    without: tuple[int, ...]


def shrink(outcome: Outcome, kind: str = DISK, profile: str = "") -> Shrunk:
    """Leave faults out as long as the run still fails."""
    without: tuple[int, ...] = ()
    for fault in reversed(outcome.faults):
        attempt = run(outcome.seed, (*without, fault.number), kind, profile)
        if attempt.violations:
            outcome, without = attempt, (*without, fault.number)
    gc.collect()
    return Shrunk(outcome, without)


def story(shrunk: Shrunk, kind: str = DISK, profile: str = "") -> str:
    """Return the text that explains a failure."""
    outcome = shrunk.outcome
    without = "".join(f" --without {number}" for number in sorted(shrunk.without))
    drawn = f" --profile '{profile}'" if profile else ""
    lines = [
        f"seed {outcome.seed} fails: {outcome.violations[0]}",
        f"replay: python -m tests.simulation --world {kind} --seed {outcome.seed}{drawn}{without}",
        "",
        *outcome.story,
    ]
    return "\n".join(lines)
