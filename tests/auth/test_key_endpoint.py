"""The keys of a JWKS endpoint: fetched once for all, rotated without a refused request, kept through every fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.auth.issuer import KeyServer, SigningKey, claims_of, handmade, key_set
from tusd_py.auth import key_endpoint
from tusd_py.auth.claims import ClaimRules
from tusd_py.auth.key_endpoint import KeyEndpoint, lifetime_of
from tusd_py.auth.keys import KeySet
from tusd_py.auth.signed_token_verifier import SignedTokenVerifier
from tusd_py.contracts.auth import InvalidCredentials
from tusd_py.core.errors import AuthenticationUnavailable


@pytest.fixture
def first() -> SigningKey:
    return SigningKey(kid="first")


@pytest.fixture
def server(first: SigningKey) -> Iterator[KeyServer]:
    with KeyServer(first) as server:
        yield server


@pytest.fixture
async def endpoint(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeyEndpoint]:
    monkeypatch.setattr(key_endpoint, "RETRY_INTERVAL", 0.0)
    endpoint = KeyEndpoint(server.url)
    yield endpoint
    await endpoint.close()


async def until_asked(server: KeyServer, times: int) -> None:
    while server.requests < times:  # noqa: ASYNC110 - it is counted in another thread
        await asyncio.sleep(0.005)


@pytest.fixture
def verifier(endpoint: KeyEndpoint) -> SignedTokenVerifier:
    return SignedTokenVerifier(endpoint, ClaimRules())


async def test_keys_are_fetched_once_for_all_who_need_them(
    server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    server.hold.clear()
    tokens = [first.sign(claims_of(number)) for number in range(20)]
    asking = [asyncio.ensure_future(verifier.principal_of(token)) for token in tokens]
    await until_asked(server, 1)
    server.hold.set()
    assert [principal.owner for principal in await asyncio.gather(*asking)] == [str(number) for number in range(20)]
    assert server.requests == 1


async def test_rotation_refuses_no_token(server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey) -> None:
    current = first
    for number in range(5):
        await verifier.principal_of(current.sign(claims_of()))
        following = SigningKey(kid=f"key {number}")
        server.body = key_set(current, following)
        await asyncio.gather(*(verifier.principal_of(following.sign(claims_of(owner))) for owner in range(5)))
        await verifier.principal_of(current.sign(claims_of()))
        current = following
    assert server.requests == 6


async def test_rotation_during_a_fetch_refuses_no_token(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    """The answer of a fetch that had begun before the rotation lacks the new key."""
    await endpoint.refresh()
    server.hold.clear()
    stranger = asyncio.ensure_future(verifier.principal_of(SigningKey(kid="unknown").sign(claims_of())))
    await until_asked(server, 2)
    following = SigningKey(kid="following")
    asking = asyncio.ensure_future(verifier.principal_of(following.sign(claims_of())))
    server.body = key_set(first, following)
    server.hold.set()
    assert (await asking).owner == "ann"
    with pytest.raises(InvalidCredentials):
        await stranger


async def test_key_that_has_gone_verifies_nothing(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    token = first.sign(claims_of())
    await verifier.principal_of(token)
    second = SigningKey(kid="second")
    server.body = key_set(second)
    await verifier.principal_of(second.sign(claims_of()))
    with pytest.raises(InvalidCredentials):
        await verifier.principal_of(token)


async def test_old_keys_are_renewed_beside_requests(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    await verifier.principal_of(first.sign(claims_of()))
    endpoint._fresh_until = 0.0
    server.hold.clear()
    await verifier.principal_of(first.sign(claims_of("bob")))  # does not wait
    server.hold.set()
    await until_asked(server, 2)


async def test_defect_of_a_package_keeps_the_keys_that_were_fetched(
    server: KeyServer,
    endpoint: KeyEndpoint,
    verifier: SignedTokenVerifier,
    first: SigningKey,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def parse(body: bytes) -> KeySet:
        raise LookupError("not in this build")

    with monkeypatch.context() as patch:
        patch.setattr(key_endpoint, "parse_key_set", parse)
        with pytest.raises(AuthenticationUnavailable):
            await verifier.principal_of(first.sign(claims_of()))
    await verifier.principal_of(first.sign(claims_of()))
    server.body = key_set(first, SigningKey(kid="second"))
    monkeypatch.setattr(key_endpoint, "parse_key_set", parse)
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal_of(SigningKey(kid="second").sign(claims_of()))
    assert (await verifier.principal_of(first.sign(claims_of("bob")))).owner == "bob"
    assert "could not be fetched: LookupError" in caplog.text


FAULTS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "500": (500, b"", {}),
    "404": (404, b"{}", {}),
    "redirect": (302, b"", {"Location": "/other"}),
    "permanent redirect": (308, b"", {"Location": "http://127.0.0.1:1/keys"}),
    "text": (200, b"<html>", {}),
    "list": (200, b"[]", {}),
    "no keys": (200, b'{"keys": []}', {}),
    "no list": (200, b'{"keys": 5}', {}),
    "nested": (200, b'{"keys":' + b"[" * 60_000, {}),
    "symmetric": (200, json.dumps({"keys": [{"kty": "oct", "k": "AAAA"}]}).encode(), {}),
    "encryption": (200, json.dumps({"keys": [SigningKey().entry(use="enc")]}).encode(), {}),
    "huge": (200, b'{"keys": [' + b" " * (1 << 20) + b"]}", {}),
    "empty": (200, b"", {}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_faulty_endpoint_is_no_reason_to_refuse_a_token(
    server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey, fault: str
) -> None:
    good = server.body
    server.status, server.body, server.headers = FAULTS[fault]
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal_of(first.sign(claims_of()))
    server.status, server.body, server.headers = 200, good, {}
    assert (await verifier.principal_of(first.sign(claims_of()))).owner == "ann"


@pytest.mark.parametrize("fault", FAULTS)
async def test_fetched_keys_outlive_a_faulty_endpoint(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey, fault: str
) -> None:
    await endpoint.refresh()
    server.status, server.body, server.headers = FAULTS[fault]
    endpoint._fresh_until = 0.0
    for number in range(3):
        assert (await verifier.principal_of(first.sign(claims_of(number)))).owner == str(number)
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal_of(SigningKey(kid="new").sign(claims_of()))


async def test_silent_endpoint_is_given_up(
    server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_endpoint, "FETCH_TIMEOUT", 0.1)
    server.hold.clear()
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal_of(first.sign(claims_of()))


async def test_slow_endpoint_is_given_up(first: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never ends keeps nobody waiting, although bytes come all the time."""
    monkeypatch.setattr(key_endpoint, "FETCH_TIMEOUT", 0.2)
    ended = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.005)
        writer.close()
        ended.set()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as slow:
        endpoint = KeyEndpoint(f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}/keys")
        with pytest.raises(AuthenticationUnavailable):
            await SignedTokenVerifier(endpoint, ClaimRules()).principal_of(first.sign(claims_of()))
        await endpoint.close()
        await ended.wait()


async def test_endpoint_that_is_away_refuses_no_token(first: SigningKey) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # where nobody listens
        endpoint = KeyEndpoint(f"http://127.0.0.1:{unused.getsockname()[1]}/keys")
        with pytest.raises(AuthenticationUnavailable):
            await SignedTokenVerifier(endpoint, ClaimRules()).principal_of(first.sign(claims_of()))
        await endpoint.close()


async def test_absent_endpoint_is_not_asked_by_every_request(
    server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_endpoint, "RETRY_INTERVAL", 3600.0)
    server.status = 500
    for number in range(10):
        with pytest.raises(AuthenticationUnavailable):
            await verifier.principal_of(first.sign(claims_of(number)))
    assert server.requests == 1


async def test_forged_tokens_cause_few_fetches(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    attacker = SigningKey(kid="first")
    await endpoint.refresh()
    for header in ({"alg": "none"}, {"alg": "HS256", "kid": "unknown"}):
        with pytest.raises(InvalidCredentials):
            await verifier.principal_of(handmade(header, claims_of(), b"signature"))
    assert server.requests == 1
    for kid in ("first", *(f"key {number}" for number in range(50))):
        with pytest.raises((InvalidCredentials, AuthenticationUnavailable)):
            await verifier.principal_of(attacker.sign(claims_of(), kid=kid))
    assert server.requests <= 1 + key_endpoint.MAX_EXTRA_FETCHES + 1
    assert (await verifier.principal_of(first.sign(claims_of()))).owner == "ann"


async def test_forged_token_causes_one_fetch(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier
) -> None:
    await endpoint.refresh()
    for number in range(key_endpoint.MAX_EXTRA_FETCHES):
        with pytest.raises(InvalidCredentials):
            await verifier.principal_of(SigningKey(kid=f"key {number}").sign(claims_of()))
        assert server.requests == 1 + number + 1


async def test_rotation_under_a_flood_of_forged_tokens_refuses_no_token(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_endpoint, "EXTRA_FETCH_INTERVAL", 3600.0)
    attacker, second = SigningKey(), SigningKey(kid="second")
    await endpoint.refresh()
    forged = 0
    while True:
        forged += 1
        try:
            await verifier.principal_of(attacker.sign(claims_of(), kid=f"key {forged}"))
        except InvalidCredentials:
            continue
        except AuthenticationUnavailable:
            break
    assert forged == key_endpoint.MAX_EXTRA_FETCHES + 1
    server.body = key_set(second)
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal_of(second.sign(claims_of()))
    monkeypatch.setattr(key_endpoint, "EXTRA_FETCH_INTERVAL", 1e-9)
    assert (await verifier.principal_of(second.sign(claims_of()))).owner == "ann"


async def test_new_key_under_a_known_name_refuses_no_token(
    server: KeyServer, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    token = first.sign(claims_of())
    await verifier.principal_of(token)
    second = SigningKey(kid=first.kid)
    server.body = key_set(second)
    assert (await verifier.principal_of(second.sign(claims_of()))).owner == "ann"
    with pytest.raises(InvalidCredentials):
        await verifier.principal_of(token)


async def test_same_keys_again_forget_no_token(
    server: KeyServer, endpoint: KeyEndpoint, verifier: SignedTokenVerifier, first: SigningKey
) -> None:
    await verifier.principal_of(first.sign(claims_of()))
    with pytest.raises(InvalidCredentials):
        await verifier.principal_of(SigningKey(kid="unknown").sign(claims_of()))
    assert server.requests == 2
    assert (endpoint.changes, len(verifier._accepted)) == (1, 1)


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("", 300),
        ("no-cache", 300),
        ("max-age=5", 300),
        ("public, max-age=3600, must-revalidate", 3600),
        ("Max-Age=3600", 3600),
        ('max-age="3600"', 3600),
        ("s-max-age=3600", 300),
        ("max-age=999999999", 86400),
        ("max-age=-1", 300),
    ],
)
def test_lifetime_of_keys_is_bounded(field: str, seconds: float) -> None:
    assert lifetime_of(field) == seconds
