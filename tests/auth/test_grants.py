"""Grants of one creation: when they are used up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auth.signing import creation, signing_files
from tests.auth.site import ask
from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, Asked, HookEndpoint, Reply, told
from tests.support.stored import stored
from tests.support.wire.connection import Connection
from tests.support.wire.messages import creation_headers


# Single use.


@pytest.fixture
def endpoint() -> Iterator[HookEndpoint]:
    """Yield an endpoint that chooses another id for every upload."""
    numbers = itertools.count(1)
    with HookEndpoint() as chooses:

        def reply(asked: Asked) -> Reply:
            return told(ChangeFileInfo={"ID": f"chosen{next(numbers)}"}) if asked.type == "pre-create" else NO_OPINION

        chooses.reply = reply
        yield chooses


def test_upload_of_a_cut_body_uses_the_grant_up_also_with_an_id_of_the_application(
    tmp_path: Path, endpoint: HookEndpoint
) -> None:
    settings = signing_files(tmp_path, hooks_http=endpoint.url, hooks_enabled_events="pre-create")
    with serving(tmp_path, **settings) as server:
        url, headers = creation(owner="ann"), creation_headers(8, b"eight by")
        with Connection(server.port) as connection:
            connection.start("POST", url, headers | {"Content-Length": "8"})
            connection.send(b"four")
            wait_until(lambda: offsets(server) == {"chosen1": 0})
            connection.wait_until_read()
        wait_until(lambda: any("ERR_CLIENT_DISCONNECTED" in line for line in server.log))  # the request is over
        assert offsets(server) == {"chosen1": 4}
        assert ask(server, None, "POST", url, headers, b"eight by").status == 401
        assert offsets(server) == {"chosen1": 4}


def test_upload_whose_hook_is_away_uses_the_grant_up_also_with_an_id_of_the_application(
    tmp_path: Path, endpoint: HookEndpoint
) -> None:
    chooses = endpoint.reply
    assert callable(chooses)
    endpoint.reply = lambda asked: Reply(status=500) if asked.type == "pre-finish" else chooses(asked)
    settings = signing_files(tmp_path, hooks_http=endpoint.url, hooks_enabled_events="pre-create,pre-finish")
    with serving(tmp_path, **settings, hooks_http_retry=1, hooks_http_backoff="10ms") as server:
        url, headers = creation(owner="ann"), creation_headers(4, b"four")
        assert ask(server, None, "POST", url, headers, b"four").status == 503
        assert offsets(server) == {"chosen1": 4}
        assert ask(server, None, "POST", url, headers, b"four").status == 401
        assert offsets(server) == {"chosen1": 4}


def offsets(server: ServerProcess) -> dict[str, int]:
    """Return the committed offsets of the uploads that have not ended, by their ids."""
    return {name: record[1] for name, record in stored(server).records.items() if record[2] != "terminated"}
