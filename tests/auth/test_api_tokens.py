"""API tokens: their file, their digests, and the re-reading of a changed file."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from tusd_py.auth import secret_files
from tusd_py.auth.api_tokens import new_token, parse_api_tokens, principal_of
from tusd_py.auth.secret_files import SecretFile
from tusd_py.contracts.auth import Principal

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture(autouse=True)
def _looks_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_files, "LOOK_INTERVAL", 0.0)


def test_token_is_found_by_its_digest() -> None:
    tokens = parse_api_tokens(f"# of the CI\n\nann:{DIGEST}\n".encode())
    assert principal_of("secret", tokens) == Principal("ann")
    assert principal_of("secret ", tokens) is None
    assert principal_of(DIGEST, tokens) is None
    assert principal_of("\udcff", tokens) is None


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ("uploads:admin", {"uploads:admin"}),
        ("uploads:read,uploads:write", {"uploads:read", "uploads:write"}),
        ("uploads:read, uploads:delete", {"uploads:read", "uploads:delete"}),
    ],
)
def test_scopes_follow_the_digest(scopes: str, expected: set[str]) -> None:
    principal = principal_of("secret", parse_api_tokens(f"ann:{DIGEST.upper()}:{scopes}".encode()))
    assert principal is not None
    assert principal.scopes == expected


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n# nothing\n",
        "ann",
        "ann:secret",
        f"ann:{DIGEST[:-1]}",
        f":{DIGEST}",
        f" :{DIGEST}",
        f"a\x07b:{DIGEST}",
        f"{'a' * 256}:{DIGEST}",
        f"ann:{DIGEST}:",
        f"ann:{DIGEST}:uploads:everything",
        f"ann:{DIGEST}\nbob:{DIGEST}",
        f"ann:{DIGEST}:uploads:admin:more",
    ],
)
def test_malformed_file_is_refused_without_a_digest_in_the_reason(content: str) -> None:
    with pytest.raises(ValueError, match=r"line \d|there is no token") as refusal:
        parse_api_tokens(content.encode())
    assert DIGEST[:20] not in str(refusal.value)


def test_new_token_has_a_line_that_the_file_takes() -> None:
    token, line = new_token("ann", ["uploads:read"])
    assert token not in line
    principal = principal_of(token, parse_api_tokens(line.encode()))
    assert principal == Principal("ann", frozenset({"uploads:read"}))
    assert new_token("ann")[0] != token


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\n"])
def test_new_token_needs_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="a name has"):
        new_token(name)


async def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ann:{DIGEST}\n")
    file = SecretFile(path, parse_api_tokens)
    assert principal_of("secret", file.value) == Principal("ann")
    path.write_text(f"robert:{DIGEST}\n")
    await file.refresh()
    assert principal_of("secret", file.value) == Principal("robert")
    assert file.changes == 1


@pytest.mark.parametrize("change", ["malformed", "empty", "removed", "a folder"])
async def test_unreadable_change_leaves_the_file_as_it_was(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ann:{DIGEST}\n")
    file = SecretFile(path, parse_api_tokens)
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "removed":
        path.write_text("" if change == "empty" else "nonsense")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert principal_of("secret", file.value) == Principal("ann")
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


async def test_file_that_is_repaired_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"ann:{DIGEST}\n")
    file = SecretFile(path, parse_api_tokens)
    path.write_text("nonsense")
    await file.refresh()
    replacement = tmp_path / "new"
    replacement.write_text(f"bob:{DIGEST}\n")
    os.replace(replacement, path)
    await file.refresh()
    assert principal_of("secret", file.value) == Principal("bob")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_file_that_cannot_be_used_is_refused_with_its_path(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        SecretFile(path, parse_api_tokens)
