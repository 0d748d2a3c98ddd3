"""Syncs that fail: what was not synced before does not count, whoever syncs again, and the operator is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.preload import PreloadedFaults
from tests.support.clamd import Clamd
from tests.support.harness import ServerProcess
from tests.support.hosts import wait_for_first_sweep
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.messages import KIBI, MEBI, path_of, payload
from tests.support.wire.requests import assert_content, complete, create, head, offset_of, patch, request, start_patch

SYNC = "fsync,fdatasync"
DATA = payload(3 * MEBI + 4321)
MIDDLE = MEBI + 123


@dataclass
class Place:
    """The place of a server whose syncs can be made to fail."""

    uploads: Path
    faults: PreloadedFaults
    options: dict[str, object]

    @property
    def is_shared(self) -> bool:
        return "redis_url" in self.options

    def server(self, **options: object) -> ServerProcess:
        return ServerProcess(self.uploads, env=self.faults.env, **(self.options | options))  # type: ignore[arg-type]


@pytest.fixture(params=["disk", "disk by date", "shared disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path, preload_library: Path) -> Place:
    options: dict[str, object] = {"date_folders": True} if request.param == "disk by date" else {}
    if request.param == "shared disk":
        options = {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:", "lock_ttl": "2s"}
    return Place(tmp_path / "uploads", PreloadedFaults(tmp_path / "faults", preload_library), options)


def segment_path(server: ServerProcess, path: str) -> Path:
    (file,) = server.upload_dir.rglob(path.rpartition("/")[2])
    return file


def pattern(server: ServerProcess, path: str) -> str:
    return f"*/{path.rpartition('/')[2]}*"


def die_in_the_last_patch(
    place: Place, server: ServerProcess, path: str, calls: str, files: str, *, after: bool = False
) -> None:
    """Have the server die in such a call of the PATCH that brings the bytes from `MIDDLE` on, and start it again."""
    killed = place.faults.kill(calls, files, after=after)
    with pytest.raises(ConnectionError):
        patch(server.port, path, MIDDLE, DATA[MIDDLE:])
    assert killed.hits
    place.faults.clear()
    server.restart()


def after_a_failed_sync(place: Place, server: ServerProcess, path: str) -> tuple[str, str]:
    """Return the calls, and the files, by which lost bytes cease to count: a cut, or on a shared directory a mark."""
    if place.is_shared:
        return "pwrite", f"*/.{path.rpartition('/')[2]}*.sync"
    return "unlink,ftruncate", pattern(server, path)


def assert_told(server: ServerProcess, failures: int = 1) -> None:
    """Assert that each failure has one line in the log, and that the load balancer gets an answer."""

    def told() -> list[str]:
        return [line for line in server.log if "sync of" in line and "failed" in line]

    wait_until(lambda: len(told()) >= failures, "it is told")
    lines = told()
    assert len(lines) == failures, server.log
    assert all("ERROR" in line.upper() for line in lines)
    answer = request(server.port, "GET", "/readyz")
    assert answer.status == 503
    assert b"sync" in answer.body
    assert b"\n" not in answer.body.strip()


def true_offset(server: ServerProcess, path: str) -> int:
    """Repeat HEAD until it is answered; return its offset."""
    for _ in range(3):
        answer = head(server.port, path)
        assert answer.status in {200, 423}, answer
        if answer.status == 200:
            return answer.offset
    raise AssertionError("HEAD never answers")


def test_a_failed_sync_at_the_end_of_an_upload_takes_the_offset_back_to_the_last_good_one(place: Place) -> None:
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        place.faults.fail(SYNC, pattern(server, path), times=1)
        answer = patch(server.port, path, MIDDLE, DATA[MIDDLE:])
        assert (answer.status, answer.offset) == (409, 0)
        assert true_offset(server, path) == 0
        assert request(server.port, "GET", path).status == 404
        assert_told(server)
        place.faults.clear()
        server.restart()
        assert true_offset(server, path) == 0
        complete(server.port, path, DATA)
        assert request(server.port, "GET", "/readyz").status == 200  # restarted


def test_a_completion_whose_bytes_are_synced_goes_on_after_a_failed_sync(place: Place) -> None:
    """The bytes were synced before the scanner was asked, which was away: the next attempt syncs once more."""
    with Clamd() as clamd, place.server(clamd=clamd.address, scan_fail="closed", sweep_interval="1h") as server:
        clamd.answer = "no answer that clamd gives"
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA).status == 503
        clamd.answer = None
        failed = place.faults.fail(SYNC, pattern(server, path), times=1)
        status = head(server.port, path).status
        # On a shared directory nothing is synced that was synced before.
        assert (status, bool(failed.hits)) == ((200, False) if place.is_shared else (423, True))
        assert true_offset(server, path) == len(DATA)
        assert_content(server.port, path, DATA)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_failed_sync_keeps_what_an_earlier_one_proved(place: Place, deferred: bool) -> None:
    durability = "complete" if deferred else "always"
    with place.server(durability=durability) as server:
        path = create(server.port, None if deferred else len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        place.faults.fail(SYNC, pattern(server, path), times=1)
        end = MIDDLE + 100 * KIBI
        answer = patch(server.port, path, MIDDLE, DATA[MIDDLE:end])
        assert (answer.status, answer.offset) == (409, MIDDLE)
        assert true_offset(server, path) == MIDDLE
        if not place.is_shared:  # where nothing is cut off
            assert segment_path(server, path).stat().st_size == MIDDLE
        assert_told(server)
        complete(server.port, path, DATA, {"Upload-Length": str(len(DATA))} if deferred else {})
        assert_content(server.port, path, DATA)


def test_bytes_from_before_syncs_were_wanted_do_not_count_as_synced(place: Place) -> None:
    with place.server(durability="never") as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
    with place.server(durability="always") as server:
        place.faults.fail(SYNC, pattern(server, path), times=1)
        answer = patch(server.port, path, MIDDLE, DATA[MIDDLE : 2 * MIDDLE])
        assert (answer.status, answer.offset) == (409, 0)
        complete(server.port, path, DATA)


def test_a_process_that_dies_right_after_a_failed_sync_leaves_nothing_to_believe(place: Place) -> None:
    """The next process syncs without an error: the kernel has told of the lost pages already."""
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        place.faults.fail(SYNC, pattern(server, path), times=1)
        die_in_the_last_patch(place, server, path, *after_a_failed_sync(place, server, path), after=True)
        wait_until(lambda: true_offset(server, path) == 0, "the offset goes back")  # once the lease has run out
        complete(server.port, path, DATA)


def test_bytes_of_a_process_that_died_between_a_failed_sync_and_the_cut_are_stored_again(place: Place) -> None:
    """The pages can be read and are clean: a sync alone would succeed and write nothing."""
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        place.faults.fail(SYNC, pattern(server, path), times=1)
        die_in_the_last_patch(place, server, path, *after_a_failed_sync(place, server, path))
        again = place.faults.slow("pwrite,write", pattern(server, path), 0)
        offset = true_offset(server, path)
        assert offset >= MIDDLE
        complete(server.port, path, DATA)
        assert again.hits
        assert_content(server.port, path, DATA)
        assert not list(server.upload_dir.rglob(".*.sync"))


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_bytes_that_cannot_be_stored_again_after_a_death_during_a_sync_do_not_count(place: Place, call: str) -> None:
    if place.is_shared:
        pytest.skip("bytes of other hosts are copied")
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        die_in_the_last_patch(place, server, path, SYNC, pattern(server, path))
        offset = true_offset(server, path)
        # The first one is that of the cut of bytes that no record counts.
        failing = place.faults.fail(call, pattern(server, path), skip=int(call == "fdatasync"), times=1)
        answer = patch(server.port, path, offset, DATA[offset:])
        assert failing.hits
        if call == "fdatasync":
            assert (answer.status, answer.offset) == (409, 0)
            complete(server.port, path, DATA)
        else:  # a write that fails takes nothing back, and the next request stores the bytes again
            assert answer.status == 500
            assert true_offset(server, path) == len(DATA)
        assert_content(server.port, path, DATA)
        assert not list(server.upload_dir.rglob(".*.sync"))


def test_a_process_that_dies_before_the_sync_has_the_next_one_sync(place: Place) -> None:
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        die_in_the_last_patch(place, server, path, SYNC, pattern(server, path))
        offset = true_offset(server, path)
        assert offset >= MIDDLE
        place.faults.fail(SYNC, pattern(server, path), times=1)
        answer = patch(server.port, path, offset, DATA[offset:])
        # On a shared directory these bytes are in a file of their own, and only they are in doubt.
        assert (answer.status, answer.offset) == (409, offset if place.is_shared else 0)
        complete(server.port, path, DATA)


@pytest.mark.parametrize("call", ["unlink,ftruncate", "unlink,ftruncate,open"])
def test_a_file_that_cannot_be_cut_off_after_a_failed_sync_is_not_believed(place: Place, call: str) -> None:
    with place.server() as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:MIDDLE]).status == 204
        place.faults.fail(SYNC, pattern(server, path), times=1)
        # The writer opens the file once before it syncs.
        stuck = [place.faults.fail(one, pattern(server, path), skip=one == "open") for one in call.split(",")]
        answer = patch(server.port, path, MIDDLE, DATA[MIDDLE:])
        assert answer.status in {409, 500}, answer
        if "open" not in call:  # else nobody can look, and the client may be told to come back
            assert true_offset(server, path) == 0
        for fault in stuck:
            fault.lift()
        assert true_offset(server, path) == 0
        complete(server.port, path, DATA)


def test_a_failed_sync_of_a_directory_is_a_failure_too(place: Place) -> None:
    with place.server() as server:
        path = create(server.port, len(DATA))
        place.faults.fail("fsync", "*/uploads", times=1)
        answer = patch(server.port, path, 0, DATA)
        assert (answer.status, answer.offset) == (409, 0)
        assert_told(server)
        complete(server.port, path, DATA)


def test_a_concatenation_whose_sync_fails_is_made_anew(place: Place) -> None:
    part = DATA[:MIDDLE]
    with place.server() as server:
        partials = [create(server.port, len(part), {"Upload-Concat": "partial"}, part) for _ in range(2)]
        place.faults.fail(SYNC, "*/uploads/*", times=1)
        headers = {"Upload-Concat": "final;" + " ".join(partials)}
        assert request(server.port, "POST", "/files", headers).status == 500
        assert_told(server)
        answer = request(server.port, "POST", "/files", headers)
        assert answer.status == 201, answer
        assert_content(server.port, path_of(answer), part * 2)


def test_a_sync_that_fails_in_a_completion_of_synced_bytes_delays_it(place: Place) -> None:
    """The bytes of a recording are synced before they are acknowledged: none is lost, and HEAD completes it."""
    with place.server() as server:
        path = create(server.port, None)
        assert patch(server.port, path, 0, DATA).status == 204
        fault = place.faults.fail(SYNC, pattern(server, path), times=1)
        answer = patch(server.port, path, len(DATA), b"", {"Upload-Length": str(len(DATA))})
        # On a shared directory nothing is synced that was synced before.
        assert (answer.status, bool(fault.hits)) == ((204, False) if place.is_shared else (503, True)), answer
        assert true_offset(server, path) == len(DATA)  # a recording: the client has nothing to send again
        assert_content(server.port, path, DATA)


def test_offsets_are_still_true_where_syncs_go_on_failing(place: Place) -> None:
    with place.server() as server:
        path = create(server.port, len(DATA))
        fault = place.faults.fail(SYNC, pattern(server, path))
        for _ in range(3):
            answer = patch(server.port, path, 0, DATA)
            assert (answer.status, answer.offset) == (409, 0)
            assert true_offset(server, path) == 0
        assert_told(server, failures=3)
        fault.lift()
        complete(server.port, path, DATA)
        assert offset_of(server.port, path) == len(DATA)
        assert os.listdir(server.upload_dir)


# Records.

RECORDS = "*/uploads.sqlite3*"


@pytest.fixture
def faults(tmp_path: Path, preload_library: Path) -> PreloadedFaults:
    return PreloadedFaults(tmp_path / "faults", preload_library)


def records_without_the_log(uploads: Path) -> dict[str, str]:
    """Return id and status of the records in the file itself, without the log that a power cut may lose."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "records")
        shutil.copyfile(uploads / ".tusd-py" / "uploads.sqlite3", copy)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            return dict(connection.execute("SELECT id, status FROM uploads"))


def test_after_a_failed_sync_of_the_records_none_is_only_in_the_log(tmp_path: Path, faults: PreloadedFaults) -> None:
    with ServerProcess(tmp_path / "uploads", env=faults.env) as server:
        earlier = create(server.port, 100)
        path = create(server.port, len(DATA))
        wait_for_first_sweep(server)  # the time of which is written with a sync
        fault = faults.fail(SYNC, RECORDS, times=1)
        answer = patch(server.port, path, 0, DATA)
        assert answer.status == 503, answer
        assert fault.hits
        assert request(server.port, "GET", "/readyz").status == 503
        assert len([line for line in server.log if "records could not be written" in line]) == 1
        assert true_offset(server, path) in {0, len(DATA)}
        complete(server.port, path, DATA)
        found = records_without_the_log(server.upload_dir)
        assert {each.rpartition("/")[2] for each in (earlier, path)} <= found.keys()


def test_records_that_a_dead_process_had_not_synced_are_synced_before_they_are_read(
    tmp_path: Path, faults: PreloadedFaults
) -> None:
    """The log has a completion that is not safe yet; a HEAD that tells of it must not be taken back by a power cut."""
    with ServerProcess(tmp_path / "uploads", env=faults.env, sweep_interval="0") as server:
        path = create(server.port, len(DATA))
        faults.kill(SYNC, RECORDS)
        with pytest.raises(ConnectionError):
            patch(server.port, path, 0, DATA)
        faults.clear()
        synced = faults.slow(SYNC, RECORDS, 0)
        server.restart()
        assert true_offset(server, path) == len(DATA)
        assert [file for file in synced.hits if file.endswith("-wal")]


def test_while_syncs_of_the_records_fail_nothing_is_complete_and_everything_goes_on_afterwards(
    tmp_path: Path, faults: PreloadedFaults
) -> None:
    with ServerProcess(tmp_path / "uploads", env=faults.env) as server:
        path = create(server.port, len(DATA))
        fault = faults.fail(SYNC, RECORDS)
        for _ in range(3):
            assert patch(server.port, path, 0, DATA).status in {409, 503}
            assert request(server.port, "GET", path).status == 404
            assert head(server.port, path).status in {200, 423}
        assert request(server.port, "GET", "/readyz").status == 503
        fault.lift()
        wait_until(lambda: head(server.port, path).status == 200, "the offset is known")
        complete(server.port, path, DATA)
        server.restart()
        assert_content(server.port, path, DATA)


@pytest.mark.parametrize("pieces", [1, 2])  # the fast path, and the one of bodies that are still coming
def test_bytes_are_not_cut_off_while_the_log_may_bring_back_the_record_that_has_them(
    tmp_path: Path, faults: PreloadedFaults, pieces: int
) -> None:
    """A commit whose sync fails is in the log of SQLite, and counts for the next process unless another one follows."""
    with ServerProcess(tmp_path / "uploads", env=faults.env) as server:
        complete(server.port, create(server.port, 1), b"x")  # from now on a failed sync is one of a commit
        path = create(server.port, len(DATA))
        faults.fail(SYNC, RECORDS)
        assert patch(server.port, path, 0, DATA).status == 503
        with start_patch(server.port, path, 0, 1000) as connection:
            for _ in range(pieces):
                connection.send(b"x" * (1000 // pieces))
                connection.wait_until_read()
            assert connection.answer().status == 503
        server.kill()
        faults.clear()
        server.restart()
        if true_offset(server, path) == len(DATA):
            assert_content(server.port, path, DATA)
