"""A server with authentication, its principals, and requests on their behalf."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.auth.issuer import claims_of, with_secret
from tests.support.harness import ServerProcess
from tests.support.wire.messages import TUS, Answer, creation_headers, patch_headers, path_of
from tests.support.wire.requests import request
from tusd_py.auth import secret_files

SECRET = b"a secret of at least thirty-two bytes"
OWNER, OTHER, ADMIN, READER, WRITER = "token-of-ann", "token-of-bob", "token-of-root", "read-of-ann", "write-of-ann"
LINES = {
    OWNER: ("ann", ""),
    OTHER: ("bob", ""),
    ADMIN: ("root", ":uploads:admin"),
    READER: ("ann", ":uploads:read"),
    WRITER: ("ann", ":uploads:write"),
}


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def token_files(folder: Path) -> dict[str, Any]:
    """Write the files with tokens and the secret; return the settings that name them."""
    lines = [f"{name}:{hashlib.sha256(token.encode()).hexdigest()}{scopes}" for token, (name, scopes) in LINES.items()]
    (folder / "tokens").write_text("\n".join(lines))
    (folder / "secret").write_bytes(SECRET + b"\n")
    return {"api_tokens_file": folder / "tokens", "jwt_secret_file": folder / "secret"}


def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every call of `SecretFile.refresh` look at the file, and wait for what it finds."""
    for name, seconds in {"LOOK_INTERVAL": 0.0, "WAIT_AFTER": 0.0, "SETTLING_TIME": 0.0, "LOOK_TIMEOUT": 60.0}.items():
        monkeypatch.setattr(secret_files, name, seconds)


def jwt_of(owner: object, **claims: Any) -> str:
    return with_secret(SECRET, claims_of(owner, **claims))


def ask(
    server: ServerProcess,
    token: str | None,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    return request(server.port, method, path, {**TUS, **bearer(token), **(headers or {})}, body)


def create(
    server: ServerProcess,
    token: str,
    length: int | None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> str:
    """Create an upload and return its path."""
    answer = ask(server, token, "POST", "/files", creation_headers(length, body) | dict(headers or {}), body)
    assert answer.status == 201, answer
    return path_of(answer)


def patch(server: ServerProcess, token: str | None, path: str, offset: int, body: bytes) -> Answer:
    return ask(server, token, "PATCH", path, patch_headers(offset), body)


def without_date(answer: Answer) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Return everything of an answer that the server decides."""
    return answer.status, tuple(field for field in answer.fields if field[0] != "date"), answer.body
