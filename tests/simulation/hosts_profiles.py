"""Profiles of runs with several hosts and Redis."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.moments import ACKNOWLEDGEMENT, CANCELLATION, CHANGE, HANG, REQUEST, START
from tests.simulation.profiles import CANCELLING, CAREFUL, EVENTS, EXPIRY, Habits, Profile

STEPS = Habits(rest=0.25, parallel=0.25, blind=0.3)
MOMENTS = {CHANGE: 8, ACKNOWLEDGEMENT: 4, HANG: 1, START: 1}

HOSTS_PROFILES = (
    Profile("careful", weight=3, most_faults=8, habits=CAREFUL),
    replace(
        EXPIRY,
        kinds={
            "kill": 4,
            "shutdown": 3,
            "pause": 3,
            "partition": 3,
            "redis trouble": 3,
            "redis full": 1,
            "redis away": 1,
        },
    ),
    replace(
        EVENTS,
        kinds={
            "kill": 5,
            "pause": 3,
            "shutdown": 3,
            "redis trouble": 3,
            "redis away": 1,
            "partition": 2,
            "redis failover": 1,
            "redis loses indexes": 1,
            "redis full": 1,
        },
        processes=(2, 2, 3),
    ),
    Profile(
        "takeovers",
        kinds={"pause": 6, "hang": 5, "kill": 4, "partition": 4, "shutdown": 3, "redis evicts": 2, "redis stall": 2},
        fewest_faults=2,
        most_faults=8,
        moments=MOMENTS,
        seconds=(3.0, 12.0, 40.0),
        habits=STEPS,
        processes=(2, 3),
    ),
    Profile(
        "failovers",
        kinds={"redis failover": 6, "redis restart": 4, "kill": 3, "pause": 2, "redis trouble": 2, "redis clock": 1},
        fewest_faults=2,
        most_faults=7,
        moments=MOMENTS,
        habits=Habits(rest=0.3, concatenates=0.35, removes=0.08),
        processes=(2, 3),
    ),
    Profile(
        "lost answers",
        kinds={"redis trouble": 10, "redis silent": 2, "redis stall": 2, "kill": 2, "redis clock": 1},
        fewest_faults=2,
        most_faults=7,
        habits=replace(STEPS, removes=0.08),
    ),
    Profile(
        "cancellations",
        kinds={"hang": 8, "redis trouble": 4, "redis stall": 3, "pause": 2, "shutdown": 1},
        fewest_faults=2,
        most_faults=8,
        moments={CANCELLATION: 3, HANG: 3, CHANGE: 1},
        habits=CANCELLING,
    ),
    Profile(
        "lost syncs",
        kinds={"power cut": 6, "sync fails": 4, "kill": 4, "pause": 2, "redis evicts": 2, "write fails": 1},
        fewest_faults=2,
        most_faults=8,
        moments=MOMENTS,
        habits=STEPS,
        durability=("complete", "complete", "always"),
        processes=(2, 3),
    ),
    Profile(
        "full redis",
        kinds={"redis full": 8, "full": 2, "kill": 2, "redis evicts": 2, "redis loses indexes": 3, "clean": 3},
        fewest_faults=3,
        most_faults=8,
        habits=Habits(removes=0.2, concatenates=0.3, abandons=0.1),
        settings={"expires_after": (50.0,)},
    ),
)

S3_HOSTS_PROFILES = (
    replace(
        EXPIRY,
        kinds={"kill": 4, "shutdown": 3, "pause": 3, "partition": 3, "redis trouble": 3, "s3 trouble": 3},
    ),
    replace(
        EVENTS,
        kinds={"kill": 6, "pause": 3, "shutdown": 3, "s3 trouble": 3, "redis trouble": 3, "partition": 2},
        processes=(2, 2, 3),
    ),
    Profile(
        "takeovers",
        kinds={"pause": 6, "partition": 5, "kill": 4, "s3 slow": 5, "s3 trouble": 3, "shutdown": 3, "redis evicts": 2},
        fewest_faults=3,
        most_faults=8,
        moments={REQUEST: 6, ACKNOWLEDGEMENT: 2, START: 1},
        habits=Habits(rest=0.3, parallel=0.3),
        processes=(2, 3),
    ),
    Profile(
        "failovers",
        kinds={"redis failover": 6, "redis restart": 4, "kill": 3, "s3 trouble": 3, "s3 slow": 2, "clean": 1},
        fewest_faults=2,
        most_faults=7,
        moments={REQUEST: 6, ACKNOWLEDGEMENT: 3},
        habits=Habits(rest=0.3, concatenates=0.3),
        processes=(2, 3),
    ),
    Profile(
        "small steps",
        kinds={"s3 trouble": 8, "redis trouble": 5, "kill": 4, "multiparts expire": 1, "clean": 2, "pause": 1},
        fewest_faults=2,
        most_faults=8,
        moments={REQUEST: 6, ACKNOWLEDGEMENT: 3},
        habits=Habits(rest=0.15, blind=0.3, parallel=0.2),
    ),
)
