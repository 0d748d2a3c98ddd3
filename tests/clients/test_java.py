"""tus-java-client: whole uploads, and tokens that expire in the middle and are renewed in `prepareConnection`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.auth.site import ask, jwt_of, token_files
from tests.conftest import require
from tests.support.harness import ServerProcess, serving
from tests.support.timing import scaled, wait_until
from tests.support.wire.messages import KIBI, payload, sha256

FOLDER = Path(__file__).parent / "java"
LIBRARY = FOLDER / "tus-java-client-0.5.1.jar"
REQUEST = 256 * KIBI  # bytes that the client sends in one request
DATA = payload(4 * REQUEST + 77)
GOOD, EXPIRED = jwt_of("ann"), jwt_of("ann", exp=1)
REFUSED = ("PATCH", 401, None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with serving(tmp_path, **token_files(tmp_path), log_format="json") as server:
        yield server


def upload(server: ServerProcess, file: Path, *tokens: str) -> subprocess.CompletedProcess[str]:
    """Upload `DATA` with these tokens, one for each request; the last one is for all that follow."""
    if not LIBRARY.exists():
        message = "tus-java-client is not installed (make tests/clients/java/.installed)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    file.write_bytes(DATA)
    command = [require("java"), "-cp", str(LIBRARY), str(FOLDER / "UploadFile.java")]
    arguments = [server.url, str(file), str(REQUEST), *tokens]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=scaled(120), check=False)


def logged(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log if line.startswith("{")]


def requests_to(server: ServerProcess) -> list[tuple[str, int, int | None]]:
    """Return method, status and offset of every request so far, in their order, and those that were repeated once.

    Java's HttpURLConnection sends a request three times that was refused before its body.
    """
    requests = [
        (entry["method"], entry["status"], entry.get("offset_before"))
        for entry in logged(server)
        if entry["message"] == "request"
    ]
    return [one for one, before in zip(requests, [None, *requests], strict=False) if one != before or one != REFUSED]


def appended(*requests: int) -> list[tuple[str, int, int]]:
    """Return the PATCH requests of an upload, named by their numbers."""
    return [("PATCH", 204, number * REQUEST) for number in requests]


WHOLE = [("POST", 201, None), *appended(0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([GOOD], WHOLE),
        ([GOOD, GOOD, GOOD, EXPIRED, GOOD], [*WHOLE[:3], REFUSED, ("HEAD", 200, None), *WHOLE[3:]]),
        (
            [GOOD, GOOD, GOOD, EXPIRED, EXPIRED, EXPIRED, GOOD],
            [*WHOLE[:3], REFUSED, ("HEAD", 423, None), ("HEAD", 423, None), ("HEAD", 200, None), *WHOLE[3:]],
        ),
        ([EXPIRED, GOOD], [("POST", 401, None), *WHOLE]),
    ],
    ids=["good all the time", "expired before a PATCH", "renewed after two HEADs", "expired before the creation"],
)
def test_upload_goes_on_where_its_token_has_expired(
    server: ServerProcess, tmp_path: Path, tokens: list[str], expected: list[tuple[str, int, int | None]]
) -> None:
    finished = upload(server, tmp_path / "data", *tokens)
    assert finished.returncode == 0, finished.stderr
    path = finished.stdout.strip().removeprefix(server.origin)
    wait_until(lambda: len(requests_to(server)) >= len(expected))
    assert requests_to(server) == expected
    assert sha256(ask(server, GOOD, "GET", path).body) == sha256(DATA)
    assert ask(server, jwt_of("bob"), "HEAD", path).status == 404


def test_client_without_a_renewed_token_gives_up_and_nothing_is_lost(server: ServerProcess, tmp_path: Path) -> None:
    finished = upload(server, tmp_path / "data", GOOD, GOOD, EXPIRED)
    assert finished.returncode == 1
    assert "423" in finished.stderr
    created = next(entry for entry in logged(server) if entry.get("status") == 201)
    assert ask(server, GOOD, "HEAD", f"/files/{created['upload']}").offset == REQUEST
