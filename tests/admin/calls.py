"""Requests to the administration API of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.wire.messages import TUS, Answer, path_of
from tests.support.wire.requests import request

TOKEN = "the-token-of-the-operator"
FIELDS = [
    "id", "url", "status", "offset", "length", "owner", "filename", "filetype", "metadata", "concatenation",
    "partial_ids", "created_at", "updated_at", "completed_at", "expires_at", "client", "locked",
]  # fmt: skip


def token_file(folder: Path) -> Path:
    """Write the file with the token of administrators."""
    path = folder / "admin-token"
    path.write_text(f"{TOKEN}\n")
    return path


def ask(
    port: int,
    method: str,
    path: str,
    *,
    token: str | None = TOKEN,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    **parameters: object,
) -> Answer:
    """Make a request to a path below /admin/api, with the token of administrators unless another is given."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    credentials = {} if token is None else {"Authorization": f"Bearer {token}"}
    return request(port, method, f"/admin/api/{path}{query}", credentials | (headers or {}), body)


def get(port: int, path: str, **parameters: Any) -> Any:
    """Return the JSON of a path below /admin/api."""
    answer = ask(port, "GET", path, **parameters)
    assert answer.status == 200, answer
    assert answer["Content-Type"] == "application/json"
    assert answer["Cache-Control"] == "no-store"
    return json.loads(answer.body)


def problem(answer: Answer) -> tuple[int, str]:
    """Return the status and the code of an error, which is told as problem details."""
    assert answer["Content-Type"] == "application/problem+json"
    document = json.loads(answer.body)
    assert document["status"] == answer.status
    assert document["title"]
    return answer.status, document["code"]


def ids_of(path: str) -> str:
    """Return the id of the upload with this path."""
    return path.rpartition("/")[2]


def final_of(port: int, *parts: str) -> str:
    """Create the final upload of partial ones; return its path."""
    answer = request(port, "POST", "/files", {**TUS, "Upload-Concat": f"final;{' '.join(parts)}"})
    assert answer.status == 201, answer
    return path_of(answer)
