"""Uploads in S3 that are terminated or expire: nothing of them is left in the bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, serving
from tests.support.timing import promptly, wait_until
from tests.support.wire.messages import payload
from tests.support.wire.requests import create, head, patch, request, start_patch


@pytest.mark.parametrize(
    ("sent", "restarted"),
    [(0, False), (1000, False), (PART, False), (2 * PART + 1000, False), (3 * PART, False), (2 * PART + 1000, True)],
)
def test_nothing_is_left_of_a_terminated_upload(
    server: ServerProcess, place: Place, sent: int, restarted: bool
) -> None:
    data = payload(3 * PART)
    path = create(server.port, len(data))
    offset = 0
    for end in (sent // 3, sent // 2, sent):
        if end > offset:
            assert patch(server.port, path, offset, data[offset:end]).offset == end
            offset = end
    if sent:
        assert place.traces_of(path)
    if restarted:
        server.restart()
    assert request(server.port, "DELETE", path).status == 204
    assert place.traces_of(path) == []
    assert head(server.port, path).status == 404
    assert request(server.port, "DELETE", path).status == 404
    assert patch(server.port, path, sent, data[sent:]).status == 404
    assert request(server.port, "GET", path).status == 404


def test_nothing_is_left_of_an_upload_that_is_terminated_under_way(server: ServerProcess, place: Place) -> None:
    data = payload(4 * PART)
    path = create(server.port, len(data))
    with start_patch(server.port, path, 0, len(data)) as connection:
        connection.send(data[: 3 * PART + 1000])
        with promptly("DELETE", 5):  # it waits for what is on its way to S3
            assert request(server.port, "DELETE", path).status == 204
        answer = connection.answer_or_closed()
        assert answer is None or answer.status in (404, 423)
    assert head(server.port, path).status == 404
    wait_until(lambda: not place.traces_of(path), "everything is removed", 5)


def test_nothing_is_left_of_an_expired_upload(tmp_path: Path) -> None:
    data = payload(2 * PART)
    place = Place(s3_server())
    with serving(tmp_path, place, expires_after="1.5s", sweep_interval="0.2s") as server:
        finished = create(server.port, 1000, body=data[:1000])
        paths = [create(server.port, len(data), body=data[:size]) for size in (0, 1000, PART, PART + 1000)]
        wait_until(lambda: all(head(server.port, path).status == 404 for path in paths), "they expire")
        wait_until(lambda: place.keys == [place.key_of(finished)], "everything is removed")
        wait_until(lambda: not place.multiparts, "every multipart upload is aborted")
        for path in paths:
            assert patch(server.port, path, 0, data).status == 404
        place.assert_object(finished, data[:1000])
