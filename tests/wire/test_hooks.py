"""Hooks over the wire: whatever an endpoint answers, the client gets a clear answer, and nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.hook_endpoint import NO_OPINION, SILENCE, Asked, HookEndpoint, Reply, told
from tests.support.timing import wait_until
from tests.support.wire.messages import Answer, creation_headers, metadata
from tests.support.wire.requests import (
    assert_content,
    create,
    head,
    offset_of,
    patch,
    request,
    start_patch,
)

SECRET = "secret-of-the-application"
DATA = b"all the bytes"
TUS = {"Tus-Resumable": "1.0.0"}
ATTEMPTS = 2

FAULTY = {
    "500": Reply(SECRET.encode(), 500),
    "404": Reply(SECRET.encode(), 404),
    "redirect": Reply(b"", 302, {"Location": f"/hooks?{SECRET}"}),
    "permanent redirect": Reply(b"", 308, {"Location": f"/hooks?{SECRET}"}),
    "text": Reply(b"{}", headers={"Content-Type": f"text/plain; x={SECRET}"}),
    "no type": Reply(b"{}", headers={}),
    "no content": Reply(b"", 204, {}),
    "no JSON": Reply(SECRET.encode()),
    "no object": Reply(json.dumps([SECRET]).encode()),
    "empty": Reply(b""),
    "huge": Reply(json.dumps({"HTTPResponse": {"Body": SECRET + "x" * (1 << 20)}}).encode()),
    "nested": Reply(b"[" * 60_000),
    "status of another type": told(HTTPResponse={"StatusCode": SECRET}),
    "informational status": told(HTTPResponse={"StatusCode": 101}),
    "header that splits": told(HTTPResponse={"Header": {"X-A": f"b\r\nX-Secret: {SECRET}"}}),
    "header without a name": told(HTTPResponse={"Header": {"": SECRET}}),
    "reject of another type": told(RejectUpload=SECRET),
    "no HTTP": Reply(raw=b"SSH-2.0-" + SECRET.encode() + b"\r\n\r\n"),
    "head that ends early": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: appl"),
    "body that ends early": Reply(
        raw=b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"a":'
    ),
    "endless head": Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200_000),
    "silence": SILENCE,
}
FAULTY_CREATIONS = {
    "path as id": told(ChangeFileInfo={"ID": f"../{SECRET}"}),
    "dot as id": told(ChangeFileInfo={"ID": ".tusd-py"}),
    "route as id": told(ChangeFileInfo={"ID": "events"}),
    "long id": told(ChangeFileInfo={"ID": "a" * 129}),
    "metadata of another type": told(ChangeFileInfo={"MetaData": {"a": 1}}),
    "metadata with a comma": told(ChangeFileInfo={"MetaData": {"a,b": "c"}}),
    "negative size": told(ChangeFileInfo={"MaxSize": -1}),
    "huge size": told(ChangeFileInfo={"MaxSize": 1 << 63}),
    "no time": told(ChangeFileInfo={"ExpiresAt": "tomorrow"}),
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[HookEndpoint]:
    with HookEndpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def site(endpoint: HookEndpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options: dict[str, Any] = {
        "hooks_http": endpoint.url,
        "hooks_http_retry": ATTEMPTS,
        "hooks_http_backoff": "1ms",
        "hooks_enabled_events": "pre-create,pre-finish,pre-terminate,post-receive",
        "progress_hooks_interval": "0s",
        "sweep_interval": "0s",
        "max_size": 1000,
    }
    with serving(tmp_path_factory.mktemp("hooks"), **options) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_opinion(endpoint: HookEndpoint) -> Iterator[None]:
    endpoint.reply = NO_OPINION
    endpoint.asked.clear()
    yield
    endpoint.hold.set()


def post(site: ServerProcess, length: int | None = len(DATA), body: bytes = b"") -> Answer:
    return request(site.port, "POST", "/files", creation_headers(length, body), body)


def files_of(site: ServerProcess) -> set[str]:
    return {path.name for path in site.upload_dir.iterdir() if not path.name.startswith(".")}


def only(hook: str, reply: Reply) -> object:
    return lambda asked: reply if asked.type == hook else NO_OPINION


def path_of(answer: Answer) -> str:
    return urlsplit(answer["Location"]).path


def assert_unavailable(answer: Answer) -> None:
    assert answer.status == 503
    assert answer["Retry-After"]
    assert answer.text == "ERR_HOOK_UNAVAILABLE: the application cannot be asked about this upload now; try again\n"
    assert SECRET not in repr(answer)


@pytest.mark.parametrize("name", [*FAULTY, *FAULTY_CREATIONS])
def test_a_faulty_answer_to_pre_create_creates_nothing(site: ServerProcess, endpoint: HookEndpoint, name: str) -> None:
    before = files_of(site)
    endpoint.reply = (FAULTY | FAULTY_CREATIONS)[name]

    answer = post(site, body=DATA)

    assert_unavailable(answer)
    assert "Location" not in answer
    assert files_of(site) == before
    assert 1 <= len(endpoint.asked) <= ATTEMPTS
    assert {asked.path for asked in endpoint.asked} == {"/hooks"}


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("with_creation", [True, False])
def test_a_faulty_answer_to_pre_finish_loses_no_byte(
    site: ServerProcess, endpoint: HookEndpoint, name: str, with_creation: bool
) -> None:
    endpoint.reply = only("pre-finish", FAULTY[name])  # type: ignore[assignment]

    if with_creation:
        answer = post(site, body=DATA)
        path = path_of(answer)
    else:
        path = create(site.port, len(DATA))
        answer = patch(site.port, path, 0, DATA)
    assert_unavailable(answer)
    assert head(site.port, path).status == 423
    assert request(site.port, "GET", path).status == 404
    assert_unavailable(patch(site.port, path, len(DATA), b""))
    endpoint.reply = NO_OPINION
    wait_until(lambda: head(site.port, path).status == 200, "the hook is asked again")

    assert offset_of(site.port, path) == len(DATA)
    assert_content(site.port, path, DATA)


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_answer_to_pre_terminate_leaves_the_upload(
    site: ServerProcess, endpoint: HookEndpoint, name: str
) -> None:
    path = create(site.port, len(DATA))
    endpoint.reply = FAULTY[name]

    assert_unavailable(request(site.port, "DELETE", path, TUS))
    endpoint.reply = NO_OPINION

    assert patch(site.port, path, 0, DATA).status == 204
    assert request(site.port, "DELETE", path, TUS).status == 204


def test_a_rejection_of_the_completion_is_final(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = create(site.port, len(DATA))
    endpoint.reply = only(  # type: ignore[assignment]
        "pre-finish",
        told(RejectUpload=True, HTTPResponse={"StatusCode": 422, "Body": "no good", "Header": {"X-Why": "virus"}}),
    )

    answer = patch(site.port, path, 0, DATA)
    endpoint.reply = NO_OPINION

    assert (answer.status, answer.text, answer["X-Why"]) == (422, "no good", "virus")
    assert "Upload-Offset" not in answer
    assert head(site.port, path).status == 404
    assert patch(site.port, path, len(DATA), b"").status == 404
    assert path.rpartition("/")[2] not in files_of(site)


@pytest.mark.parametrize("status", [204, 304, 200, 413, 500])
def test_a_rejection_of_any_status_is_a_whole_answer(site: ServerProcess, endpoint: HookEndpoint, status: int) -> None:
    fields = {
        "connection": "x",
        "Content-Length": "9",
        "LOCATION": "/x",
        "content-type": "text/html",
        "Tus-Max-Size": "9",
    }
    endpoint.reply = told(RejectUpload=True, HTTPResponse={"StatusCode": status, "Body": "no", "Header": fields})

    answer = post(site)

    assert answer.status == status
    assert answer.body == (b"" if status in (204, 304) else b"no")
    assert "Location" not in answer
    assert "Tus-Max-Size" not in answer
    assert answer.get("Content-Type") == (None if status in (204, 304) else "text/html")
    assert answer["Tus-Resumable"] == "1.0.0"


def test_headers_of_a_hook_do_not_change_what_the_server_says(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(
        HTTPResponse={
            "StatusCode": 200,
            "Header": {"upload-offset": "7", "X-Own": " x ", "Access-Control-Allow-Origin": "https://a.example"},
        }
    )
    headers = {**creation_headers(4), "Origin": "https://b.example"}

    answer = request(site.port, "POST", "/files", headers)

    assert (answer.status, answer.offset, answer["X-Own"]) == (200, 0, "x")
    assert answer["Access-Control-Allow-Origin"] != "https://a.example"


def test_an_id_of_a_hook_that_exists_is_refused_and_changes_nothing(
    site: ServerProcess, endpoint: HookEndpoint
) -> None:
    endpoint.reply = told(ChangeFileInfo={"ID": "chosen"})
    first = post(site, body=DATA[:5])
    second = post(site, body=b"other bytes")

    assert first.status == 201
    assert path_of(first) == "/files/chosen"
    assert (second.status, second.text.partition(":")[0]) == (409, "ERR_UPLOAD_EXISTS")
    endpoint.reply = NO_OPINION
    assert patch(site.port, "/files/chosen", 5, DATA[5:]).status == 204
    assert_content(site.port, "/files/chosen", DATA)


def test_an_id_of_a_hook_takes_no_file_that_is_there(site: ServerProcess, endpoint: HookEndpoint) -> None:
    (site.upload_dir / "precious").write_bytes(b"precious")
    endpoint.reply = told(ChangeFileInfo={"ID": "precious"})

    answer = post(site, body=DATA)

    assert answer.status == 409
    assert (site.upload_dir / "precious").read_bytes() == b"precious"


def test_a_size_limit_of_a_hook_holds_for_declared_lengths(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(ChangeFileInfo={"MaxSize": 10})

    assert post(site, 10).status == 201
    refused = post(site, 11)
    assert (refused.status, refused.text) == (413, "ERR_MAX_SIZE_EXCEEDED: uploads may have at most 10 bytes\n")
    endpoint.reply = told(ChangeFileInfo={"MaxSize": 10_000})
    assert post(site, 1001).status == 413


def test_a_size_limit_of_a_hook_holds_for_deferred_lengths(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(ChangeFileInfo={"MaxSize": 10})
    path = path_of(post(site, None))
    endpoint.reply = NO_OPINION

    assert patch(site.port, path, 0, b"12345").status == 204
    assert patch(site.port, path, 5, b"6789012").status == 413
    with start_patch(site.port, path, 5, None) as connection:  # of unknown size
        connection.send_chunk(b"6789012")
        assert connection.answer().status == 413
    assert offset_of(site.port, path) <= 10
    assert patch(site.port, path, offset_of(site.port, path), b"", {"Upload-Length": "11"}).status == 413
    rest = DATA[offset_of(site.port, path) : 10]
    assert patch(site.port, path, offset_of(site.port, path), rest, {"Upload-Length": "10"}).status == 204


def test_pre_create_sees_the_request_and_decides_about_metadata(site: ServerProcess, endpoint: HookEndpoint) -> None:
    endpoint.reply = told(ChangeFileInfo={"MetaData": {"a": "b"}})
    headers = {**creation_headers(4), "Upload-Metadata": metadata(filename="x"), "Cookie": "session=1"}

    answer = request(site.port, "POST", "/files?token=t", headers)

    (asked,) = endpoint.asked
    assert asked.payload["Event"]["HTTPRequest"]["URI"] == "/files?token=t"
    assert asked.payload["Event"]["HTTPRequest"]["Header"]["Cookie"] == ["session=1"]
    assert asked.payload["Event"]["Upload"]["MetaData"] == {"filename": "x"}
    assert head(site.port, path_of(answer))["Upload-Metadata"] == metadata(a="b")


def test_a_hook_that_stops_an_upload_answers_its_client(site: ServerProcess, endpoint: HookEndpoint) -> None:
    path = create(site.port, 1000)

    def reply(asked: Asked) -> Reply:
        if asked.type != "post-receive":
            return NO_OPINION
        return told(StopUpload=True, HTTPResponse={"StatusCode": 406, "Body": "enough"})

    endpoint.reply = reply
    with start_patch(site.port, path, 0, 1000) as connection:
        for _ in range(900):  # the server commits once a second, which is progress
            connection.send(b"x")
            if endpoint.of_type("post-receive"):
                break
            time.sleep(0.01)
        answer = connection.answer()

    assert (answer.status, answer.text) == (406, "enough")
    wait_until(lambda: head(site.port, path).status == 404, "the upload is removed")


def test_slow_hooks_are_given_up_and_hinder_no_other_request(endpoint: HookEndpoint, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hooks_http": endpoint.url, "hooks_http_retry": 1, "hooks_enabled_events": "pre-finish"}
    with ServerProcess(tmp_path / "uploads", hooks_http_timeout="500ms", **options) as server:
        path = create(server.port, len(DATA))
        endpoint.hold.clear()
        answer = patch(server.port, path, 0, DATA)
        assert_unavailable(answer)
        assert head(server.port, path).status == 423
        assert offset_of(server.port, create(server.port, 5)) == 0
        endpoint.hold.set()
        wait_until(lambda: head(server.port, path).status == 200, "the hook is asked again")
        assert_content(server.port, path, DATA)


def test_the_sweep_asks_again_without_a_client(endpoint: HookEndpoint, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hooks_http": endpoint.url, "hooks_http_retry": 1, "hooks_enabled_events": "pre-finish"}
    with ServerProcess(tmp_path / "uploads", sweep_interval="100ms", **options) as server:
        path = create(server.port, len(DATA))
        endpoint.reply = Reply(b"", 500)
        assert patch(server.port, path, 0, DATA).status == 503
        count = len(endpoint.asked)
        wait_until(lambda: len(endpoint.asked) > count, "the sweep asks")
        endpoint.reply = NO_OPINION
        wait_until(lambda: request(server.port, "GET", path).body == DATA, "the upload is complete")
    assert endpoint.asked[-1].payload["Event"]["HTTPRequest"]["Method"] == ""


def test_a_killed_server_asks_again_before_the_upload_is_complete(endpoint: HookEndpoint, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hooks_http": endpoint.url, "hooks_enabled_events": "pre-finish", "sweep_interval": "0s"}
    with ServerProcess(tmp_path / "uploads", **options) as server:
        path = create(server.port, len(DATA))
        endpoint.hold.clear()
        with start_patch(server.port, path, 0, len(DATA)) as connection:
            connection.send(DATA)
            wait_until(lambda: len(endpoint.asked) == 1, "the hook is asked")
            server.kill()
        endpoint.hold.set()
        server.start_again()
        wait_until(lambda: head(server.port, path).status == 200, "the hook is asked again")
        assert_content(server.port, path, DATA)
    assert len(endpoint.of_type("pre-finish")) == 2


def test_a_shutdown_does_not_wait_for_a_hook_that_hangs(endpoint: HookEndpoint, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hooks_http": endpoint.url, "hooks_enabled_events": "pre-finish", "shutdown_grace": "1s"}
    with ServerProcess(tmp_path / "uploads", hooks_http_timeout="1h", **options) as server:
        path = create(server.port, len(DATA))
        endpoint.hold.clear()
        with start_patch(server.port, path, 0, len(DATA)) as connection:
            connection.send(DATA)
            wait_until(lambda: len(endpoint.asked) == 1, "the hook is asked")
            server.terminate()
        endpoint.hold.set()
        server.start_again()
        wait_until(lambda: head(server.port, path).status == 200, "the hook is asked again")
        assert_content(server.port, path, DATA)
