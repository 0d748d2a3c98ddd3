"""Grants of one creation: when they are used up, and the conditions that come with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auth.signing import creation, signing_files
from tests.auth.site import ADMIN, OWNER, ask
from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, Asked, HookEndpoint, Reply, told
from tests.support.stored import new_upload, stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.messages import creation_headers, encoded, sha256


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **signing_files(folder)) as server:
        yield server


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


def test_upload_that_another_removes_during_its_creation_uses_the_grant_up(site: ServerProcess) -> None:
    before, url, headers = stored(site), creation(owner="ann"), creation_headers(8, b"eight by")
    with Connection(site.port) as connection:
        connection.start("POST", url, headers | {"Content-Length": "8"})
        connection.send(b"four")
        wait_until(lambda: set(stored(site).records) != set(before.records))
        assert ask(site, ADMIN, "DELETE", new_upload(site, before)).status == 204
        answer = connection.answer_or_closed()
        assert answer is None or answer.status == 404
    refused = ask(site, None, "POST", url, headers, b"eight by")
    assert (refused.status, refused.text) == (401, "ERR_UNAUTHORIZED: this URL has created its upload\n")


def offsets(server: ServerProcess) -> dict[str, int]:
    """Return the committed offsets of the uploads that have not ended, by their ids."""
    return {name: record[1] for name, record in stored(server).records.items() if record[2] != "terminated"}


# Rates.


def test_requests_by_a_grant_do_not_use_up_the_rate_of_its_owner(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), rate_create="2/h") as server:
        url = creation(owner="ann")
        answers = [ask(server, None, "POST", url, {"Upload-Length": "-1"}).status for _ in range(3)]
        assert answers == [400, 400, 429]
        assert ask(server, OWNER, "POST", "/files", creation_headers(4)).status == 201


# Conditions.


@pytest.mark.parametrize("own", ["", "sha256 of others", "malformed sha256"])
def test_digest_of_a_grant_is_that_of_the_upload(site: ServerProcess, own: str) -> None:
    url = creation(owner="ann", metadata={"sha256": sha256(b"good")})
    headers = creation_headers(4, b"good")
    if own:
        digest = sha256(b"evil") if own == "sha256 of others" else "none"
        headers |= {"Upload-Metadata": f"sha256 {encoded(digest)}"}
    with unchanged(site):
        refused = ask(site, None, "POST", url, headers, b"evil")
        assert (refused.status, refused.text.partition(":")[0]) == (460, "ERR_DIGEST_MISMATCH")
    assert ask(site, None, "POST", url, headers, b"good").status == 201


def test_digest_of_a_grant_counts_where_those_of_clients_are_ignored(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), disable_checksum=True) as server:
        url = creation(owner="ann", metadata={"sha256": sha256(b"good")})
        headers = creation_headers(4, b"good") | {"Repr-Digest": "sha-256=:abc:"}
        with unchanged(server):
            assert ask(server, None, "POST", url, headers, b"evil").status == 460
        assert ask(server, None, "POST", url, headers, b"good").status == 201


def test_digests_of_a_grant_and_of_the_header_field_have_to_match_both(site: ServerProcess) -> None:
    url = creation(owner="ann", metadata={"sha256": sha256(b"good")})
    headers = creation_headers(4, b"good") | {"Repr-Digest": f"sha-256=:{encoded(bytes.fromhex(sha256(b'evil')))}:"}
    with unchanged(site):
        for body in (b"good", b"evil"):
            assert ask(site, None, "POST", url, headers, body).status == 460


def test_part_of_a_file_is_no_way_around_the_types_of_a_grant(site: ServerProcess) -> None:
    page, url = b"<!DOCTYPE html><html></html>", creation(owner="ann", types=["image/*"])
    headers = creation_headers(len(page), page) | {"Upload-Concat": "partial"}
    for part in (headers, headers | {"Upload-Metadata": f"filetype {encoded('image/png')}"}):
        with unchanged(site):
            refused = ask(site, None, "POST", url, part, page)
        assert (refused.status, refused.text.partition(":")[0]) == (403, "ERR_FORBIDDEN")
    assert ask(site, None, "POST", url, creation_headers(4)).status == 201
