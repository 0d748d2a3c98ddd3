"""API tokens: their file, their digests, and the re-reading of a changed file."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.auth.site import look_every_time
from tusd_py.auth.api_tokens import (
    ApiTokens,
    new_token,
    parse_api_tokens,
    parse_changed_api_tokens,
    principal_of,
)
from tusd_py.auth.secret_files import SecretFile
from tusd_py.contracts.auth import Principal

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture(autouse=True)
def _looks_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    look_every_time(monkeypatch)


def written(path: Path, content: bytes = f"ann:{DIGEST}\n".encode()) -> Path:
    path.write_bytes(content)
    return path


def token_file(path: Path) -> SecretFile[ApiTokens]:
    return SecretFile(path, parse_api_tokens, parse_changed_api_tokens)


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


@pytest.mark.parametrize("text", [b"", b"\n"])
@pytest.mark.parametrize("letters", [str.lower, str.upper])
def test_digest_of_no_token_is_refused(text: bytes, letters: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match="line 2: this is the SHA-256 of no token"):
        parse_api_tokens(f"ann:{DIGEST}\nci:{letters(hashlib.sha256(text).hexdigest())}:uploads:admin".encode())


async def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "tokens")
    file = token_file(path)
    assert principal_of("secret", file.value) == Principal("ann")
    path.write_text(f"robert:{DIGEST}\n")
    await file.refresh()
    assert principal_of("secret", file.value) == Principal("robert")
    assert file.changes == 1


@pytest.mark.parametrize("content", ["", "\n", f"#ann:{DIGEST}\n"])
async def test_token_that_is_taken_out_last_is_revoked(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "tokens")
    file = token_file(path)
    path.write_text(content)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert principal_of("secret", file.value) is None
    assert [record.message for record in caplog.records] == [
        f"{path}: there is no token in it any more, so that none is accepted"
    ]


@pytest.mark.parametrize(
    "fault", [b"bob", b"bob:secret", b"bob:" + DIGEST[:-1].encode(), b"\xff:" + DIGEST.encode()], ids=range(4)
)
async def test_token_is_revoked_beside_a_malformed_line(
    tmp_path: Path, fault: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = hashlib.sha256(b"of eve").hexdigest()
    path = written(tmp_path / "tokens", f"ann:{DIGEST}\nbob:{'a' * 64}\neve:{other}\n".encode())
    file = token_file(path)
    path.write_bytes(fault + f"\neve:{other}\n".encode())
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert principal_of("secret", file.value) is None
    assert principal_of("of eve", file.value) == Principal("eve")
    assert len(caplog.records) == 1
    assert "line 1: " in caplog.text
    assert "the lines that are well formed are in effect" in caplog.text
    assert DIGEST[:20] not in caplog.text


@pytest.mark.parametrize("change", ["malformed", "removed", "a folder"])
async def test_unreadable_change_leaves_the_file_as_it_was(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "tokens")
    file = token_file(path)
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change == "malformed":
        path.write_text("nonsense")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert principal_of("secret", file.value) == Principal("ann")
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


async def test_file_that_is_repaired_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "tokens")
    file = token_file(path)
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
