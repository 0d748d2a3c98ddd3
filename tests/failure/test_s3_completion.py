"""Completions and concatenations in S3 that fail or are cut off, and are made good later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.s3_rig import DATA, Rig, again, always, called, finish, no_fault, times
from tests.support.s3_server import Fault, FaultyProxy, HeldRequests, s3_server
from tests.support.s3_uploads import PART, Place, serving
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.messages import MEBI, path_of, payload
from tests.support.wire.requests import assert_content, create, head, patch, request, start_patch


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["made", "not made"])
@pytest.mark.parametrize("asked", ["HEAD", "PATCH"])
def test_a_crash_between_the_last_part_and_the_object(rig: Rig, fate: Fault, asked: str) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = holding = HeldRequests(called("CompleteMultipartUpload"), fate)
    with start_patch(rig.port, path, 0, len(DATA)) as connection:
        connection.send(DATA)
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    assert request(rig.port, "GET", path).status in (200, 404)
    if asked == "HEAD":
        assert again(lambda: head(rig.port, path)).offset == len(DATA)
    else:
        answer = again(lambda: patch(rig.port, path, len(DATA), b""))
        assert (answer.status, answer.offset) == (204, len(DATA)), answer
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["made", "not made"])
def test_a_crash_before_the_object_of_a_small_upload(rig: Rig, fate: Fault) -> None:
    path = create(rig.port, 10_000, body=DATA[:4000])
    rig.proxy.faults = holding = HeldRequests(called("PutObject"), fate)
    with start_patch(rig.port, path, 4000, 6000) as connection:
        connection.send(DATA[4000:10_000])
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    finish(rig, path, DATA[:10_000], acknowledged=4000)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_an_object_that_is_made_while_the_answer_is_lost(rig: Rig, count: int) -> None:
    """The next tries find no multipart upload any more: that is success, if the object is the one."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = times(count, Fault.LOST, "CompleteMultipartUpload")
    answer = patch(rig.port, path, 0, DATA)
    assert answer.status in (204, 500, 503), answer
    rig.proxy.faults = no_fault
    if answer.status != 204:
        assert again(lambda: head(rig.port, path)).offset == len(DATA)
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_object_that_cannot_be_made_yet(rig: Rig, restarted: bool) -> None:
    """Every byte is there and acknowledged by nobody; the upload is not complete before the object is."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
    answer = patch(rig.port, path, 0, DATA)
    assert answer.status in (500, 503), answer
    assert head(rig.port, path).status == 423
    assert request(rig.port, "GET", path).status == 404
    answer = patch(rig.port, path, len(DATA), b"")
    assert answer.status in (423, 500, 503), answer
    if restarted:
        rig.server.restart()
        assert head(rig.port, path).status == 423
    rig.proxy.faults = no_fault
    assert again(lambda: head(rig.port, path)).offset == len(DATA)
    rig.place.assert_alone(path, DATA)
    assert_content(rig.port, path, DATA)


def test_the_sweeper_makes_an_object_although_no_client_comes_back(tmp_path: Path) -> None:
    place = Place(s3_server())
    with (
        FaultyProxy(place.server) as proxy,
        serving(tmp_path, place, proxy.server.endpoint, sweep_interval="0.2s") as server,
    ):
        proxy.faults = always(Fault.ERROR, "CompleteMultipartUpload")
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA).status in (500, 503)
        proxy.faults = no_fault
        wait_until(lambda: request(server.port, "GET", path, {"Range": "bytes=0-0"}).status == 206, "it is made")
        place.assert_alone(path, DATA)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_concatenation_that_fails_or_is_killed(rig: Rig, operation: str) -> None:
    parts = [payload(PART + 1, 2), payload(100, 3), payload(6 * MEBI, 4)]
    paths = [create(rig.port, len(data), {"Upload-Concat": "partial"}, data) for data in parts]
    headers = {"Upload-Concat": "final;" + " ".join(paths)}
    rig.proxy.faults = always(Fault.ERROR, operation)
    assert request(rig.port, "POST", "/files", headers).status in (500, 503)
    rig.proxy.faults = holding = HeldRequests(called(operation), Fault.REFUSE)
    with ThreadPoolExecutor(1) as executor:

        def ask() -> None:
            with suppress(OSError):
                request(rig.port, "POST", "/files", headers)

        asking = executor.submit(ask)
        holding.wait()
        rig.server.kill()
        asking.result(TIMEOUT)
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    answer = again(lambda: request(rig.port, "POST", "/files", headers))
    assert answer.status == 201, answer
    rig.place.assert_object(path_of(answer), b"".join(parts))
    assert_content(rig.port, path_of(answer), b"".join(parts))
