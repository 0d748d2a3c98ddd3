"""Requests to a URL whose every answer is held against what is promised for all of them: see `assert_common_rules`."""

from __future__ import annotations

import re

from tests.support.wire.connection import Connection
from tests.support.wire.messages import TUS, Answer, Body, Headers, creation_headers, patch_headers

ID = r"[A-Za-z0-9_-]{22,128}"  # 128 random bits need 22 characters at least
IMF_DATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
# Texts that must not be in an answer to a client.
LEAKS = re.compile(rb"Traceback|File \"|sqlite|Errno|/tmp|\.tusd-py|Exception|Error\(", re.IGNORECASE)


def assert_common_rules(method: str, headers: Headers, answer: Answer) -> None:
    """Assert the rules for every answer of the server."""
    effective = str(headers.get("X-HTTP-Method-Override", method)).upper() if method != "OPTIONS" else method
    assert answer.status < 500, answer
    assert answer.status == 304 or not 300 <= answer.status < 400, answer
    assert answer.all("Tus-Resumable") == ["1.0.0"], answer
    assert answer.all("X-Content-Type-Options") == ["nosniff"], answer
    if answer.status in (201, 409) or (answer.status, effective) in ((204, "PATCH"), (200, "HEAD")):
        assert re.fullmatch("[0-9]+", answer["Upload-Offset"]), answer
    elif answer.status >= 400:
        assert "Upload-Offset" not in answer, answer
    if answer.status >= 400:
        assert not LEAKS.search(answer.body), answer


def promised_answer(connection: Connection, method: str, headers: Headers | None = None) -> Answer:
    """Return the next answer on a connection, checked; method and headers are those of its request."""
    answer = connection.answer(method=method)
    assert_common_rules(method, headers or {}, answer)
    return answer


def ask_on(connection: Connection, method: str, url: str, headers: Headers | None = None, body: Body = None) -> Answer:
    """One request on a connection that stays open."""
    connection.send_request(method, url, headers, body)
    return promised_answer(connection, method, headers)


def ask(method: str, url: str, headers: Headers | None = None, body: Body = None) -> Answer:
    """One request on a connection of its own, with these headers only."""
    with Connection(url) as connection:
        return ask_on(connection, method, url, headers, body)


def creation(
    url: str, length: int | None, headers: Headers | None = None, body: Body = None, *, answered: int = 201
) -> Answer:
    """Create an upload and return the answer; without a length it is deferred."""
    given = creation_headers(length, body) | dict(headers or {})
    answer = ask("POST", url, given, b"" if body is None else body)
    assert answer.status == answered, answer
    return answer


def create(url: str, length: int | None, headers: Headers | None = None, body: Body = None) -> str:
    """Create an upload and return its URL."""
    return creation(url, length, headers, body)["Location"]


def patch(url: str, offset: int, body: Body, headers: Headers | None = None) -> Answer:
    return ask("PATCH", url, patch_headers(offset) | dict(headers or {}), body)


def head(url: str) -> Answer:
    return ask("HEAD", url, TUS)


def delete(url: str) -> Answer:
    return ask("DELETE", url, TUS)


def offset_of(url: str) -> int:
    answer = head(url)
    assert answer.status == 200, answer
    return answer.offset


def content_of(url: str) -> bytes:
    """Return the bytes of a finished upload."""
    answer = ask("GET", url)
    assert answer.status == 200, answer
    return answer.body


def refusal_without_continue(method: str, url: str, headers: Headers, declared: int) -> Answer:
    """Return the refusal of a request that waits for `100 Continue`, which must not come."""
    given = dict(headers) | {"Content-Length": str(declared), "Expect": "100-continue"}
    with Connection(url) as connection:
        connection.send_head(method, url, given)
        answer = promised_answer(connection, method, given)
    assert answer.interim == (), answer
    assert answer["Connection"] == "close", "the next bytes may be the body or a request"
    return answer
