"""The log lines of a server, and those it leaves in the log of another application."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ROOT, ServerProcess
from tests.support.wire.messages import OFFSET_STREAM, TUS
from tests.support.wire.promised import ask, create, patch
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished
from tusd_py.observability.logging import JsonFormatter, TextFormatter, log_requests

ANSWERED = RequestFinished("PATCH", "/files/abc", 204, 0.0123, upload_id="abc", bytes_received=5, client="127.0.0.1")


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def complete(metadata: str | None) -> UploadFinished:
    return UploadFinished(
        Upload("abc", 100.0, length=5, offset=5, status=Status.COMPLETE, completed_at=107.25, metadata=metadata)
    )


def logged(caplog: pytest.LogCaptureFixture, event: Any) -> logging.LogRecord:
    events = EventBus()
    log_requests(events)
    with caplog.at_level(logging.INFO):
        events.publish(event)
    return caplog.records[-1]


def test_a_line_in_the_format_of_another_application_says_everything(caplog: pytest.LogCaptureFixture) -> None:
    line = logging.Formatter("%(levelname)s:%(name)s:%(message)s").format(logged(caplog, ANSWERED))
    assert line == (
        "INFO:tusd_py.requests:request method=PATCH path=/files/abc status=204 duration_ms=12.3 bytes=5"
        " client=127.0.0.1 upload=abc"
    )


def test_a_line_in_text_says_everything_once(caplog: pytest.LogCaptureFixture) -> None:
    line = TextFormatter().format(logged(caplog, ANSWERED))
    assert line.partition(" ")[2].startswith("INFO request method=PATCH path=/files/abc status=204 ")
    assert line.count("method=") == 1


@pytest.mark.parametrize(
    "path", ["/a\n2026-01-31T12:00:00.000Z INFO request status=200", "/a\r\x1b[2J", "/a\u2028b\u202e"]
)
def test_a_message_with_what_a_client_sent_stays_one_line(path: str) -> None:
    record = logging.LogRecord("a", logging.DEBUG, "", 0, '%s "%s" was cancelled\n', ("GET", path), None)
    assert TextFormatter().format(record).partition(" DEBUG ")[2] == f'GET "{json.dumps(path)[1:-1]}" was cancelled'


def test_a_line_in_json_has_fields(caplog: pytest.LogCaptureFixture) -> None:
    line = json.loads(JsonFormatter().format(logged(caplog, ANSWERED)))
    assert (line["message"], line["method"], line["status"], line["bytes"]) == ("request", "PATCH", 204, 5)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (metadata(filename="talk.webm"), " name=talk.webm"),
        (metadata(name="talk.webm"), " name=talk.webm"),
        (metadata(filename="a b\n2026-01-01 ERROR forged"), r' name="a b\n2026-01-01 ERROR forged"'),
        (metadata(filename="\u202egpj.exe"), r' name="\u202egpj.exe"'),
        (metadata(filename="\x1b[31m"), r' name="\u001b[31m"'),
        (metadata(filename="x" * 300), " name=" + "x" * 255),
        ("filename", ""),
        ("filename x", ""),
        (None, ""),
    ],
)
def test_a_line_tells_of_an_upload_that_is_complete(
    caplog: pytest.LogCaptureFixture, given: str | None, shown: str
) -> None:
    line = TextFormatter().format(logged(caplog, complete(given)))
    assert line.partition(" ")[2] == f"INFO complete upload=abc{shown} bytes=5 seconds=7.2"


def test_a_download_is_logged_with_the_bytes_that_were_sent(server: ServerProcess) -> None:
    location = create(server.url, 5, {"Upload-Metadata": metadata(filename="talk.webm")})
    assert patch(location, 0, b"hello").status == 204
    assert ask("GET", location).body == b"hello"
    assert ask("GET", location, {"Range": "bytes=1-2"}).body == b"el"
    server.terminate()
    gets = [line for line in server.log if "method=GET" in line]
    assert [line.split("bytes=")[1].split()[0] for line in gets] == ["5", "2"]
    assert len([line for line in server.log if " complete upload=" in line and " name=talk.webm bytes=5 " in line]) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_is_json_if_that_is_asked_for(tmp_path: Path, workers: int) -> None:
    with ServerProcess(
        tmp_path / "uploads", workers=workers, log_format="json", log_level="warning", env={"TUSD_PY_MAX_SISE": "5"}
    ) as server:
        assert (
            ask("POST", server.url, TUS | {"Content-Type": OFFSET_STREAM, "Upload-Length": "5"}, b"hello").status == 201
        )
    lines = [json.loads(line) for line in server.log]
    assert [line["level"] for line in lines[:2]] == ["error", "info"]
    assert "TUSD_PY_MAX_SISE" in lines[0]["message"]
    assert f"is listening on {server.url}" in lines[1]["message"]


def test_a_failure_to_start_is_json_if_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")
    arguments = ["serve", "--port", "0", "--upload-dir", str(tmp_path / "uploads"), "--log-format", "json"]
    result = subprocess.run(
        [sys.executable, "-m", "tusd_py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "cannot be used: Not a directory" in json.loads(result.stderr)["message"]
