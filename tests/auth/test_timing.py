"""The time of answers about uploads of others: no longer and no shorter than about uploads that do not exist."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.auth.site import OTHER, OWNER, ask, bearer, create, token_files
from tests.support.harness import ServerProcess, serving
from tests.support.wire.connection import Connection
from tests.support.wire.messages import OFFSET_STREAM, TUS, Headers

ROUNDS = 200  # of each kind in one measurement
ATTEMPTS = 8  # measurements; other processes make one kind seem slower in one of them, and the other kind in the next
TOLERANCE = 0.15  # of the time of an answer; the lookup that the answers have in common takes a third of it

Request = tuple[str, str, Headers, bytes | None]  # method, path, header fields, body


def by_method(method: str) -> Callable[[str], Request]:
    def request(path: str) -> Request:
        headers = TUS | bearer(OTHER)
        if method == "PATCH":
            return method, path, headers | {"Upload-Offset": "4", "Content-Type": OFFSET_STREAM}, b"more"
        return method, path, headers, None

    return request


def in_a_final_upload(path: str) -> Request:
    return "POST", "/files", TUS | bearer(OTHER) | {"Upload-Concat": f"final;{path}"}, b""


REQUESTS = {method: by_method(method) for method in ("HEAD", "GET", "PATCH", "DELETE")}
REQUESTS["inside Concat"] = in_a_final_upload
CASES = [*((name, "active") for name in REQUESTS), *((name, "gone") for name in ("HEAD", "PATCH")), ("GET", "complete")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("site")
    with serving(folder, **token_files(folder), gone_for="1h") as server:
        yield server


def foreign_upload(site: ServerProcess, situation: str, *, is_partial: bool) -> str:
    """Return the path of an upload of another principal; a partial one is complete."""
    headers = {"Upload-Concat": "partial"} if is_partial else {}
    path = create(site, OWNER, 4 if is_partial or situation == "complete" else 8, b"four", headers)
    if situation == "gone":
        assert ask(site, OWNER, "DELETE", path).status == 204
    return path


def seconds(connection: Connection, request: Request) -> float:
    method, path, headers, body = request
    started = time.perf_counter()
    connection.send_request(method, path, headers, body)
    answer = connection.answer(method=method)
    took = time.perf_counter() - started
    assert answer.status == 404, answer
    return took


def lower_quartile(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 4]


def difference(site: ServerProcess, request: Callable[[str], Request], foreign: str) -> float:
    """Return by which part of its time the answer about an upload of another takes longer than about none, or less."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with Connection(site.port) as connection:
        for number in range(ROUNDS):
            for is_foreign in (True, False) if number % 2 else (False, True):
                path = foreign if is_foreign else f"/files/{secrets.token_hex(16)}"
                times[is_foreign].append(seconds(connection, request(path)))
    there, nowhere = lower_quartile(times[True]), lower_quartile(times[False])
    return (there - nowhere) / nowhere


@pytest.mark.parametrize(("name", "situation"), CASES)
def test_answer_about_an_upload_of_another_takes_as_long_as_about_none(
    site: ServerProcess, name: str, situation: str
) -> None:
    foreign = foreign_upload(site, situation, is_partial="Concat" in name)
    found: list[float] = []
    for _ in range(ATTEMPTS):
        found.append(difference(site, REQUESTS[name], foreign))
        if min(found) <= TOLERANCE and max(found) >= -TOLERANCE:  # there is no difference that shows every time
            return
    pytest.fail(f"the times differ by {', '.join(f'{part:.0%}' for part in found)}")
