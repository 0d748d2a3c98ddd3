"""Capabilities and signed URLs of a running server: limits of a grant, its single use, keys that change, secrecy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.auth.signing import FIRST, SECOND, capability, creation, link, signing_files
from tests.auth.site import ADMIN, OTHER, OWNER, WRITER, ask, create, token_files
from tests.support.event_receiver import EventReceiver
from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, HookEndpoint, Reply, told
from tests.support.stored import stored, unchanged
from tests.support.timing import wait_until
from tests.support.wire.messages import OFFSET_STREAM, Answer, creation_headers, encoded, patch_headers
from tests.support.wire.requests import request
from tusd_py.auth.signing_keys import parse_signing_keys
from tusd_py.cli import main

PROXY_FIELDS = ("X-Original-URI", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Envoy-Original-Path")
NEW_KEYS = parse_signing_keys(SECOND.encode())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **signing_files(folder, capability_urls=True), max_size=100) as server:
        yield server


def location(server: ServerProcess, answer: Answer) -> str:
    """Return the path and the query in the Location of a creation."""
    assert answer.status == 201, answer
    return answer["Location"].removeprefix(server.origin)


# Capabilities.


@pytest.mark.parametrize("token", [OWNER, WRITER, ADMIN])
def test_location_has_a_capability_with_which_the_upload_goes_on(site: ServerProcess, token: str) -> None:
    url = location(site, ask(site, token, "POST", "/files", creation_headers(8, b"four"), b"four"))
    assert re.fullmatch(r"/files/[0-9a-f]{32}\?k=[A-Za-z0-9_.-]{60,100}", url)
    assert ask(site, None, "HEAD", url).offset == 4
    assert ask(site, None, "PATCH", url, patch_headers(4), b"more").offset == 8
    assert ask(site, None, "GET", url).status == 401
    assert ask(site, OWNER if token == WRITER else token, "GET", url).body == b"fourmore"
    assert ask(site, None, "DELETE", url).status == (403 if token == WRITER else 204)


@pytest.mark.parametrize("sender", ["a token", "a grant", "a grant without an owner"])
def test_capability_does_not_remove_an_upload_that_the_application_gave_to_another(tmp_path: Path, sender: str) -> None:
    settings = signing_files(tmp_path, capability_urls=True, hooks_enabled_events="pre-create")
    token, url = OWNER if sender == "a token" else None, "/files"
    if token is None:
        url = creation(owner="ann") if sender == "a grant" else creation()
    with HookEndpoint() as endpoint, serving(tmp_path, **settings, hooks_http=endpoint.url) as server:
        endpoint.reply = told(ChangeFileInfo={"Owner": "bob"})
        given = location(server, ask(server, token, "POST", url, creation_headers(8)))
        assert ask(server, None, "DELETE", given).status == 403
        assert ask(server, None, "PATCH", given, patch_headers(0), b"four").status == 204
        assert ask(server, OTHER, "DELETE", given.partition("?")[0]).status == 204


def test_location_of_a_final_upload_has_a_capability(site: ServerProcess) -> None:
    parts = [
        location(
            site,
            ask(site, OWNER, "POST", "/files", creation_headers(4, b"four") | {"Upload-Concat": "partial"}, b"four"),
        )
        for _ in range(2)
    ]
    headers = {"Upload-Concat": "final;" + " ".join(parts)}
    url = location(site, ask(site, OWNER, "POST", "/files", headers))
    assert ask(site, None, "HEAD", url).offset == 8
    again = location(site, ask(site, OWNER, "POST", "/files", headers))
    assert again.partition("?")[0] == url.partition("?")[0]


def test_capability_outlives_its_token(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path, capability_urls=True)) as server:
        url = location(server, ask(server, OWNER, "POST", "/files", creation_headers(8, b"four"), b"four"))
        path = url.partition("?")[0]
        tokens = tmp_path / "tokens"
        tokens.write_text("".join(line for line in tokens.read_text().splitlines(True) if not line.startswith("ann:")))
        wait_until(lambda: ask(server, OWNER, "HEAD", path).status == 401)
        assert ask(server, OWNER, "HEAD", url).offset == 4
        assert ask(server, OWNER, "PATCH", url, patch_headers(4), b"more").offset == 8


def test_capability_ends_after_its_time(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path, capability_urls=True, capability_ttl="100ms")) as server:
        url = location(server, ask(server, OWNER, "POST", "/files", creation_headers(8)))
        wait_until(lambda: ask(server, None, "HEAD", url).status == 401)
        assert ask(server, OWNER, "HEAD", url).status == 200


def test_capability_is_not_good_for_a_later_upload_of_the_same_id(site: ServerProcess) -> None:
    part = location(
        site, ask(site, OWNER, "POST", "/files", creation_headers(4, b"four") | {"Upload-Concat": "partial"}, b"four")
    )
    headers = {"Upload-Concat": f"final;{part}"}
    first = location(site, ask(site, OWNER, "POST", "/files", headers))
    assert ask(site, None, "DELETE", first).status == 204
    second = location(site, ask(site, OWNER, "POST", "/files", headers))
    assert first.partition("?")[0] == second.partition("?")[0]
    with unchanged(site):
        for method in ("HEAD", "DELETE"):
            assert ask(site, None, method, first).status == 404
    assert ask(site, None, "DELETE", second).status == 204


def test_capability_of_an_upload_that_has_ended_is_answered_404(site: ServerProcess) -> None:
    url = location(site, ask(site, OWNER, "POST", "/files", creation_headers(8)))
    assert ask(site, None, "DELETE", url).status == 204
    assert [ask(site, None, method, url).status for method in ("HEAD", "PATCH", "DELETE")] == [404] * 3


def test_size_of_the_creation_binds_the_capability(site: ServerProcess) -> None:
    url = location(site, ask(site, None, "POST", creation(max_size=8), creation_headers(None, b"four"), b"four"))
    assert ask(site, None, "PATCH", url, patch_headers(4), b"12345").status == 413
    assert ask(site, None, "PATCH", url, patch_headers(4), b"1234").status == 204


# Grants.


def test_upload_of_a_grant_is_of_its_owner_and_has_its_metadata(site: ServerProcess) -> None:
    url = creation(owner="ann", metadata={"project": "é", "filename": "b"})
    headers = {"Upload-Metadata": f"filename {encoded('a')},more {encoded('c')},project"}
    path = location(site, ask(site, None, "POST", url, creation_headers(4, b"four") | headers, b"four"))
    answer = ask(site, OWNER, "HEAD", path.partition("?")[0])
    assert answer["Upload-Metadata"] == f"more {encoded('c')},project {encoded('é')},filename {encoded('b')}"
    assert ask(site, None, "HEAD", path).status == 200


@pytest.mark.parametrize(
    ("limits", "refused", "accepted", "status"),
    [
        ({"max_size": 8}, {"Upload-Length": "9"}, {"Upload-Length": "8"}, 413),
        ({"max_size": 1000}, {"Upload-Length": "101"}, {"Upload-Length": "100"}, 413),
        ({"max_size": 0}, {"Upload-Length": "1"}, {"Upload-Length": "0"}, 413),
        (
            {"types": ["image/*"]},
            {"Upload-Metadata": f"filetype {encoded('text/html')}"},
            {"Upload-Metadata": f"filetype {encoded('image/png')}"},
            415,
        ),
        (
            {"types": ["image/png", "text/plain"]},
            {"Upload-Metadata": f"filetype {encoded('image/jpeg')}"},
            {"Upload-Metadata": f"filetype {encoded('Text/Plain; charset=utf-8')}"},
            415,
        ),
        (
            {"types": ["image/*"], "metadata": {"filetype": "image/gif"}},
            {"Upload-Length": "-1"},
            {"Upload-Metadata": f"filetype {encoded('text/html')}"},
            400,
        ),
        ({"metadata": {"a": "b"}}, {"Upload-Metadata": "a b c"}, {"Upload-Metadata": "a Yw=="}, 400),
    ],
)
def test_refused_try_does_not_use_a_grant_up(
    site: ServerProcess, limits: dict[str, Any], refused: dict[str, str], accepted: dict[str, str], status: int
) -> None:
    url = creation(**limits)
    with unchanged(site):
        for headers in (refused, refused | {"Tus-Resumable": "0.2.2"}):
            answer = ask(site, None, "POST", url, {"Upload-Length": "4"} | headers)
            assert answer.status in (status, 412)
    assert ask(site, None, "POST", url, {"Upload-Length": "4"} | accepted).status == 201
    assert ask(site, None, "POST", url, {"Upload-Length": "4"} | accepted).status == 401


def test_upload_of_another_type_by_its_bytes_is_refused_and_the_grant_is_free(site: ServerProcess) -> None:
    url, page = creation(types=["image/*"]), b"<!DOCTYPE html><html></html>"
    with unchanged(site):
        assert ask(site, None, "POST", url, creation_headers(len(page), page), page).status == 415
    assert ask(site, None, "POST", url, creation_headers(8)).status == 201


def test_metadata_of_both_stay_within_the_limits(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), metadata_pairs=2) as server:
        url = creation(metadata={"a": "1", "b": "2"})
        assert ask(server, None, "POST", url, {"Upload-Length": "4", "Upload-Metadata": "c"}).status == 400
        assert ask(server, None, "POST", url, {"Upload-Length": "4", "Upload-Metadata": "a"}).status == 201


@pytest.mark.parametrize("end", ["none", "restart", "kill", "terminate", "expire", "finish and remove", "sweep"])
def test_grant_is_used_once_whatever_becomes_of_the_upload(tmp_path: Path, end: str) -> None:
    short = {"expires_after": "1s", "sweep_interval": "50ms"} if end == "expire" else {}
    with serving(tmp_path, **signing_files(tmp_path), **short) as server:
        url = creation(owner="root")
        body = b"four" if end == "finish and remove" else b""
        path = location(server, ask(server, None, "POST", url, creation_headers(4, body), body))
        if end == "restart":
            server.terminate()
            server.start_again()
        elif end == "kill":
            server.restart()
        elif end in ("terminate", "finish and remove", "sweep"):
            assert ask(server, ADMIN, "DELETE", path).status == 204
        elif end == "expire":
            wait_until(lambda: ask(server, ADMIN, "HEAD", path).status == 404)
        if end == "sweep":
            server.terminate()
            main(["sweep", "--upload-dir", str(server.upload_dir)])
            server.start_again()
        with unchanged(server):
            refused = ask(server, None, "POST", url, creation_headers(4))
            assert (refused.status, refused.text) == (401, "ERR_UNAUTHORIZED: this URL has created its upload\n")
        assert ask(server, ADMIN, "HEAD", path).status == (404 if end not in ("none", "restart", "kill") else 200)


def test_record_of_a_removed_upload_stays_without_its_bytes(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path), sweep_interval="50ms") as server:
        path = location(server, ask(server, None, "POST", creation(), creation_headers(4, b"four"), b"four"))
        assert ask(server, ADMIN, "DELETE", path).status == 204
        assert list(stored(server).records) == [path.removeprefix("/files/")]
        assert [record[2] for record in stored(server).records.values()] == ["terminated"]
        assert stored(server).files == {}


def test_application_may_choose_the_id_and_refuse_without_using_the_grant_up(tmp_path: Path) -> None:
    with HookEndpoint() as endpoint, serving(tmp_path, **signing_files(tmp_path), hooks_http=endpoint.url) as server:
        url = creation(owner="ann")
        endpoint.reply = told(RejectUpload=True, HTTPResponse={"StatusCode": 403})
        assert ask(server, None, "POST", url, {"Upload-Length": "4"}).status == 403
        endpoint.reply = told(ChangeFileInfo={"ID": "chosen"})
        assert location(server, ask(server, OTHER, "POST", "/files", {"Upload-Length": "4"})) == "/files/chosen"
        assert ask(server, None, "POST", url, {"Upload-Length": "4"}).status == 409
        endpoint.reply = told(ChangeFileInfo={"ID": "other"})
        assert location(server, ask(server, None, "POST", url, {"Upload-Length": "4"})) == "/files/other"
        endpoint.reply = told(ChangeFileInfo={"ID": "third"})
        assert ask(server, None, "POST", url, {"Upload-Length": "4"}).status == 401
        assert ask(server, OWNER, "DELETE", "/files/other").status == 204
        assert ask(server, None, "POST", url, {"Upload-Length": "4"}).status == 401
        endpoint.reply = told(ChangeFileInfo={"MetaData": {"a": "b"}})
        changed = creation(owner="ann")
        assert ask(server, None, "POST", changed, {"Upload-Length": "4"}).status == 201
        assert ask(server, None, "POST", changed, {"Upload-Length": "4"}).status == 401


@pytest.mark.parametrize("kind", ["empty", "with bytes", "with an id of the application"])
def test_creation_whose_upload_is_refused_at_its_end_does_not_use_the_grant_up(tmp_path: Path, kind: str) -> None:
    body = b"" if kind == "empty" else b"four"
    refusal = told(RejectUpload=True, HTTPResponse={"StatusCode": 422})
    with HookEndpoint() as endpoint:
        settings = signing_files(tmp_path, hooks_http=endpoint.url, hooks_enabled_events="pre-create,pre-finish")
        with serving(tmp_path, **settings) as server:

            def decide(finish: Reply) -> None:
                chosen = (
                    told(ChangeFileInfo={"ID": "chosen"}) if kind == "with an id of the application" else NO_OPINION
                )
                endpoint.reply = lambda asked: finish if asked.type == "pre-finish" else chosen

            url, headers = creation(owner="ann"), creation_headers(len(body), body)
            decide(refusal)
            for _ in range(2):
                assert ask(server, None, "POST", url, headers, body).status == 422
                assert stored(server).records == {}
            decide(NO_OPINION)
            path = location(server, ask(server, None, "POST", url, headers, body))
            assert ask(server, OWNER, "DELETE", path).status == 204
            assert ask(server, None, "POST", url, headers, body).status == 401


# Keys.


def test_keys_rotate_without_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path, **signing_files(tmp_path, capability_urls=True)) as server:
        old = location(server, ask(server, OWNER, "POST", "/files", creation_headers(8)))
        path = old.partition("?")[0]
        (tmp_path / "keys").write_text(f"{SECOND}\n{FIRST}\n")
        wait_until(lambda: ask(server, None, "HEAD", capability(server, path, keys=NEW_KEYS)).status == 200)
        assert ask(server, None, "HEAD", old).status == 200
        new = location(server, ask(server, OWNER, "POST", "/files", creation_headers(8)))
        (tmp_path / "keys").write_text(f"{SECOND}\n")
        wait_until(lambda: ask(server, None, "HEAD", old).status == 401)
        assert ask(server, None, "HEAD", new).status == 200
        (tmp_path / "keys").write_text("garbage")
        wait_until(
            lambda: (
                any("stays in effect" in line for line in server.log)
                or bool(ask(server, None, "HEAD", new).status == 0)
            )
        )
        assert ask(server, None, "HEAD", new).status == 200
        assert "garbage" not in "".join(server.log)


def test_server_with_keys_alone_is_open_to_signed_urls_only(tmp_path: Path) -> None:
    settings = signing_files(tmp_path, capability_urls=True)
    with serving(tmp_path, signing_key_file=settings["signing_key_file"], capability_urls=True) as server:
        for token in (None, OWNER):
            assert ask(server, token, "POST", "/files", {"Upload-Length": "4"}).status == 401
        url = location(server, ask(server, None, "POST", creation(), creation_headers(4)))
        assert ask(server, None, "PATCH", url, patch_headers(0), b"four").status == 204
        path = url.partition("?")[0]
        assert ask(server, None, "GET", path).status == 401
        assert ask(server, None, "GET", link(path)).body == b"four"


# Secrecy.


def test_signatures_are_in_no_log_event_hook_metric_or_answer(tmp_path: Path) -> None:
    with HookEndpoint() as endpoint, EventReceiver(tmp_path) as receiver:
        options = {"hooks_http": endpoint.url, "events_to": receiver.url, "log_level": "debug"}
        enabled = "pre-create,post-create,post-receive,pre-finish,post-finish,pre-terminate,post-terminate"
        settings = signing_files(tmp_path, capability_urls=True, hooks_enabled_events=enabled, **options)
        with serving(tmp_path, **settings) as server:
            seen, answers = exercise(server)
            wait_until(lambda: any(event["type"].endswith(".terminated") for event in receiver.received()))
            metrics = ask(server, None, "GET", "/metrics").text
        told_to = receiver.log.read_text() + repr(
            [(asked.path, asked.headers, asked.payload) for asked in endpoint.asked]
        )
        assert {"pre-create", "post-finish", "pre-terminate"} <= {asked.type for asked in endpoint.asked}
        places = "".join(server.log) + told_to + metrics + repr(answers)
        for secret in seen:
            assert len(secret) > 40
            assert secret not in places
        assert "?x=y" in told_to  # what is no signature stays


def exercise(server: ServerProcess) -> tuple[set[str], list[Answer]]:
    """Use URLs with signatures in every way; return the signatures, and the answers without Location."""
    seen: set[str] = set()
    answers: list[Answer] = []

    def sent(token: str | None, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> str:
        page = f"https://page.example/?{url.partition('?')[2]}"
        proxied = dict.fromkeys(PROXY_FIELDS, url)
        answer = ask(server, token, method, url, headers | {"Referer": page} | proxied, body)
        found = answer.get("Location") or ""
        answers.append(
            Answer(answer.status, tuple(field for field in answer.fields if field[0] != "location"), answer.body)
        )
        for text in (url, found):
            seen.update(re.findall(r"[?&][ktd]=([^&]*)", text))
        return found.removeprefix(server.origin)

    partial = {"Upload-Concat": "partial"}
    part = sent(None, "POST", creation(owner="ann") + "&x=y", creation_headers(4, b"four") | partial, b"four")
    final = sent(OWNER, "POST", "/files?x=y", {"Upload-Concat": f"final;{server.origin}{part}"})
    sent(None, "HEAD", final, {})
    sent(None, "GET", link(final.partition("?")[0]), {})
    upload = sent(OWNER, "POST", "/files", creation_headers(8))
    for offset, body in ((0, b"four"), (0, b"wrong"), (4, b"too many"), (4, b"more")):
        sent(None, "PATCH", upload, patch_headers(offset), body)
    sent(None, "PATCH", upload, {"Content-Type": OFFSET_STREAM})
    sent(None, "DELETE", upload, {})
    sent(None, "DELETE", upload, {})
    for url in (creation(expires_in=-1), creation().replace(".", "_"), creation(max_size=1)):
        sent(None, "POST", url, creation_headers(8))
    sent(None, "HEAD", capability(server, final.partition("?")[0], expires_in=-1), {})
    sent(None, "PUT", final, {})
    sent(None, "GET", f"/nowhere?{final.partition('?')[2]}", {})
    return seen, answers


# Without keys.


def test_keys_and_tokens_are_read_from_their_files_only(tmp_path: Path) -> None:
    settings = token_files(tmp_path)
    with serving(tmp_path, **settings) as server:  # without keys, a signature is a query like any other
        path = create(server, OWNER, 8)
        assert ask(server, None, "HEAD", capability(server, path)).status == 401
        assert ask(server, OWNER, "HEAD", capability(server, path)).status == 200
        assert request(server.port, "POST", creation(), creation_headers(4)).status == 401
