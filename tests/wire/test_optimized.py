"""A server under `python -OO`, without docstrings and assertions: every error answer still says what is wrong."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import tusd_py
from tests.support.harness import ServerProcess
from tests.support.wire.connection import Connection
from tests.support.wire.messages import OFFSET_STREAM, TUS, Answer, Headers, encoded
from tests.support.wire.promised import ask_on
from tusd_py.core.errors import CodedError

UNKNOWN = "A" * 22
OFFSET: Headers = {"Upload-Offset": "0", "Content-Type": OFFSET_STREAM}


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("optimized")
    with ServerProcess(folder / "uploads", env={"PYTHONOPTIMIZE": "2"}, max_size="1MiB") as server:
        yield server


def ask(server: ServerProcess, method: str, url: str, headers: Headers | None = None, body: bytes = b"") -> Answer:
    with Connection(server.url) as connection:
        return ask_on(connection, method, url, {**TUS, **(headers or {})}, body)


def create(server: ServerProcess, headers: Headers) -> str:
    answer = ask(server, "POST", server.url, headers)
    assert answer.status == 201, answer
    return answer["Location"]


def test_every_error_class_has_a_sentence_of_its_own_or_is_given_one() -> None:
    for module in pkgutil.walk_packages(tusd_py.__path__, "tusd_py."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    classes: list[type[CodedError]] = [CodedError]
    for kind in classes:
        classes += kind.__subclasses__()
        if kind.__module__.startswith("tusd_py"):
            assert {"default_message", "__init__"} & kind.__dict__.keys(), kind


def test_an_optimized_server_moves_an_upload_from_creation_to_removal(optimized: ServerProcess) -> None:
    url = create(optimized, {"Upload-Length": "5"})
    assert ask(optimized, "PATCH", url, OFFSET, b"ab").offset == 2
    assert ask(optimized, "HEAD", url).offset == 2
    assert ask(optimized, "PATCH", url, {**OFFSET, "Upload-Offset": "2"}, b"cde").offset == 5
    assert ask(optimized, "GET", url).body == b"abcde"
    parts = [create(optimized, {"Upload-Length": "0", "Upload-Concat": "partial"}) for _ in range(2)]
    final = create(optimized, {"Upload-Concat": f"final;{' '.join(parts)}"})
    assert ask(optimized, "HEAD", final).offset == 0
    assert ask(optimized, "DELETE", url).status == 204
    assert ask(optimized, "HEAD", url).status == 404


def test_an_unknown_upload_is_not_found_by_an_optimized_server(optimized: ServerProcess) -> None:
    url = f"{optimized.url}/{UNKNOWN}"
    assert ask(optimized, "HEAD", url).status == 404
    for method, headers in (("GET", {}), ("DELETE", {}), ("PATCH", OFFSET)):
        answer = ask(optimized, method, url, headers)
        assert (answer.status, answer.text) == (404, "ERR_UPLOAD_NOT_FOUND: there is no such upload\n")


@pytest.mark.parametrize(
    ("method", "headers", "body", "status", "text"),
    [
        ("PATCH", {**OFFSET, "Upload-Offset": "3"}, b"ab", 409, "ERR_MISMATCHED_OFFSET: the upload is at offset 0"),
        ("PATCH", OFFSET, b"abcdef", 413, "ERR_UPLOAD_SIZE_EXCEEDED: the request holds more bytes"),
        ("PATCH", {**OFFSET, "Upload-Length": "6"}, b"", 400, "ERR_INVALID_UPLOAD_LENGTH: the length of the upload"),
        (
            "PATCH",
            {**OFFSET, "Upload-Checksum": f"sha1 {encoded(bytes(20))}"},
            b"ab",
            460,
            "ERR_CHECKSUM_MISMATCH: the checksum does not match",
        ),
        ("PATCH", {"Upload-Offset": "0"}, b"ab", 415, "ERR_INVALID_CONTENT_TYPE: Content-Type must be"),
        ("PATCH", {**OFFSET, "Upload-Offset": "x"}, b"ab", 400, "ERR_INVALID_OFFSET: Upload-Offset must be"),
        ("PUT", {}, b"", 405, "ERR_METHOD_NOT_ALLOWED: the methods here are"),
        ("GET", {}, b"", 404, "ERR_UPLOAD_NOT_FOUND: the upload is not finished yet"),
    ],
)
def test_an_optimized_server_says_what_is_wrong_with_a_request(
    optimized: ServerProcess, method: str, headers: Headers, body: bytes, status: int, text: str
) -> None:
    url = create(optimized, {"Upload-Length": "5"})
    answer = ask(optimized, method, url, headers, body)
    assert answer.status == status
    assert answer.text.startswith(text)


def test_an_optimized_server_says_what_is_wrong_with_a_creation(optimized: ServerProcess) -> None:
    partial = create(optimized, {"Upload-Length": "5", "Upload-Concat": "partial"})
    plain = create(optimized, {"Upload-Length": "5"})
    for headers, status, text in (
        ({"Upload-Length": str(2 << 20)}, 413, "ERR_MAX_SIZE_EXCEEDED: uploads may have at most 1048576 bytes"),
        ({"Upload-Concat": f"final;{partial}"}, 400, "ERR_UPLOAD_NOT_FINISHED: partial upload"),
        ({"Upload-Concat": f"final;{plain}"}, 400, "ERR_INVALID_CONCAT: upload"),
    ):
        answer = ask(optimized, "POST", optimized.url, headers)
        assert answer.status == status
        assert answer.text.startswith(text)
