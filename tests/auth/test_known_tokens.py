"""Tokens that were accepted before: their senders are known without waiting, as long as nothing has to be looked at."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.auth.issuer import claims_of, with_secret
from tests.auth.site import SECRET, bearer
from tusd_py import Principal, RequestContext
from tusd_py.auth import secret_files
from tusd_py.auth.api_tokens import parse_api_tokens
from tusd_py.auth.claims import ClaimRules
from tusd_py.auth.key_endpoint import KeyEndpoint
from tusd_py.auth.keys import parse_secret
from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signed_token_verifier import KeyFile, SignedTokenVerifier
from tusd_py.auth.token_authenticator import CookieRule, TokenAuthenticator

NOW = 1.8e9
API_TOKEN = "tus_of-ann"


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Site:
    """An authenticator with both kinds of tokens."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        (folder / "tokens").write_text(f"ann:{hashlib.sha256(API_TOKEN.encode()).hexdigest()}\n")
        (folder / "secret").write_bytes(SECRET)
        self.keys = SecretFile(folder / "secret", parse_secret)
        verifier = SignedTokenVerifier(KeyFile(self.keys), ClaimRules(), self.clock)
        tokens = SecretFile(folder / "tokens", parse_api_tokens)
        rule = CookieRule("session", lambda origin: True)
        self.authenticator = TokenAuthenticator(tokens, verifier, rule)

    async def accept(self, token: str) -> None:
        await self.authenticator.authenticate(RequestContext("GET", "/", lower(bearer(token))))

    def known(self, token: str) -> Principal | None:
        return self.authenticator.known(lower(bearer(token)))


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(secret_files, "LOOK_INTERVAL", 3600.0)
    return Site(tmp_path)


async def test_signed_token_is_known_from_its_verification_to_its_expiry(site: Site) -> None:
    token = with_secret(SECRET, claims_of("ann", exp=NOW + 100))
    assert site.known(token) is None
    await site.accept(token)
    assert site.known(token) == Principal("ann")
    site.clock.now += 129  # within the leeway
    assert site.known(token) == Principal("ann")
    site.clock.now += 1
    assert site.known(token) is None


async def test_api_token_is_known(site: Site) -> None:
    assert site.known(API_TOKEN) == Principal("ann")
    assert site.known(f"{API_TOKEN}, {API_TOKEN}") is None
    assert site.known("another") is None
    assert site.known("") is None


async def test_token_in_a_cookie_is_left_to_the_check_of_its_origin(site: Site) -> None:
    assert site.authenticator.known({}) is None
    assert site.authenticator.known({"cookie": f"session={API_TOKEN}"}) is None
    assert site.authenticator.known({"authorization": f"Basic {API_TOKEN}"}) is None


async def test_nothing_is_known_when_it_is_time_to_look_at_a_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token = with_secret(SECRET, claims_of("ann", exp=NOW + 100))
    await site.accept(token)
    monkeypatch.setattr(secret_files, "LOOK_INTERVAL", 0.0)
    assert site.known(token) is None
    assert site.known(API_TOKEN) is None


async def test_changed_keys_make_tokens_unknown(site: Site) -> None:
    token = with_secret(SECRET, claims_of("ann", exp=NOW + 100))
    await site.accept(token)
    site.keys.changes += 1
    assert site.known(token) is None


async def test_keys_of_an_endpoint_are_not_fresh_before_they_are_fetched() -> None:
    assert not KeyEndpoint("http://127.0.0.1:9/keys").is_fresh
