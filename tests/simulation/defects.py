"""Plants defects one by one and looks for the first seed that finds each: `python -m tests.simulation.defects`.

`defects.tsv` names the seeds that found them. Each is tried first: while the code of the server does not change, it
finds its defect again, and a search of all seeds takes place only after that has changed.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.planted import PLANTS
from tests.simulation.planted_records import RECORD_PLANTS
from tests.simulation.profiles import MIXED
from tests.simulation.redis_planted import REDIS_PLANTS
from tests.simulation.s3_planted import S3_PLANTS

FOUND = Path(__file__).with_name("defects.tsv")
LIMIT = 2000  # seeds in which each defect has to be found
# An exception that the server does not expect is told without a trace of violations.
VIOLATION = re.compile("VIOLATION|unhandled exception")
DONE = re.compile(r"^(\d+) seeds, ", re.MULTILINE)
TOLD = re.compile(r"VIOLATION: (.*)$", re.MULTILINE)
SEED = re.compile(r"^seed (\d+) fails: (.*)$", re.MULTILINE)

# The profiles whose faults reach a defect; the others are found by those that the seeds draw.
PROFILES: Mapping[str, str] = {
    "sync_retried": "failed syncs",
    "unfinished_sync_of_a_dead_process_trusted": "deaths in syncs",
    "length_of_a_file_believed_after_a_power_cut": "power cuts",
    "stop_without_a_sync_called_clean": "stops",
    "failed_sync_of_the_log_forgotten": "failed syncs",
    "inherited_log_trusted": "failed syncs",
    "completion_not_durable": "power cuts",
    "cut_not_synced": "power cuts",
    "names_not_synced": "power cuts",
    "cancelled_request_releases_the_lock": "cancellations",
    "locker_closed_before_storage": "takeovers",
    "locks_of_other_processes_ignored": "takeovers",
    "records_of_a_backup_believed": "old backups",
    "expired_uploads_stay": "expiry",
    "event_of_a_completion_lost": "events",
    "event_published_before_the_commit": "events",
    "later_events_overtake_failed_ones": "events",
    "event_removed_before_it_was_taken": "events",
    "unanswered_hook_taken_for_consent": "events",
    "expiry_by_a_wrong_clock": MIXED,
    "absence_proves_something": MIXED,
    # S3.
    "part_numbers_reused_after_a_takeover": "takeovers",
    "orphans_removed_without_a_look_at_the_record": "orphans",
    "orphans_removed_without_the_lock": "orphans",
    "living_multipart_upload_taken_for_an_orphan": "orphans",
    "memory_of_an_open_part_not_given_back": "short memory",
    # Several hosts.
    "update_without_fencing_and_comparison": "takeovers",
    "lease_of_another_released": "takeovers",
    "unreleased_holders_not_counted": "takeovers",
    "unreleased_holders_forgotten_by_the_next_one": "takeovers",
    "leases_released_as_clean_at_the_end": "takeovers",
    "file_of_an_unreleased_holder_continued": "takeovers",
    "longer_file_continued": "takeovers",
    "offset_told_on_the_word_of_a_dead_holder": "takeovers",
    "segments_removed_without_the_lock": "full redis",
    "segments_of_records_removed_as_orphans": "full redis",
    "removal_needs_memory": "full redis",
    "lost_index_not_rebuilt": "full redis",
    "expiry_not_noted_when_it_comes_nearer": "full redis",
    "segments_joined_under_one_name": "failovers",
    "completion_record_not_written": "failovers",
    "completion_record_not_read": "failovers",
    "completion_record_written_before_the_change": "failovers",
    "earlier_segments_not_synced": "lost syncs",
    "late_attempt_of_a_creation_brings_a_removed_upload_back": "lost answers",
    "lost_answer_to_a_creation_taken_for_a_failure": "lost answers",
    "lost_answer_to_a_change_taken_for_a_failure": "lost answers",
    "calls_made_after_their_sender_gave_up": "lost answers",
    "scripts_not_sent_again": "failovers",
    "events_stored_after_their_change": "events",
    "lost_index_of_events_not_restored": "events",
}


# Directed scenarios that meet a defect which random runs meet too seldom.
SCENARIOS: Mapping[str, str] = {
    "lists_end_with_their_first_page": "searches_page_through_all_uploads",
    "progress_never_compared_with_the_records": "a_listener_is_told_of_an_end_of_which_no_message_came",
    "declared_length_lost": "a_length_that_was_declared_stays_declared",
}


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect, and where it is looked for: in the seeds of a world, or in a directed scenario."""

    name: str
    world: str
    profile: str
    scenario: str = ""

    def search(self, first: int, seeds: int, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run seeds until one finds the defect, or the time is over; or the scenario, once."""
        if self.scenario:
            return _simulate(["--plant", self.name, "--scenario", self.scenario])
        where = ["--world", self.world, "--profile", self.profile, "--plant", self.name]
        jobs = "1" if seeds == 1 else "2"
        minutes = 0.0 if math.isinf(seconds) else seconds / 60
        what = ["--first", str(first), "--seeds", str(seeds), "--jobs", jobs, "--minutes", str(minutes)]
        return _simulate([*where, *what])


def _simulate(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def all_defects() -> dict[str, Defect]:
    """Return the defects by their names."""
    worlds = {"disk": PLANTS | RECORD_PLANTS, "s3": S3_PLANTS, "redis": REDIS_PLANTS}
    return {
        name: Defect(name, world, PROFILES.get(name, ""), SCENARIOS.get(name, ""))
        for world, plants in worlds.items()
        for name in plants
    }


def known_seeds() -> dict[str, int]:
    """Return the seeds that found defects, by the names of these."""
    if not FOUND.exists():
        return {}
    rows = [line.split("\t") for line in FOUND.read_text(encoding="utf-8").splitlines()]
    return {row[0]: int(row[3]) for row in rows}


class OutOfTime(Exception):
    """A search was given up before all seeds were run."""


def find(defect: Defect, known: int | None, seconds: float) -> tuple[int, str] | None:
    """Return the first seed that finds a defect, and its violation; None if no seed does. Raises `OutOfTime`.

    A scenario counts as the seed 0.
    """
    if defect.scenario:
        told = TOLD.search(defect.search(0, 1, seconds).stdout)
        return None if told is None else (0, told[1])
    ranges = [(0, LIMIT)] if known is None else [(known, 1), (0, LIMIT)]
    for first, count in ranges:
        run = defect.search(first, count, seconds)
        found = SEED.search(run.stdout)
        if run.returncode == 1 and found is not None and VIOLATION.search(run.stdout):
            return int(found[1]), found[2]
        done = DONE.search(run.stdout)
        if done is None:
            raise RuntimeError(run.stderr)
        if int(done[1]) < count:
            raise OutOfTime(f"{done[1]} seeds")
    return None


def note(defect: Defect, seed: int, violation: str) -> None:
    """Note the seed that has found a defect."""
    lines = FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else []
    rows = {line.partition("\t")[0]: line for line in lines}
    where = ("directed", defect.scenario) if defect.scenario else (defect.world, defect.profile or "-")
    rows[defect.name] = "\t".join((defect.name, *where, str(seed), violation[:100]))
    FOUND.write_text("".join(f"{rows[name]}\n" for name in sorted(rows)), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Look for the named defects, or for all; return 1 if one is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.defects")
    parser.add_argument("names", nargs="*", help="defects to look for; all if none is named")
    parser.add_argument("--new", action="store_true", help="look only for those that no known seed has found")
    parser.add_argument("--minutes", type=float, default=0, help="look for no other one after so many minutes")
    parser.add_argument("--each", type=float, default=0, help="give one up after so many minutes")
    options = parser.parse_args(arguments)
    defects, known = all_defects(), known_seeds()
    end = time.monotonic() + options.minutes * 60
    missed = []
    for name in options.names or [name for name in defects if not (options.new and name in known)]:
        left = end - time.monotonic() if options.minutes else 0.0
        if options.minutes and left < 10:
            print("the time is over")
            break
        began = time.monotonic()
        try:
            found = find(defects[name], known.get(name), min(left or math.inf, options.each * 60 or math.inf))
        except OutOfTime as error:
            print(f"{name}: given up after {error}", flush=True)
            missed.append(name)
            continue
        spent = f"in {time.monotonic() - began:.0f} s"
        if found is None:
            missed.append(name)
            print(f"{name}: not found {spent}", flush=True)
        else:
            note(defects[name], *found)
            print(f"{name}: seed {found[0]} {spent}: {found[1][:100]}", flush=True)
    if missed:
        print(f"not found: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
