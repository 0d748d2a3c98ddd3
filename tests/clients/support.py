"""Tools of the client tests: payloads, plain requests, and node scripts that drive a client."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import require
from tests.support.timing import scaled

HERE = Path(__file__).parent
KIBI = 1024
MEBI = 1024 * KIBI
TUS = {"Tus-Resumable": "1.0.0"}
OFFSET_STREAM = "application/offset+octet-stream"


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


def request(method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    target = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(target.netloc, timeout=scaled(30))) as connection:
        connection.request(method, target.path or "/", body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        # White space around a field is not part of its value, and http.client leaves some of it.
        fields = {name.lower(): value.strip() for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())


def create(creation_url: str, length: int) -> str:
    answer = request("POST", creation_url, TUS | {"Upload-Length": str(length)})
    assert answer.status == 201, answer
    return answer.headers["location"]


def head(url: str) -> Answer:
    return request("HEAD", url, TUS)


def wait_until_stored(url: str, size: int) -> int:
    """Wait until the server has stored so many bytes; return the offset. Every HEAD makes it store arrived bytes."""
    deadline = time.monotonic() + 20
    while True:
        answer = head(url)
        assert answer.status == 200, answer
        offset = int(answer.headers["upload-offset"])
        if offset >= size:
            return offset
        assert time.monotonic() < deadline, f"the server has stored {offset} of {size} bytes"
        time.sleep(0.02)


def downloaded(url: str) -> str:
    """Return the SHA-256 of a finished upload."""
    answer = request("GET", url)
    assert answer.status == 200, answer
    return sha256(answer.body)


@dataclass(frozen=True)
class Sent:
    """A request that a client made; `status` is None if it was aborted or its connection broke."""

    method: str
    url: str
    headers: dict[str, str]  # names in lower case
    status: int | None
    answered_offset: str | None

    @property
    def offset(self) -> int:
        return int(self.headers["upload-offset"])


def sent(result: Mapping[str, Any]) -> list[Sent]:
    return [Sent(**one) for one in result["requests"]]


def run_node(
    script: str,
    package: str,
    scenario: Mapping[str, object],
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
    timeout: float = 90,  # seconds of an ordinary machine
) -> Mapping[str, Any]:
    """Run a script of this folder with the scenario on its standard input.

    Every line it prints is a JSON object: the last one is the result, the others are events for `on_event`.
    """
    node = require("node")
    require_package(package)
    lines: list[Mapping[str, Any]] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [node, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        # SIGTERM, because the script ends its browser then.
        watchdog = threading.Timer(scaled(timeout), process.terminate)
        watchdog.start()
        try:
            process.stdin.write(json.dumps(scenario))
            process.stdin.close()
            for line in process.stdout:
                lines.append(json.loads(line))
                if on_event is not None and "event" in lines[-1]:
                    on_event(lines[-1])
            code = process.wait(scaled(10))
        finally:
            watchdog.cancel()
            end(process)
        errors.seek(0)
        assert code == 0, f"{script} ended with {code}:\n{errors.read()}"
    return lines[-1]


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(scaled(10))
    except subprocess.TimeoutExpired:
        process.kill()


def require_package(name: str) -> None:
    if (HERE / "node_modules" / name).is_dir():
        return
    message = f"the npm package {name} is not installed (npm ci in tests/clients)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
