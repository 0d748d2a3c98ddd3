"""Profiles of runs: which faults and habits come together, so that the rare sequences of a kind become common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.simulation.moments import ACKNOWLEDGEMENT, CANCELLATION, CHANGE, CUT, FAILED_SYNC, HANG, REQUEST, START

WELL = "behaves well"
HANGS_UP = "hangs up"
STALLS = "stalls"
IS_CANCELLED = "is cancelled"
IS_CANCELLED_AT_LAST = "is cancelled after the last byte"
HANGS_UP_AT_LAST = "hangs up after the last byte"

MIXED = "mixed"  # the name of a profile that prefers nothing

ROUGH = {WELL: 55, HANGS_UP: 10, STALLS: 10, IS_CANCELLED: 10, IS_CANCELLED_AT_LAST: 10, HANGS_UP_AT_LAST: 5}
MOMENTS = {CHANGE: 8, CUT: 4, ACKNOWLEDGEMENT: 2, FAILED_SYNC: 1, HANG: 1, START: 1}


@dataclass(frozen=True, slots=True)
class Habits:
    """The habits of the clients of a run, as weights or as shares of the occasions."""

    rough: Mapping[str, int] = field(default_factory=lambda: ROUGH)
    concatenates: float = 0.2
    defers: float = 0.2  # of the uploads have no announced length
    rest: float = 0.5  # of the appends have all bytes that are left
    empty: float = 0.04  # of the others have none
    blind: float = 0.15  # of the appends follow the one before without a HEAD
    parallel: float = 0.15  # of the appends come together with another request
    asks_meanwhile: float = 0.5  # of those requests are HEADs
    early_finals: float = 0.5  # are made before their parts, where the settings allow that
    checksum: float = 0.25
    wrong_checksum: float = 0.3  # of those
    removes: float = 0.03
    abandons: float = 0.0  # of the uploads are left unfinished
    chunked: float = 0.15  # of the bodies have no announced length
    trailer: float = 0.3  # of the checksums come after the bytes, where trailers do
    too_long: float = 0.02  # of the appends have more bytes than the upload
    misplaced: float = 0.02  # of the appends begin behind the offset
    nonsense: float = 0.05  # of the appends come after a request that must be refused
    zero: float = 0.03  # of the uploads have no bytes


CAREFUL = Habits(
    empty=0,
    blind=0,
    parallel=0.1,
    asks_meanwhile=0,
    early_finals=0,
    chunked=0,
    trailer=0,
    too_long=0,
    misplaced=0,
    nonsense=0,
    zero=0,
)


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of run; fields that are empty leave the choice to the world."""

    name: str
    weight: int = 1
    kinds: Mapping[str, int] = field(default_factory=dict)
    fewest_faults: int = 0
    most_faults: int = 6
    seconds: Sequence[float] = (0.05, 0.5, 3.0, 12.0, 40.0)  # at most; for each fault one of them
    waits: float = 0.6  # of the faults that may wait for a moment
    moments: Mapping[str, int] = field(default_factory=lambda: MOMENTS)
    habits: Habits = Habits()
    processes: Sequence[int] = ()
    durability: Sequence[str] = ()
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    clients: Sequence[int] = ()
    is_short_of_memory: bool = False
    applications: float | None = None  # of the runs have an application


CANCELLING = Habits(
    rough={WELL: 3, HANGS_UP: 1, STALLS: 1, IS_CANCELLED: 5, IS_CANCELLED_AT_LAST: 5, HANGS_UP_AT_LAST: 1},
    parallel=0.3,
)

EXPIRY = Profile(
    "expiry",
    kinds={"kill": 4, "shutdown": 4, "pause": 3, "stall": 3, "full": 1},
    most_faults=5,
    habits=Habits(abandons=0.3, removes=0.1),
    settings={"expires_after": (50.0,), "retention": (0, 0, 70.0), "gone_for": (0, 10.0)},
)

EVENTS = Profile(
    "events",
    kinds={"kill": 6, "pause": 3, "shutdown": 3, "stall": 1, "hang": 1, "power cut": 1},
    fewest_faults=1,
    most_faults=7,
    habits=Habits(removes=0.1, concatenates=0.3),
    processes=(1, 2, 2),
    applications=1.0,
)

DISK_PROFILES = (
    EXPIRY,
    Profile(
        "old backups",
        kinds={"backup": 10, "kill": 2, "shutdown": 1, "full": 1},
        fewest_faults=1,
        most_faults=4,
        habits=Habits(concatenates=0.3, removes=0.05),
        settings={"expires_after": (50.0,)},
        clients=(2, 3, 4),
    ),
    EVENTS,
    Profile(
        "failed syncs",
        kinds={"sync fails": 5, "record sync fails": 5, "power cut": 5, "kill": 5, "shutdown": 1, "write fails": 1},
        fewest_faults=4,
        most_faults=10,
        moments={FAILED_SYNC: 5, ACKNOWLEDGEMENT: 3, CHANGE: 2},
        waits=0.85,
        habits=Habits(defers=0.4, concatenates=0.4),
        processes=(1, 2),
        durability=("complete", "complete", "always"),
        clients=(3, 4),
    ),
    Profile(
        "deaths in syncs",
        kinds={"sync kills": 6, "power cut": 4, "kill": 1, "sync fails": 1},
        fewest_faults=3,
        most_faults=8,
        moments={ACKNOWLEDGEMENT: 5, CHANGE: 2},
        habits=Habits(rest=0.2, defers=0.0, concatenates=0.1, removes=0.0, checksum=0.1),
        processes=(1, 2),
        durability=("complete",),
        clients=(2, 3),
    ),
    Profile(
        "power cuts",
        kinds={"power cut": 10, "kill": 2, "shutdown": 1, "full": 1, "stall": 1},
        fewest_faults=2,
        most_faults=7,
        moments={CUT: 5, ACKNOWLEDGEMENT: 5, CHANGE: 3, START: 1},
        habits=Habits(rest=0.25, empty=0.25, blind=0.4, parallel=0.25, checksum=0.5, wrong_checksum=0.5),
        durability=("complete", "complete", "always"),
    ),
    Profile(
        "stops",
        kinds={"power off": 8, "shutdown": 1, "kill": 1},
        fewest_faults=2,
        most_faults=6,
        moments={ACKNOWLEDGEMENT: 6, CHANGE: 2},
        waits=0.8,
        seconds=(0.05, 0.5),
        habits=Habits(rest=0.15, concatenates=0.1, removes=0.0, checksum=0.1),
        processes=(1, 1, 2),
        durability=("complete",),
        clients=(2, 3, 4),
    ),
    Profile(
        "cancellations",
        kinds={"hang": 8, "stall": 4, "pause": 1, "kill": 1, "shutdown": 1},
        fewest_faults=2,
        most_faults=8,
        moments={CANCELLATION: 3, HANG: 3, CHANGE: 1},
        habits=CANCELLING,
    ),
    Profile(
        "takeovers",
        kinds={"hang": 6, "shutdown": 6, "pause": 3, "kill": 1, "stall": 1},
        fewest_faults=2,
        most_faults=7,
        moments={HANG: 8, CHANGE: 1},
        seconds=(3.0, 20.0, 40.0),
        waits=0.9,
        habits=Habits(rest=0.3, parallel=0.25),
        processes=(1, 2, 2),
    ),
)


S3_MOMENTS = {REQUEST: 5, CHANGE: 4, ACKNOWLEDGEMENT: 1, START: 1}
SMALL_STEPS = Habits(rest=0.15, blind=0.3, parallel=0.2)

S3_PROFILES = (
    EXPIRY,
    replace(EVENTS, kinds={"kill": 6, "pause": 3, "shutdown": 3, "s3 trouble": 3, "s3 slow": 1}),
    Profile(
        "takeovers",
        kinds={"pause": 6, "kill": 4, "s3 slow": 5, "s3 trouble": 3, "shutdown": 3},
        fewest_faults=3,
        most_faults=8,
        moments=S3_MOMENTS,
        habits=Habits(rest=0.3, parallel=0.3),
        processes=(2,),
    ),
    Profile(
        "full records",
        kinds={"full": 8, "write fails": 5, "kill": 2, "s3 trouble": 2},
        fewest_faults=3,
        most_faults=8,
        moments=S3_MOMENTS,
        habits=SMALL_STEPS,
    ),
    Profile(
        "small steps",
        kinds={"s3 trouble": 8, "kill": 4, "multiparts expire": 1, "clean": 2, "pause": 1},
        fewest_faults=2,
        most_faults=8,
        moments=S3_MOMENTS,
        habits=SMALL_STEPS,
        processes=(1, 2),
    ),
    Profile(
        "short memory",
        kinds={"s3 trouble": 8, "s3 slow": 4, "s3 away": 1, "kill": 2},
        fewest_faults=2,
        most_faults=6,
        moments=S3_MOMENTS,
        clients=(4, 5),
        is_short_of_memory=True,
    ),
    Profile(
        "orphans",
        kinds={"clean": 10, "kill": 4, "s3 trouble": 3, "s3 slow": 3},
        fewest_faults=4,
        most_faults=12,
        moments=S3_MOMENTS,
        habits=Habits(rest=0.4, removes=0.1),
    ),
    Profile(
        "cancellations",
        kinds={"s3 slow": 6, "s3 trouble": 4, "pause": 1, "shutdown": 1},
        fewest_faults=2,
        most_faults=7,
        moments={CANCELLATION: 3, REQUEST: 3},
        habits=CANCELLING,
    ),
)


def draw_profile(rng: Random, profiles: Sequence[Profile], most_faults: int, wanted: str = "") -> Profile:
    """Return one of the profiles, the wanted one if it has a name, or in a third of the runs one that prefers nothing.

    A world without profiles has careful clients.
    """
    if wanted:
        known = (*profiles, Profile(MIXED, most_faults=most_faults))
        return next(profile for profile in known if profile.name == wanted)
    if not profiles:
        return Profile(MIXED, most_faults=most_faults, habits=CAREFUL)
    if rng.random() < 0.33:
        return Profile(MIXED, most_faults=most_faults)
    return rng.choices(profiles, [profile.weight for profile in profiles])[0]
