"""Signatures of capabilities, downloads and creations: what they cover, and that nothing else verifies."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tusd_py import UrlSigner
from tusd_py.auth.signatures import (
    MAX_LENGTH,
    Capability,
    CreationGrant,
    Expired,
    new_grant,
    read_capability,
    read_creation,
    sign_capability,
    sign_creation,
    sign_download,
    verify_download,
)
from tusd_py.auth.signing_keys import MAX_KEYS, SigningKeys, parse_signing_keys
from tusd_py.core.metadata import parse_metadata, with_pairs
from tusd_py.core.redaction import without_signatures, without_signatures_within

NOW = 1_700_000_000
UPLOAD = "24e533e02ec3bc40c387f1a0e460e216"
CAPABILITY = Capability(NOW + 10, 1_699_999_999_123_456, may_terminate=True)
OLD, NEW = "11" * 32, "ab" * 32


def keys_of(*lines: str) -> SigningKeys:
    return parse_signing_keys("\n".join(lines).encode())


KEYS = keys_of(NEW)
GRANT = new_grant(NOW + 10, owner="ann", max_size=5, types=["image/*"], metadata={"project": "ü, =", "empty": ""})

SIGNATURES: dict[str, tuple[str, Callable[[SigningKeys, str, float], object]]] = {
    "capability": (
        sign_capability(KEYS, UPLOAD, CAPABILITY),
        lambda keys, text, now: read_capability(keys, UPLOAD, text, now),
    ),
    "download": (
        sign_download(KEYS, UPLOAD, NOW + 10),
        lambda keys, text, now: verify_download(keys, UPLOAD, text, now),
    ),
    "creation": (sign_creation(KEYS, GRANT), read_creation),
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_signature_is_good_until_it_expires(kind: str) -> None:
    text, read = SIGNATURES[kind]
    read(KEYS, text, NOW)
    read(KEYS, text, NOW + 9.9)
    for now in (NOW + 10, NOW + 1e9):
        with pytest.raises(Expired, match="has expired"):
            read(KEYS, text, now)


def test_what_was_signed_is_read() -> None:
    assert read_capability(KEYS, UPLOAD, SIGNATURES["capability"][0], NOW) == CAPABILITY
    assert read_creation(KEYS, SIGNATURES["creation"][0], NOW) == GRANT
    assert not read_capability(
        KEYS, UPLOAD, sign_capability(KEYS, UPLOAD, Capability(NOW + 1, 0, may_terminate=False)), NOW
    ).may_terminate


@pytest.mark.parametrize("kind", SIGNATURES)
def test_no_other_character_is_accepted_anywhere(kind: str) -> None:
    text, read = SIGNATURES[kind]
    for place in range(len(text)):
        for letter in string.ascii_letters + string.digits + "-_.=+/\x00\xff":
            if letter != text[place]:
                with pytest.raises(ValueError, match=r"\w"):
                    read(KEYS, text[:place] + letter + text[place + 1 :], NOW)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_other_text_is_refused(kind: str) -> None:
    text, read = SIGNATURES[kind]
    changed = [text[:length] for length in range(len(text))]
    changed += [text + more for more in ("=", ".", "A", "\n", " ", ".A")]
    changed += [f" {text}", f".{text}", text.upper(), text.replace("1.", "2.", 1), text.replace("1.", "01.", 1)]
    changed += ["", ".", "1", "1.", "1..", "1...", "....", "A" * 100_000, "1." * 5000, "1.9999999999." + "é"]
    for other in changed:
        with pytest.raises(ValueError, match=r"\w"):
            read(KEYS, other, NOW)


def test_signature_is_for_one_upload_and_one_purpose() -> None:
    other = UPLOAD[:-1] + "7"
    with pytest.raises(ValueError, match="not accepted"):
        read_capability(KEYS, other, SIGNATURES["capability"][0], NOW)
    with pytest.raises(ValueError, match="not accepted"):
        verify_download(KEYS, other, SIGNATURES["download"][0], NOW)
    for kind, (_, read) in SIGNATURES.items():
        for other_kind, (text, _) in SIGNATURES.items():
            if kind != other_kind:
                with pytest.raises(ValueError, match="not accepted"):
                    read(KEYS, text, NOW)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_every_key_of_the_file_verifies_and_no_other(kind: str) -> None:
    text, read = SIGNATURES[kind]
    for keys in (keys_of(NEW, OLD), keys_of(OLD, NEW)):
        read(keys, text, NOW)
    with pytest.raises(ValueError, match="not accepted"):
        read(keys_of(OLD), text, NOW)


def test_first_key_signs() -> None:
    text = sign_download(keys_of(OLD, NEW), UPLOAD, NOW + 10)
    verify_download(keys_of(OLD), UPLOAD, text, NOW)
    with pytest.raises(ValueError, match="not accepted"):
        verify_download(keys_of(NEW), UPLOAD, text, NOW)


def test_grants_differ_and_name_one_upload_each() -> None:
    first, second = new_grant(NOW), new_grant(NOW)
    assert first.upload_id != second.upload_id
    again = read_creation(keys_of(OLD), sign_creation(keys_of(OLD), CreationGrant(first.nonce, NOW + 99)), NOW)
    assert again.upload_id == first.upload_id
    assert len(first.upload_id) == 32


@pytest.mark.parametrize(
    "arguments",
    [
        {"owner": " ann"},
        {"owner": "a" * 256},
        {"owner": "a\nb"},
        {"max_size": -1},
        {"max_size": 1 << 63},
        {"types": ["image"]},
        {"types": ["*/*"]},
        {"types": ["image/*,text/plain"]},
        {"metadata": {"": "a"}},
        {"metadata": {"a b": "c"}},
        {"metadata": {"a,b": "c"}},
        {"metadata": {"ä": "c"}},
        {"metadata": {"a": "c" * MAX_LENGTH}},
    ],
    ids=str,
)
def test_grant_that_no_upload_can_have_is_not_signed(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        sign_creation(KEYS, new_grant(NOW, **arguments))  # type: ignore[arg-type]


def test_nothing_that_is_printed_holds_a_secret() -> None:
    assert "ab" * 8 not in repr(KEYS)
    assert repr(bytes.fromhex(NEW)) not in repr(KEYS)
    assert GRANT.nonce not in repr(GRANT)


# The file of keys.


def test_file_has_keys_empty_lines_and_comments() -> None:
    keys = parse_signing_keys(f"# new\r\n{NEW.upper()}\r\n\n  {OLD}  \n".encode())
    assert keys.keys == (bytes.fromhex(NEW), bytes.fromhex(OLD))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"# none", b"ab" * 31, b"ab" * 33, b"xy" * 32, f"{NEW} {OLD}".encode(), b"\xff" * 64],
    ids=ascii,
)
def test_malformed_file_is_refused_without_its_content(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse_signing_keys(content)
    assert "abab" not in str(raised.value)


def test_number_of_keys_is_bounded() -> None:
    assert len(keys_of(*[NEW] * MAX_KEYS).keys) == MAX_KEYS
    with pytest.raises(ValueError, match="more than"):
        keys_of(*[NEW] * (MAX_KEYS + 1))


# The signer of applications.


def test_signer_follows_the_file_and_survives_its_loss(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    signer = UrlSigner(file, "https://example.org/files/")

    def verifies(line: str) -> bool:
        url = urlsplit(signer.download(UPLOAD, expires="1m"))
        assert (url.netloc, url.path) == ("example.org", f"/files/{UPLOAD}")
        try:
            verify_download(keys_of(line), UPLOAD, url.query.removeprefix("d="), 0)
        except ValueError:
            return False
        return True

    assert verifies(OLD)
    file.write_text(f"{NEW}\n{OLD}")
    assert verifies(NEW)
    for change in (lambda: file.write_text("garbage"), file.unlink):
        change()
        assert verifies(NEW)


def test_signer_takes_units(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(NEW)
    signer = UrlSigner(str(tmp_path / "keys"), "https://example.org/files")
    url = signer.creation(expires="1h", max_size="5KiB", types=["IMAGE/PNG "], metadata={"a": "b"})
    grant = read_creation(KEYS, url.removeprefix("https://example.org/files?t="), 0)
    assert (grant.max_size, grant.types, dict(grant.metadata), grant.owner) == (5 << 10, ("image/png",), {"a": "b"}, "")


@pytest.mark.parametrize("expires", [0, -1, "", "soon", float("nan"), float("inf"), True, None])
def test_signer_refuses_a_time_that_is_none(tmp_path: Path, expires: object) -> None:
    (tmp_path / "keys").write_text(NEW)
    signer = UrlSigner(tmp_path / "keys", "https://example.org/files")
    with pytest.raises(ValueError, match="the time to the expiry"):
        signer.creation(expires=expires)  # type: ignore[arg-type]


@pytest.mark.parametrize("upload_id", ["", "a/b", "a?b", "ä", "a" * 129])
def test_signer_refuses_what_is_no_id(tmp_path: Path, upload_id: str) -> None:
    (tmp_path / "keys").write_text(NEW)
    with pytest.raises(ValueError, match="the id"):
        UrlSigner(tmp_path / "keys", "https://example.org/files").download(upload_id, expires=1)


def test_signer_refuses_a_url_with_a_query(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(NEW)
    with pytest.raises(ValueError, match="neither a query"):
        UrlSigner(tmp_path / "keys", "https://example.org/files?a=b")


# Redaction and metadata.


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("k=1", ""),
        ("a=1&k=2&b=3&t=4&d=5", "a=1&b=3"),
        ("k=1&k=2", ""),
        ("k", ""),
        ("key=1&tt=2", "key=1&tt=2"),
    ],
)
def test_signatures_are_taken_out_of_a_query(query: str, kept: str) -> None:
    assert without_signatures(query) == kept


def test_signatures_are_taken_out_of_a_list_of_urls() -> None:
    text = "final;https://h/files/a?k=1.2.3 /files/b?x=y&k=1#f /files/c?x=y"
    assert without_signatures_within(text) == "final;https://h/files/a /files/b?x=y#f /files/c?x=y"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://h/?next=/files/a?k=1.2.3-_A", "https://h/?next=/files/a"),
        ("https://h/?next=/files/a?x=y&k=1.2.3&z=1", "https://h/?next=/files/a?x=y&z=1"),
        ("https://h/?next=%2Ffiles%2Fa%3Fk%3D1.2.3&z=1", "https://h/?next=%2Ffiles%2Fa&z=1"),
        ("/login;next=%2ffiles%2fa%3fx%3dy%26d%3d1.2.3", "/login;next=%2ffiles%2fa%3fx%3dy"),
        ("https://h/?back=1.5&break=1.2", "https://h/?back=1.5&break=1.2"),
    ],
)
def test_signatures_are_taken_out_of_urls_within_urls(text: str, kept: str) -> None:
    assert without_signatures_within(text) == kept


@pytest.mark.parametrize("text", ["", "name YQ==", "name YQ==, other Yg==,", "empty,name YQ=="])
def test_pairs_of_a_grant_take_the_place_of_those_of_the_client(text: str) -> None:
    before = parse_metadata(text)
    assert parse_metadata(with_pairs(text, {"name": "é"})) == before | {"name": "é".encode()}
    assert with_pairs(text, {"more": ""}).split(",")[-1] == "more"
