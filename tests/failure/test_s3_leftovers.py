"""Objects and multipart uploads that others have removed, or that crashes have left in the bucket."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_rig import DATA, GIVE_UP, Rig, always, called, finish, no_fault
from tests.support.s3_server import Fault, FaultyProxy, HeldRequests, s3_server
from tests.support.s3_uploads import PART, Place, clean, id_of, serving
from tests.support.timing import wait_until
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch


def test_the_sweeper_removes_what_a_termination_could_not(tmp_path: Path) -> None:
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s") as server,
    ):
        paths = [create(server.port, len(DATA), body=DATA[:size]) for size in (1000, PART, 2 * PART + 1000)]
        paths.append(create(server.port, 1000, body=DATA[:1000]))
        proxy.faults = always(Fault.ERROR, "DeleteObject", "DeleteObjects", "AbortMultipartUpload")
        for path in paths:
            assert request(server.port, "DELETE", path).status in (204, 500, 503)
            assert head(server.port, path).status == 404
            assert request(server.port, "GET", path).status == 404
        proxy.faults = no_fault
        wait_until(lambda: not place.keys and not place.multiparts, "everything is removed")


@pytest.mark.parametrize("sent", [2 * PART + 1000, len(DATA)], ids=["unfinished", "all bytes sent"])
def test_the_sweeper_removes_an_expired_upload_whose_multipart_upload_vanished(tmp_path: Path, sent: int) -> None:
    """A lifecycle rule of the bucket aborts multipart uploads, too."""
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s", expires_after="5s") as server,
    ):
        proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
        path = create(server.port, len(DATA))
        patch(server.port, path, 0, DATA[:sent])
        assert place.abort_multiparts(path) == 1
        proxy.faults = no_fault
        wait_until(lambda: not records_of(server), "its record is removed")
        assert place.traces_of(path) == []


def records_of(server: ServerProcess) -> list[str]:
    """Return the ids of all uploads that the server has a record of."""
    with closing(sqlite3.connect(server.upload_dir / ".tusd-py" / "uploads.sqlite3")) as connection:
        return [str(row[0]) for row in connection.execute("SELECT id FROM uploads")]


@pytest.mark.parametrize(("sent", "restarted"), [(2 * PART, False), (2 * PART + 1000, True)])
@pytest.mark.parametrize("size", [0, 1000, PART + 1000, len(DATA)], ids=["empty", "small", "large", "the rest"])
def test_a_multipart_upload_that_was_aborted(rig: Rig, restarted: bool, sent: int, size: int) -> None:
    """The bytes of the upload are lost: no answer may look as if they were there.

    But a process that wrote to it seconds ago does not look for it again only to take a tail.
    """
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:sent]).offset == sent
    assert rig.place.abort_multiparts(path) == 1
    if restarted:
        rig.server.restart()
    answer = patch(rig.port, path, sent, DATA[sent : sent + size])
    assert answer.status in ((404,) if restarted or size > PART else (204, 404)), answer
    answer = head(rig.port, path)
    assert answer.status == 404, answer
    assert "upload-offset" not in answer.headers
    assert request(rig.port, "GET", path).status == 404
    assert rig.place.key_of(path) not in rig.place.keys


def test_a_multipart_upload_that_is_aborted_before_the_object_is_made(rig: Rig) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = holding = HeldRequests(called("CompleteMultipartUpload"))
    with start_patch(rig.port, path, 0, len(DATA)) as connection:
        connection.send(DATA)
        holding.wait()
        assert rig.place.abort_multiparts(path) == 1
        holding.release()
        answer = connection.answer(GIVE_UP)
    assert answer.status in (404, 409), answer
    assert head(rig.port, path).status == 404
    assert request(rig.port, "GET", path).status == 404


def test_tails_that_somebody_removed(rig: Rig) -> None:
    """HEAD goes back to what is there: the client sends the rest again."""
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:1000]).offset == 1000
    rig.server.restart()  # it has nothing in memory
    rig.place.remove([key for key in rig.place.traces_of(path) if "tails" in key])
    assert offset_of(rig.port, path) == 0
    finish(rig, path, DATA)


def test_the_janitor_removes_what_crashes_left_and_nothing_else(tmp_path: Path) -> None:
    place = Place(s3_server())
    records = tmp_path / "records"
    with FaultyProxy(place.server) as proxy:
        with serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0") as server:
            finished = create(server.port, len(DATA), body=DATA)
            small = create(server.port, len(DATA), body=DATA[:1000])
            large = create(server.port, len(DATA), body=DATA[: 2 * PART + 1000])
            killed = create(server.port, len(DATA))
            proxy.faults = holding = HeldRequests(called("UploadPart"))
            with start_patch(server.port, killed, 0, len(DATA)) as connection:
                connection.send(DATA[:PART])
                holding.wait()
                server.kill()  # the record does not know of the multipart upload
            holding.release()
            proxy.faults = no_fault
            server.origin = server.url = ""
            server.start()
            proxy.faults = always(Fault.LOST, "PutObject")
            assert patch(server.port, small, 1000, DATA[1000:2000]).status in (500, 503)
            server.kill()  # nor of this tail
            proxy.faults = no_fault
            assert len(place.traces_of(small)) == 2
        kept = {upload: place.traces_of(upload) for upload in (finished, large)}
        dry = asyncio.run(clean(records, place, dry_run=True))
        assert sorted(one.upload_id for one in dry) == sorted([id_of(killed), id_of(small)])
        assert place.traces_of(killed)
        assert asyncio.run(clean(records, place)) == dry
        assert asyncio.run(clean(records, place)) == []
        assert place.traces_of(killed) == []
        assert len(place.traces_of(small)) == 1
        assert {upload: place.traces_of(upload) for upload in kept} == kept
        with serving(tmp_path, place) as server:
            for path, offset in ((small, 1000), (large, 2 * PART + 1000), (killed, 0)):
                assert offset_of(server.port, path) == offset
                assert patch(server.port, path, offset, DATA[offset:]).offset == len(DATA)
                place.assert_alone(path, DATA)
            assert_content(server.port, finished, DATA)
        assert asyncio.run(clean(records, place)) == []


def test_the_orphan_cleanup_beside_a_running_patch_leaves_it_alone(tmp_path: Path) -> None:
    """Of any age: its multipart upload is not in the record yet."""
    place = Place(s3_server())
    with FaultyProxy(place.server) as proxy, serving(tmp_path, place, proxy.server.endpoint) as server:
        path = create(server.port, len(DATA))
        proxy.faults = holding = HeldRequests(called("UploadPart"))
        with start_patch(server.port, path, 0, len(DATA)) as connection:
            connection.send(DATA[: PART + 1000])
            holding.wait()
            assert place.multiparts
            assert asyncio.run(clean(tmp_path / "records", place)) == []
            holding.release()
            proxy.faults = no_fault
            connection.send(DATA[PART + 1000 :])
            assert connection.answer(GIVE_UP).offset == len(DATA)
        place.assert_alone(path, DATA)
