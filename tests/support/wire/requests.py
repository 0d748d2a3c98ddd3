"""Requests to servers named by their ports, since an upload is a path that each of several servers may serve.

Servers are in trouble here: an answer to `request` and `patch` may be any, and a connection may break.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from tests.support.timing import TIMEOUT, promptly
from tests.support.wire import promised
from tests.support.wire.connection import Connection
from tests.support.wire.messages import Answer, Headers, patch_headers, sha256

RESTARTS_UPLOAD = {408, 409, 429}  # answers to HEAD that make clients begin again at byte 0, as every 5xx does


def url_of(port: int, path: str = "/files") -> str:
    return f"http://127.0.0.1:{port}{path}"


def request(
    port: int, method: str, path: str, headers: Headers | None = None, body: bytes = b"", timeout: float = TIMEOUT
) -> Answer:
    """Make one request on a connection of its own; return the answer. Raises `ConnectionError` if it breaks."""
    length = {"Content-Length": str(len(body))} if body or method in ("POST", "PATCH") else {}
    with Connection(port, timeout) as connection:
        connection.start(method, path, {"Connection": "close", **length, **(headers or {})})
        with contextlib.suppress(ConnectionError):  # refused before the end of the body: the answer says why
            connection.send(body)
        return connection.answer(timeout)


def create(port: int, length: int | None, headers: Headers | None = None, body: bytes = b"") -> str:
    """Create an upload and return its path; without a length it is deferred."""
    return urlsplit(promised.create(url_of(port), length, headers, body)).path


def head(port: int, path: str) -> Answer:
    """Make a HEAD request, whose status must not make a client start again at byte 0; return the answer."""
    answer = promised.head(url_of(port, path))
    assert answer.status not in RESTARTS_UPLOAD, answer
    return answer


def offset_of(port: int, path: str) -> int:
    answer = head(port, path)
    assert answer.status == 200, answer
    return answer.offset


def patch(port: int, path: str, offset: int, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    return request(port, "PATCH", path, patch_headers(offset, headers), body)


def start_patch(
    port: int, path: str, offset: int, size: int | None, headers: Mapping[str, str] | None = None
) -> Connection:
    """Send the head of a PATCH and return its connection; without a size the body is chunked."""
    framing = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
    connection = Connection(port)
    try:
        connection.start("PATCH", path, patch_headers(offset, headers) | framing)
    except BaseException:
        connection.close()
        raise
    return connection


def stalled_patch(port: int, path: str, data: bytes, sent: int) -> Connection:
    """Send a PATCH for all of `data` up to the byte at `sent`, and wait until the server has read that."""
    connection = start_patch(port, path, 0, len(data))
    try:
        connection.send(data[:sent])
        connection.wait_until_read()
    except BaseException:
        connection.close()
        raise
    return connection


def content(port: int, path: str) -> bytes:
    """Return the bytes of a finished upload."""
    answer = request(port, "GET", path)
    assert answer.status == 200, answer
    return answer.body


def assert_content(port: int, path: str, expected: bytes) -> None:
    """Assert that an upload is finished and holds exactly these bytes, compared by their digest."""
    received = content(port, path)
    assert (len(received), sha256(received)) == (len(expected), sha256(expected))


def complete(port: int, path: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Come back as a client does, with one HEAD and one PATCH each in good time, and check what is stored in the end.

    The offset that HEAD answers has to be the one that the PATCH needs.
    """
    with promptly("HEAD"):
        offset = offset_of(port, path)
    assert offset <= len(data)
    with promptly("the PATCH of the client that came back"):
        answer = patch(port, path, offset, data[offset:], headers)
    assert (answer.status, answer.offset) == (204, len(data)), answer
    assert offset_of(port, path) == len(data)
    assert_content(port, path, data)
