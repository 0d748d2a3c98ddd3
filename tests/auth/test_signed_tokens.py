"""JSON Web Tokens: keys bound to algorithms, forged headers, claims, and the memory of accepted tokens."""

from __future__ import annotations

import base64
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from joserfc import jwk

from tests.auth.issuer import (
    ALGORITHMS,
    SigningKey,
    claims_of,
    handmade,
    key_set,
    public_pem,
    signed,
    signed_by_hand,
    with_secret,
)
from tests.auth.site import look_every_time
from tusd_py.auth import signed_tokens
from tusd_py.auth.claims import ClaimRules, accept
from tusd_py.auth.config import JwtConfig
from tusd_py.auth.keys import KeySet, VerificationKey, parse_key_file, parse_key_set, parse_secret
from tusd_py.auth.make import make_authenticator
from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signed_token_verifier import KeyFile, SignedTokenVerifier
from tusd_py.auth.signed_tokens import MAX_TRIED_KEYS, UnknownKey, verified_claims
from tusd_py.contracts.auth import ExpiredCredentials, InvalidCredentials, Principal

pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # of keys and names made here

SECRET = b"a secret of at least thirty-two bytes"
RULES = ClaimRules()
NOW = time.time()


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {algorithm: SigningKey(algorithm) for algorithm in ALGORITHMS}


# Keys.


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_is_verified_by_the_public_key_in_pem(keys: dict[str, SigningKey], algorithm: str) -> None:
    claims = claims_of()
    assert verified_claims(keys[algorithm].sign(claims), parse_key_file(keys[algorithm].pem)) == claims


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_is_verified_by_a_key_set(keys: dict[str, SigningKey], algorithm: str) -> None:
    claims = claims_of()
    assert verified_claims(keys[algorithm].sign(claims), parse_key_file(key_set(*keys.values()))) == claims


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_token_is_verified_by_the_secret_without_its_final_newline(algorithm: str, ending: bytes) -> None:
    claims = claims_of()
    assert verified_claims(with_secret(SECRET, claims, algorithm), parse_secret(SECRET + ending)) == claims


def test_spaces_of_a_secret_count() -> None:
    token = with_secret(SECRET + b" ", claims_of())
    verified_claims(token, parse_secret(SECRET + b" \n"))
    with pytest.raises(InvalidCredentials):
        verified_claims(token, parse_secret(SECRET))


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n", b"-----BEGIN PUBLIC KEY-----", b"ssh-ed25519 AAAA"])
def test_what_is_no_secret_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"empty|no secret"):
        parse_secret(content)


def test_secret_that_can_be_tried_out_is_refused() -> None:
    with pytest.raises(ValueError, match="14 bytes, better 32 random ones, not 13"):
        parse_secret(b"thirteen byte\n")
    parse_secret(b"fourteen bytes\n")


@pytest.mark.parametrize(("secret", "warnings"), [(b"fourteen bytes\n", 1), (SECRET[:31] + b"\n", 1), (SECRET[:32], 0)])
def test_short_secret_is_warned_of_without_the_secret(
    tmp_path: Path, secret: bytes, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(secret)
    make_authenticator(JwtConfig(secret_file=path), None, "", lambda origin: False)
    assert caplog.text.count(f"{path}: the secret has less than 32 bytes") == len(caplog.records) == warnings
    assert secret.decode() not in caplog.text


def test_several_keys_in_pem_verify(keys: dict[str, SigningKey]) -> None:
    both = parse_key_file(keys["RS256"].pem + b"\n# the next one\n" + keys["ES256"].pem)
    for algorithm in ("RS256", "ES256"):
        verified_claims(keys[algorithm].sign(claims_of()), both)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        b"{}",
        b"{",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [null, 5, "a", []]}',
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        b'{"keys": ' + b"[" * 100_000,
    ],
)
def test_file_without_usable_key_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"key|JSON"):
        parse_key_file(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "RS256"},
        {"alg": 5},
        {"kid": 5},
        {"crv": "secp256k1"},
        {"crv": ["P-256"]},
        {"x": "AAAA"},
        {"x": None},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["EC"]},
    ],
)
def test_unusable_key_of_a_set_is_passed_over(keys: dict[str, SigningKey], changes: dict[str, Any]) -> None:
    good, other = keys["RS256"], keys["ES256"]
    found = parse_key_set(json.dumps({"keys": [other.entry(**changes), good.entry()]}).encode())
    assert [key.algorithms for key in found] == [parse_key_file(good.pem)[0].algorithms]


def test_weak_rsa_key_is_refused(keys: dict[str, SigningKey]) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.raises(ValueError, match="2048 bits"):
        parse_key_file(public_pem(weak))
    entry = jwk.RSAKey.import_key(weak).as_dict(private=False)
    content = json.dumps({"keys": [entry, keys["ES256"].entry()]}).encode()
    assert len(parse_key_set(content)) == 1


def test_verification_neither_warns_nor_changes_the_filters_of_warnings(
    keys: dict[str, SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filters belong to the whole process, also to other threads of an application."""
    weak = jwk.RSAKey.import_key(rsa.generate_private_key(65537, 1024)).as_dict(private=False)
    content = json.dumps({"keys": [weak, *(key.entry() for key in keys.values())]}).encode()
    tokens = [key.sign(claims_of()) for key in keys.values()]
    with monkeypatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(warnings, "catch_warnings", None)
        known = parse_key_file(content)
        for token in tokens:
            verified_claims(token, known)
        verified_claims(with_secret(SECRET, claims_of()), parse_secret(SECRET))


ODD_KEYS = {
    "secp224r1": lambda: public_pem(ec.generate_private_key(ec.SECP224R1())),
    "brainpoolP256r1": lambda: public_pem(ec.generate_private_key(ec.BrainpoolP256R1())),
    "secp256k1": lambda: public_pem(ec.generate_private_key(ec.SECP256K1())),
    "X25519": lambda: public_pem(x25519.X25519PrivateKey.generate()),
    "of an algorithm that no package knows": lambda: (
        b"-----BEGIN PUBLIC KEY-----\n"
        + base64.b64encode(bytes.fromhex("3014300b0609608648016503040312030500") + b"\x00\x00\x00\x00")
        + b"\n-----END PUBLIC KEY-----\n"
    ),
}


@pytest.mark.parametrize("kind", ODD_KEYS)
def test_public_key_that_verifies_no_token_is_refused_with_a_sentence(keys: dict[str, SigningKey], kind: str) -> None:
    odd = ODD_KEYS[kind]()
    for content in (odd, odd + keys["ES256"].pem, keys["ES256"].pem + odd):
        with pytest.raises(ValueError, match="a public key is malformed, or neither RSA"):
            parse_key_file(content)


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.BrainpoolP256R1(), ec.SECP256K1()], ids=lambda curve: curve.name)
def test_key_of_an_odd_curve_in_a_set_is_passed_over(keys: dict[str, SigningKey], curve: ec.EllipticCurve) -> None:
    point = ec.generate_private_key(curve).public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode() for number in (point.x, point.y))
    for name in (curve.name, "P-256"):
        odd = {"kty": "EC", "crv": name, "x": x, "y": y, "kid": "odd"}
        content = json.dumps({"keys": [odd, keys["ES256"].entry()]}).encode()
        assert len(parse_key_set(content)) == 1


def test_key_that_the_packages_refuse_in_this_build_is_passed_over(
    keys: dict[str, SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build for FIPS, for example, knows no Ed448 and raises `UnsupportedAlgorithm` for it."""
    imported = jwk.import_key

    def import_key(entry: Any) -> Any:
        if entry["kty"] == "OKP":
            raise UnsupportedAlgorithm("not in this build")
        return imported(entry)

    monkeypatch.setattr(jwk, "import_key", import_key)
    assert len(parse_key_set(key_set(keys["Ed25519"], keys["ES256"]))) == 1


def test_signature_that_the_packages_refuse_in_this_build_is_none(
    keys: dict[str, SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = parse_key_file(keys["ES256"].pem)

    def verify(*arguments: Any) -> bool:
        raise UnsupportedAlgorithm("not in this build")

    monkeypatch.setattr(signed_tokens.ALGORITHMS["ES256"], "verify", verify)
    assert_refused(keys["ES256"].sign(claims_of()), known)


def test_symmetric_key_of_a_set_verifies_nothing() -> None:
    secret = jwk.OctKey.import_key(SECRET)
    with pytest.raises(ValueError, match="no key that can verify"):
        parse_key_set(json.dumps({"keys": [secret.as_dict(private=True)]}).encode())


# Forged tokens.


def assert_refused(token: str, keys: KeySet) -> None:
    with pytest.raises(InvalidCredentials) as refusal:
        verified_claims(token, keys)
    assert len(token) < 10 or token not in str(refusal.value)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("kind", ["secret", "public key"])
def test_token_without_signature_is_refused(keys: dict[str, SigningKey], algorithm: str, kind: str) -> None:
    known = parse_secret(SECRET) if kind == "secret" else parse_key_file(keys["ES256"].pem)
    unsigned = handmade({"alg": algorithm}, claims_of())
    assert_refused(unsigned, known)
    assert_refused(unsigned + "AAAA", known)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "Ed25519"])
def test_public_key_used_as_a_secret_is_refused(keys: dict[str, SigningKey], algorithm: str) -> None:
    key = keys[algorithm]
    for content in (key.pem, key_set(key)):
        assert_refused(signed_by_hand(key.pem, {"alg": "HS256"}, claims_of()), parse_key_file(content))


def test_signature_of_another_algorithm_of_the_same_key_type_is_refused(keys: dict[str, SigningKey]) -> None:
    only_rs256 = json.dumps({"keys": [keys["RS256"].entry(alg="RS256")]}).encode()
    token = signed(keys["RS256"].private, {"alg": "PS256"}, claims_of())
    assert_refused(token, parse_key_file(only_rs256))


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": "own"},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "http://127.0.0.1:1/keys"},
    ],
)
def test_key_named_by_the_token_is_not_used(keys: dict[str, SigningKey], header: dict[str, Any]) -> None:
    attacker = SigningKey("ES256")
    if header.get("jwk"):
        header = {"jwk": attacker.entry()}
    assert_refused(attacker.sign(claims_of(), **header), parse_key_file(keys["ES256"].pem))
    assert_refused(attacker.sign(claims_of(), **header), parse_key_file(key_set(keys["ES256"])))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 5},
        {"crit": ["unknown"]},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"alg": None},
        {"alg": ["HS256"]},
        {"kid": 5},
        {"kid": ["a"]},
    ],
)
def test_header_with_unknown_demands_is_refused(header: dict[str, Any]) -> None:
    verified_claims(signed_by_hand(SECRET, {"alg": "HS256"}, claims_of()), parse_secret(SECRET))
    assert_refused(signed_by_hand(SECRET, {"alg": "HS256", **header}, claims_of()), parse_secret(SECRET))


def test_harmless_header_fields_are_ignored() -> None:
    token = with_secret(SECRET, claims_of(), typ="at+jwt", kid="of the secret", jti="5", custom={"a": 1})
    verified_claims(token, parse_secret(SECRET))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b",
        "a.b.c",
        "....",
        "a.b.c.d.e",
        "é.b.c",
        "eyJ.eyJ.AA",
        "W10.W10.AA",
        "bnVsbA.bnVsbA.AA",
        "A" * 20_000,
        "a.b." + "c" * 20_000,
        "eyJhbGciOiJIUzI1NiJ9.e30.AA AA",
        "eyJhbGciOiJIUzI1NiJ9.e30.AAAA\n",
    ],
)
def test_malformed_token_is_refused(token: str) -> None:
    assert_refused(token, parse_secret(SECRET))


def test_changed_token_is_refused() -> None:
    header, body, signature = with_secret(SECRET, claims_of("ann")).split(".")
    other = with_secret(SECRET, claims_of("bob")).split(".")[1]
    assert_refused(f"{header}.{other}.{signature}", parse_secret(SECRET))
    assert_refused(f"{header}.{body}.{signature[:-4]}AAAA", parse_secret(SECRET))
    assert_refused(f"{header}.{body}.{signature[:-2]}", parse_secret(SECRET))


def test_many_keys_without_names_are_tried_up_to_a_bound(keys: dict[str, SigningKey]) -> None:
    strangers: list[VerificationKey] = list(parse_key_file(keys["ES256"].pem)) * 100
    assert_refused(SigningKey("ES256").sign(claims_of()), tuple(strangers))


def test_last_of_the_keys_that_are_tried_verifies(keys: dict[str, SigningKey]) -> None:
    strangers = parse_key_file(keys["ES256"].pem) * (MAX_TRIED_KEYS - 1)
    other = SigningKey("ES256")
    verified_claims(other.sign(claims_of()), strangers + parse_key_file(other.pem))


def test_key_among_too_many_is_not_looked_for_elsewhere(keys: dict[str, SigningKey]) -> None:
    strangers = parse_key_file(keys["ES256"].pem) * (MAX_TRIED_KEYS + 1)
    with pytest.raises(InvalidCredentials, match="whose kid leaves others open") as refusal:
        verified_claims(SigningKey("ES256").sign(claims_of()), strangers)
    assert not isinstance(refusal.value, UnknownKey)


def test_long_header_and_long_signature_are_verified() -> None:
    chain = ["A" * 1000] * 3
    verified_claims(with_secret(SECRET, claims_of(), x5c=chain), parse_secret(SECRET))
    private = rsa.generate_private_key(65537, 6272)
    token = signed(jwk.RSAKey.import_key(private), {"alg": "RS256"}, claims_of())
    verified_claims(token, parse_key_file(public_pem(private)))


# Claims.


@pytest.mark.parametrize(
    ("claims", "owner"),
    [
        ({"sub": "ann"}, "ann"),
        ({"sub": 42}, "42"),
        ({"sub": 42.0}, "42"),
        ({"sub": 0.5}, "0.5"),
        ({"sub": "größe|x y"}, "größe|x y"),
        ({"sub": "ann", "exp": NOW + 1}, "ann"),
        ({"sub": "ann", "exp": NOW - 29}, "ann"),
        ({"sub": "ann", "nbf": NOW + 29}, "ann"),
        ({"sub": "ann", "iat": NOW + 500}, "ann"),
    ],
)
def test_claims_name_the_owner(claims: dict[str, Any], owner: str) -> None:
    assert accept(claims, RULES, NOW).principal.owner == owner


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": ""},
        {"sub": " "},
        {"sub": None},
        {"sub": True},
        {"sub": ["ann"]},
        {"sub": {"ann": 1}},
        {"sub": math.nan},
        {"sub": math.inf},
        {"sub": "a\x00b"},
        {"sub": "a\nb"},
        {"sub": "\ud800"},
        {"sub": "a" * 256},
        {"sub": "ann", "exp": NOW - 31},
        {"sub": "ann", "exp": "9999999999"},
        {"sub": "ann", "exp": True},
        {"sub": "ann", "exp": math.nan},
        {"sub": "ann", "exp": None},
        {"sub": "ann", "exp": 10**400},
        {"sub": "ann", "nbf": NOW + 31},
        {"sub": "ann", "nbf": "0"},
        {"sub": "ann", "tus_max_size": -1},
        {"sub": "ann", "tus_max_size": "5"},
        {"sub": "ann", "tus_max_size": 1.5},
        {"sub": "ann", "tus_max_size": True},
        {"sub": "ann", "tus_max_size": 1 << 63},
    ],
)
def test_claims_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidCredentials):
        accept(claims, RULES, NOW)


def test_token_that_is_good_but_for_its_end_has_expired() -> None:
    rules = ClaimRules(issuer="me", audience="you")
    expired = {"sub": "ann", "iss": "me", "aud": "you", "exp": NOW - 31}
    with pytest.raises(ExpiredCredentials):
        accept(expired, rules, NOW)
    faults = {"sub": "", "iss": "other", "aud": "other", "nbf": NOW + 31, "tus_max_size": -1}
    for name, value in faults.items():
        with pytest.raises(InvalidCredentials) as refusal:
            accept(expired | {name: value}, rules, NOW)
        assert not isinstance(refusal.value, ExpiredCredentials)


@pytest.mark.parametrize("issuer", [None, "", "https://issuer", "https://issuer.example/", ["https://issuer.example"]])
def test_token_of_another_issuer_is_refused(issuer: object) -> None:
    rules = ClaimRules(issuer="https://issuer.example")
    accept({"sub": "ann", "iss": "https://issuer.example"}, rules, NOW)
    with pytest.raises(InvalidCredentials, match="issuer"):
        accept({"sub": "ann", "iss": issuer}, rules, NOW)


@pytest.mark.parametrize("audience", ["uploads", ["other", "uploads"]])
def test_token_for_this_audience_is_accepted(audience: object) -> None:
    assert accept({"sub": "ann", "aud": audience}, ClaimRules(audience="uploads"), NOW).principal.owner == "ann"


@pytest.mark.parametrize("audience", [None, "upload", "uploads2", ["other"], [["uploads"]], {"uploads": 1}, 5])
def test_token_for_another_audience_is_refused(audience: object) -> None:
    with pytest.raises(InvalidCredentials, match="audience"):
        accept({"sub": "ann", "aud": audience}, ClaimRules(audience="uploads"), NOW)


@pytest.mark.parametrize(
    ("value", "is_admin"),
    [
        ("uploads:admin", True),
        ("openid uploads:admin profile", True),
        (["openid", "uploads:admin"], True),
        ("uploads:administrator", False),
        ("xuploads:admin", False),
        ("uploads:admin,openid", False),
        (["uploads:admin openid"], False),
        ([["uploads:admin"]], False),
        ({"uploads:admin": True}, False),
        (None, False),
        (True, False),
    ],
)
def test_scopes_match_whole(value: object, is_admin: bool) -> None:
    assert accept({"sub": "ann", "scope": value}, RULES, NOW).principal.is_admin is is_admin


def test_claims_of_other_names_are_read() -> None:
    rules = ClaimRules(owner_claim="https://example.org/user", scope_claim="roles")
    token = accept({"sub": "x", "https://example.org/user": "ann", "roles": ["uploads:admin"]}, rules, NOW)
    assert (token.principal.owner, token.principal.is_admin) == ("ann", True)


# The memory of accepted tokens.


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SecretFile[KeySet]:
    look_every_time(monkeypatch)
    (tmp_path / "secret").write_bytes(SECRET)
    return SecretFile(tmp_path / "secret", parse_secret)


async def test_token_is_verified_once_and_expires(
    secret_file: SecretFile[KeySet], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    verifier = SignedTokenVerifier(KeyFile(secret_file), RULES, clock)
    token = with_secret(SECRET, {"sub": "ann", "exp": NOW + 100})
    assert await verifier.principal_of(token) == Principal("ann")
    monkeypatch.setattr("tusd_py.auth.signed_token_verifier.verified_claims", None)  # a call would fail
    assert await verifier.principal_of(token) == Principal("ann")
    clock.now += 129
    assert await verifier.principal_of(token) == Principal("ann")
    clock.now += 1
    with pytest.raises(ExpiredCredentials):
        await verifier.principal_of(token)


async def test_changed_key_ends_the_tokens_of_the_earlier_one(secret_file: SecretFile[KeySet], tmp_path: Path) -> None:
    verifier = SignedTokenVerifier(KeyFile(secret_file), RULES)
    token = with_secret(SECRET, claims_of())
    await verifier.principal_of(token)
    (tmp_path / "secret").write_bytes(SECRET + b", and more")
    with pytest.raises(InvalidCredentials):
        await verifier.principal_of(token)
    await verifier.principal_of(with_secret(SECRET + b", and more", claims_of()))


async def test_odd_key_in_a_changed_file_leaves_the_earlier_ones_in_effect(
    keys: dict[str, SigningKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look_every_time(monkeypatch)
    path = tmp_path / "keys.pem"
    path.write_bytes(keys["ES256"].pem)
    verifier = SignedTokenVerifier(KeyFile(SecretFile(path, parse_key_file)), RULES)
    path.write_bytes(keys["ES256"].pem + ODD_KEYS["secp224r1"]())
    for number in range(3):
        assert (await verifier.principal_of(keys["ES256"].sign(claims_of(number)))).owner == str(number)
    assert [record.message.endswith("stays in effect") for record in caplog.records] == [True]


async def test_memory_of_tokens_is_bounded(secret_file: SecretFile[KeySet], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tusd_py.auth.signed_token_verifier.MAX_REMEMBERED", 5)
    verifier = SignedTokenVerifier(KeyFile(secret_file), RULES)
    for number in range(20):
        assert (await verifier.principal_of(with_secret(SECRET, claims_of(number)))).owner == str(number)
    assert len(verifier._accepted) == 5
