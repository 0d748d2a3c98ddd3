"""`--rate-create` and `--rate-bytes` on the wire."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import promptly, wait_until
from tests.support.wire.messages import TUS, Answer, creation_headers, path_of, payload
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, request, start_patch

TOKENS = ("ann", "bob")
TRUST = {"trusted_proxies": "127.0.0.1"}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def from_address(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}\n" for name in TOKENS))
    return path


def post(site: ServerProcess, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
    return request(site.port, "POST", "/files", creation_headers(4, body) | (headers or {}), body)


def assert_limited(answer: Answer) -> None:
    assert (answer.status, answer.text.partition(":")[0]) == (429, "ERR_RATE_LIMITED")
    assert int(answer["Retry-After"]) >= 1


# Creations.


@pytest.fixture(params=["sqlite", "redis"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {} if request.param == "sqlite" else {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}


def test_creations_beyond_the_rate_are_refused_and_nothing_else_is(tmp_path: Path, records: dict[str, Any]) -> None:
    with serving(tmp_path, rate_create="3/h", **records) as site:
        paths = [path_of(post(site)) for _ in range(3)]
        for headers, body in (({}, b""), ({}, b"abcd"), ({"Upload-Concat": "partial"}, b"")):
            assert_limited(post(site, headers, body))
        assert_limited(request(site.port, "PATCH", "/files", creation_headers(4) | {"X-HTTP-Method-Override": "POST"}))
        for path in paths:
            assert head(site.port, path).status == 200
            assert patch(site.port, path, 0, b"abcd").status == 204
            assert request(site.port, "GET", path).status == 200
        override = TUS | {"X-HTTP-Method-Override": "DELETE"}
        assert request(site.port, "POST", paths[0], override).status == 204
        assert request(site.port, "OPTIONS", "/files").status == 200
        assert_limited(post(site))


def test_creation_is_taken_again_after_retry_after(tmp_path: Path) -> None:
    with serving(tmp_path, rate_create="10/m") as site:
        answer = post(site)
        while answer.status == 201:
            answer = post(site)
        assert_limited(answer)
        assert int(answer["Retry-After"]) <= 6
        wait_until(lambda: post(site).status == 201, "the rate has a share again")


def test_owners_have_rates_of_their_own_and_strangers_use_up_none(tmp_path: Path, tokens_file: Path) -> None:
    with serving(tmp_path, rate_create="2/h", api_tokens_file=tokens_file) as site:
        for _ in range(5):
            assert post(site).status == 401
            assert post(site, bearer("wrong")).status == 401
        for name in TOKENS:
            assert [post(site, bearer(name)).status for _ in range(4)] == [201, 201, 429, 429]


def test_addresses_are_told_apart_as_trusted_proxies_tell_them(tmp_path: Path) -> None:
    with serving(tmp_path, rate_create="1/h", **TRUST) as site:
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"):
            assert [post(site, from_address(address)).status for _ in range(2)] == [201, 429]
        assert post(site, from_address("2001:db8::ffff")).status == 429


def test_addresses_of_untrusted_senders_are_not_believed(tmp_path: Path) -> None:
    with serving(tmp_path, rate_create="1/h") as site:
        assert [post(site, from_address(f"192.0.2.{number}")).status for number in range(3)] == [201, 429, 429]


def test_hosts_count_creations_together(tmp_path: Path) -> None:
    options = {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:", "rate_create": "10/h"}
    with serving(tmp_path, **options) as one, serving(tmp_path, **options) as other:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda site=site: statuses.append(post(site).status)) for site in (one, other) * 15
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [201] * 10 + [429] * 20


# Bytes.

RATE = 1 << 20
DATA = payload(3 * RATE)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options: dict[str, Any] = {"rate_bytes": RATE, "idle_timeout": "1s", "min_rate": RATE, **TRUST}
    with serving(tmp_path_factory.mktemp("shaped"), **options) as server:
        yield server


def seconds_for(action: Any) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def upload(site: ServerProcess, address: str, pieces: int) -> str:
    size = len(DATA) // pieces
    path = create(site.port, len(DATA))
    for start in range(0, len(DATA), size):
        answer = patch(site.port, path, start, DATA[start : start + size], from_address(address))
        assert (answer.status, answer.offset) == (204, start + size)
    return path


@pytest.mark.parametrize("pieces", [1, 3, 96], ids=["one", "three", "small"])
def test_bytes_beyond_the_rate_wait_and_all_arrive(shaped: ServerProcess, pieces: int) -> None:
    """Three seconds of bytes take two, after a burst of one second; no timeout counts them."""
    address = f"192.0.2.{pieces}"
    paths: list[str] = []
    assert seconds_for(lambda: paths.append(upload(shaped, address, pieces))) > 1.8
    assert_content(shaped.port, paths[0], DATA)


def test_bytes_of_a_creation_wait_too(shaped: ServerProcess) -> None:
    def create_with() -> None:
        headers = creation_headers(len(DATA), DATA) | from_address("192.0.2.101")
        answer = request(shaped.port, "POST", "/files", headers, DATA)
        assert (answer.status, answer.offset) == (201, len(DATA))

    assert seconds_for(create_with) > 1.8


def test_uploads_of_one_sender_share_the_rate_and_other_senders_do_not_wait(shaped: ServerProcess) -> None:
    threads = [threading.Thread(target=upload, args=(shaped, "192.0.2.102", 1)) for _ in range(2)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        path = create(shaped.port, 4)
        with promptly("the upload of another sender"):
            assert patch(shaped.port, path, 0, b"abcd", from_address("192.0.2.103")).status == 204
        time.sleep(0.05)
    assert time.monotonic() - started > 4.5


def test_head_and_takeover_are_prompt_while_a_sender_waits(shaped: ServerProcess) -> None:
    path = create(shaped.port, 100 * RATE)
    with start_patch(shaped.port, path, 0, 100 * RATE, from_address("192.0.2.104")) as connection:
        connection.send(DATA[: 2 * RATE])
        deadline = time.monotonic() + 60
        while not offset_of(shaped.port, path):
            assert time.monotonic() < deadline
        with promptly("HEAD"):
            offset = offset_of(shaped.port, path)
        with promptly("takeover"):
            answer = patch(shaped.port, path, offset, b"", from_address("192.0.2.105"))
    assert answer.status in (204, 409)


def test_shutdown_keeps_what_has_arrived(tmp_path: Path) -> None:
    with serving(tmp_path, rate_bytes=RATE) as site:
        path = create(site.port, 100 * RATE)
        with start_patch(site.port, path, 0, 100 * RATE) as connection:
            connection.send(DATA)
            deadline = time.monotonic() + 60
            while not (offset := offset_of(site.port, path)):
                assert time.monotonic() < deadline
            site.terminate()
        site.start_again()
        assert offset_of(site.port, path) >= offset
