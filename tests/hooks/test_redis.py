"""Hooks of a server whose records are in Redis, beside which other hosts may serve the same uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, HookEndpoint, Reply, told
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.messages import TUS, creation_headers
from tests.support.wire.requests import assert_content, create, head, patch, request

DATA = b"all the bytes"


@pytest.fixture
def endpoint() -> Iterator[HookEndpoint]:
    with HookEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def site(endpoint: HookEndpoint, tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(
        tmp_path,
        redis_url=shared_redis_url(),
        redis_prefix=f"{tmp_path.name}:",
        hooks_http=endpoint.url,
        hooks_http_retry=1,
        hooks_enabled_events="pre-create,post-create,pre-finish,post-finish,post-terminate",
    ) as server:
        yield server


def test_an_unavailable_completion_keeps_the_bytes_and_is_told_once_it_has_succeeded(
    site: ServerProcess, endpoint: HookEndpoint
) -> None:
    path = create(site.port, len(DATA))
    endpoint.reply = lambda asked: Reply(b"", 500) if asked.type == "pre-finish" else NO_OPINION
    assert patch(site.port, path, 0, DATA).status == 503
    assert head(site.port, path).status == 423
    assert endpoint.of_type("post-finish") == []
    endpoint.reply = NO_OPINION
    wait_until(lambda: head(site.port, path).status == 200, "the hook is asked again")
    assert_content(site.port, path, DATA)
    wait_until(lambda: bool(endpoint.of_type("post-finish")), "the completion is told")

    assert len(endpoint.of_type("post-create")) == 1
    assert endpoint.of_type("post-finish")[0].payload["Event"]["Upload"]["Offset"] == len(DATA)


def test_a_rejected_completion_is_told_as_the_end_of_the_upload(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = create(site.port, len(DATA))
    endpoint.reply = lambda asked: told(RejectUpload=True) if asked.type == "pre-finish" else NO_OPINION

    assert patch(site.port, path, 0, DATA).status == 400
    assert head(site.port, path).status == 404
    wait_until(lambda: bool(endpoint.of_type("post-terminate")), "the end is told")
    assert endpoint.of_type("post-finish") == []


def test_a_size_limit_of_a_hook_holds_for_deferred_lengths(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = lambda asked: told(ChangeFileInfo={"MaxSize": 10}) if asked.type == "pre-create" else NO_OPINION
    path = create(site.port, None)

    assert patch(site.port, path, 0, b"12345").status == 204
    assert patch(site.port, path, 5, b"678901").status == 413
    assert patch(site.port, path, 5, b"67890").status == 204


def test_a_path_that_a_hook_chooses_counts_as_no_answer(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(ChangeFileInfo={"Storage": {"Path": "ann/a.txt"}})

    assert request(site.port, "POST", "/files", {**creation_headers(4), **TUS}).status == 503
    assert not (site.upload_dir / "ann").exists()
