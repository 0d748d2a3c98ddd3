"""Hooks about uploads to S3: their objects are finished before `pre-finish` is asked, and stay or go by its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.hook_endpoint import NO_OPINION, HookEndpoint, Reply, told
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import PART, Place, serving
from tests.support.timing import wait_until
from tests.support.wire.messages import payload
from tests.support.wire.requests import assert_content, create, head, patch, request

SIZES = [100, PART, 2 * PART + 100]


@pytest.mark.parametrize("size", SIZES)
def test_an_unavailable_completion_keeps_the_object_until_the_hook_answers(tmp_path: Path, size: int) -> None:
    data, place = payload(size), Place(s3_server())
    options: dict[str, Any] = {"hooks_enabled_events": "pre-finish", "hooks_http_retry": 1, "sweep_interval": "0s"}
    with HookEndpoint() as endpoint, serving(tmp_path, place, hooks_http=endpoint.url, **options) as server:
        path = create(server.port, size)
        endpoint.reply = Reply(b"", 500)
        assert patch(server.port, path, 0, data).status == 503
        assert patch(server.port, path, size, b"").status == 503
        assert head(server.port, path).status == 423
        server.restart()
        assert head(server.port, path).status == 423
        endpoint.reply = NO_OPINION
        wait_until(lambda: head(server.port, path).status == 200, "the hook is asked again")
        assert_content(server.port, path, data)
        storage = endpoint.asked[-1].payload["Event"]["Upload"]["Storage"]

    assert storage["Type"] == "s3store"
    assert storage["Bucket"] == place.server.bucket
    assert storage["Key"] == place.key_of(path)


@pytest.mark.parametrize("size", SIZES)
def test_a_rejected_completion_leaves_nothing_in_the_bucket(tmp_path: Path, size: int) -> None:
    place = Place(s3_server())
    options: dict[str, Any] = {"hooks_enabled_events": "pre-finish"}
    with HookEndpoint() as endpoint, serving(tmp_path, place, hooks_http=endpoint.url, **options) as server:
        endpoint.reply = told(RejectUpload=True, HTTPResponse={"StatusCode": 422})
        path = create(server.port, size)
        answer = patch(server.port, path, 0, payload(size))
        gone = head(server.port, path)
        again = request(server.port, "GET", path)

    assert (answer.status, gone.status, again.status) == (422, 404, 404)
    assert place.traces_of(path) == []
