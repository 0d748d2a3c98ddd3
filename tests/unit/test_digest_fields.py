"""`Repr-Digest` and the metadata `sha256`, as the creation of an upload may name them."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, strategies as st

from tests.support.properties import on_any_machine
from tusd_py.core.conditions import NO_CONDITIONS, Conditions, decode_conditions
from tusd_py.http.digest_fields import InvalidDigest, digests_of, parse_repr_digest

DATA = b"all the bytes"
SHA256, SHA512 = hashlib.sha256(DATA), hashlib.sha512(DATA)


def item(digest: bytes) -> str:
    return f":{base64.b64encode(digest).decode()}:"


OF_256, OF_512 = f"sha-256={item(SHA256.digest())}", f"sha-512={item(SHA512.digest())}"
EXPECTED_256, EXPECTED_512 = ("sha-256", SHA256.hexdigest()), ("sha-512", SHA512.hexdigest())


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (OF_256, [EXPECTED_256]),
        (OF_512, [EXPECTED_512]),
        (f"{OF_256}, {OF_512}", [EXPECTED_256, EXPECTED_512]),
        (f"{OF_512},{OF_256}", [EXPECTED_512, EXPECTED_256]),
        (f"  {OF_256}\t", [EXPECTED_256]),
        (f"{OF_256};p=1; q, {OF_512}", [EXPECTED_256, EXPECTED_512]),
        (f"md5={item(b'x' * 16)}, {OF_256}", [EXPECTED_256]),
        (f'a="b, c \\" d", b=(1 2), c=?1, d=-1.5, e=f/g, h, {OF_256}', [EXPECTED_256]),
        ("unixsum=1", []),
        (f"{OF_256}, {OF_256}", [EXPECTED_256, EXPECTED_256]),
    ],
)
def test_digests_of_known_algorithms_are_found(field: str, expected: list[tuple[str, str]]) -> None:
    assert parse_repr_digest(field) == expected


@pytest.mark.parametrize(
    "field",
    [
        "sha-256",
        "sha-256=?1",
        "sha-256=1",
        "sha-256=::",
        "sha-256=:=:",
        "sha-256=:!:",
        f"sha-256={item(b'x' * 31)}",
        f"sha-256={item(SHA512.digest())}",
        f"sha-512={item(SHA256.digest())}",
        f"sha-256={SHA256.hexdigest()}",
        f"sha-256:{SHA256.hexdigest()}",
        OF_256.upper(),
        f"{OF_256},",
        f"{OF_256}, ,{OF_512}",
        f"{OF_256} {OF_512}",
        f",{OF_256}",
        f"{OF_256}; =1",
        ", ".join(f"a{number}" for number in range(20)),
    ],
)
def test_malformed_field_is_refused(field: str) -> None:
    with pytest.raises(InvalidDigest, match="Repr-Digest"):
        parse_repr_digest(field)


@on_any_machine
@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_any_text_is_parsed_or_refused(field: str) -> None:
    try:
        parse_repr_digest(field)
    except InvalidDigest:
        return


def test_long_malformed_field_is_refused_soon() -> None:
    for field in (
        f"{OF_256}" + ";a" * 50_000,
        "a" * 100_000 + "!",
        "a=(" * 30_000,
        'a="' + "\\\\" * 50_000,
        " " * 99_999,
    ):
        with pytest.raises(InvalidDigest):
            parse_repr_digest(f"{field}!")


def test_metadata_in_either_case_counts_beside_the_field() -> None:
    for text in (SHA256.hexdigest(), SHA256.hexdigest().upper()):
        assert digests_of({"repr-digest": OF_512}, {"sha256": text.encode()}) == (EXPECTED_512, EXPECTED_256)
        assert digests_of({}, {"sha256": text.encode()}) == (EXPECTED_256,)
    assert digests_of({"repr-digest": ""}, {}) == ()


@pytest.mark.parametrize("value", [b"", b"abc", b"0" * 63, b"0" * 65, b"g" * 64, b"0" * 64 + b"\n", b"\xff" * 64])
def test_malformed_metadata_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidDigest, match="sha256"):
        digests_of({}, {"sha256": value})


def test_conditions_are_kept_as_text() -> None:
    conditions = Conditions((EXPECTED_256, EXPECTED_512), ("image/*", "application/pdf"))
    assert decode_conditions(conditions.encode()) == conditions
    assert decode_conditions(conditions.encode() + " later=1 word") == conditions
    assert (NO_CONDITIONS.encode(), decode_conditions("")) == ("", NO_CONDITIONS)
    assert Conditions((EXPECTED_256, EXPECTED_256)).encode() == f"sha-256={SHA256.hexdigest()}"
