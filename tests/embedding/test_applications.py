"""The server inside other applications, under a stock ASGI server."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.harness import ROOT
from tests.support.timing import scaled
from tests.support.wire.websockets import WebSocket

RUNNING = re.compile(r"Uvicorn running on (http://\S+)")
TUS = {"Tus-Resumable": "1.0.0"}
OFFSET_TYPE = {"Content-Type": "application/offset+octet-stream"}


@dataclass
class Application:
    origin: str = ""
    log: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] = field(init=False)

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.origin).netloc, timeout=scaled(10))
        with contextlib.closing(connection):
            connection.request(method, path, body, {**TUS, **headers})
            response = connection.getresponse()
            response.read()
            return response


@contextlib.contextmanager
def running(folder: Path, code: str, *arguments: str) -> Iterator[Application]:
    """Run `app` of this code under uvicorn with its default protocol class."""
    (folder / "example.py").write_text(code)
    application = Application()
    application.process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "example:app", "--port", "0", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ready = threading.Event()

    def read_log() -> None:
        assert application.process.stderr is not None
        for line in application.process.stderr:
            application.log.append(line)
            if match := RUNNING.search(line):
                application.origin = match[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read_log)
    reader.start()
    try:
        assert ready.wait(30)
        assert application.origin, "".join(application.log)
        yield application
    finally:
        if application.process.poll() is None:
            application.process.send_signal(signal.SIGTERM)
        out, _ = application.process.communicate(timeout=scaled(30))
        application.log.append(out)
        reader.join(10)


def upload(application: Application, endpoint: str, content: bytes) -> str:
    created = application.request("POST", endpoint, {"Upload-Length": str(len(content))})
    assert created.status == 201, application.log
    location: str = created.headers["Location"]
    path = urlsplit(location).path
    patched = application.request("PATCH", path, {"Upload-Offset": "0", **OFFSET_TYPE}, content)
    assert (patched.status, patched.headers["Upload-Offset"]) == (204, str(len(content)))
    head = application.request("HEAD", path, {})
    assert (head.status, head.headers["Upload-Offset"]) == (200, str(len(content)))
    return location


def readme_example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example: str = next(block for block in blocks if "FastAPI" in block)
    return example


@pytest.mark.parametrize("endpoint", ["/files", "/files/"])
def test_the_example_in_the_readme_works_as_pasted(tmp_path: Path, endpoint: str) -> None:
    with running(tmp_path, readme_example()) as application:
        location = upload(application, endpoint, b"hello world")
        upload_id = location.rpartition("/")[2]
        assert location == f"{application.origin}/files/{upload_id}"
    assert (tmp_path / "uploads" / upload_id).read_bytes() == b"hello world"
    assert f"upload {upload_id} has 11 bytes" in application.log[-1]


MOUNTED = """
from starlette.applications import Starlette
from tusd_py import TusServer

app = Starlette()
app.mount("/api/files", TusServer(upload_dir="uploads"{options}))
"""


@pytest.mark.parametrize(
    ("options", "arguments", "headers", "base"),
    [
        ("", (), {}, "{origin}/api/files"),
        ("", ("--root-path", "/outer"), {}, "{origin}/outer/api/files"),
        (', public_url="https://up.example/x"', (), {}, "https://up.example/x/api/files"),
        (
            ', trusted_proxies="127.0.0.1"',
            ("--no-proxy-headers",),
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example", "X-Forwarded-Prefix": "/prefix"},
            "https://up.example/prefix/api/files",
        ),
        ("", ("--no-proxy-headers",), {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "x"}, "{origin}/api/files"),
    ],
)
def test_location_is_right_under_a_mount(
    tmp_path: Path, options: str, arguments: tuple[str, ...], headers: dict[str, str], base: str
) -> None:
    with running(tmp_path, MOUNTED.format(options=options), *arguments) as application:
        created = application.request("POST", "/api/files/", {"Upload-Length": "5", **headers})
        assert created.status == 201
        folder, _, upload_id = created.headers["Location"].rpartition("/")
        assert folder == base.format(origin=application.origin)
        patched = application.request(
            "PATCH", f"/api/files/{upload_id}", {"Upload-Offset": "0", **OFFSET_TYPE}, b"hello"
        )
        assert patched.status == 204


def test_a_mounted_server_needs_no_lifespan(tmp_path: Path) -> None:
    with running(tmp_path, MOUNTED.format(options="")) as application:
        upload(application, "/api/files/", b"without lifespan")
    assert not any("Traceback" in line for line in application.log)


def test_the_server_is_an_application_by_itself(tmp_path: Path) -> None:
    code = "from tusd_py import TusServer\napp = TusServer(upload_dir='uploads')\n"
    with running(tmp_path, code) as application:
        upload(application, "/", b"alone")


def test_create_app_under_stock_uvicorn_ends_a_running_append_at_shutdown(tmp_path: Path) -> None:
    code = "from tusd_py import create_app\napp = create_app(upload_dir='uploads')\n"
    with running(tmp_path, code) as application:
        created = application.request("POST", "/files", {"Upload-Length": "1000"})
        path = urlsplit(created.headers["Location"]).path
        connection = http.client.HTTPConnection(urlsplit(application.origin).netloc, timeout=scaled(10))
        with contextlib.closing(connection):
            connection.putrequest("PATCH", path)
            for name, value in {**TUS, **OFFSET_TYPE, "Upload-Offset": "0", "Content-Length": "1000"}.items():
                connection.putheader(name, value)
            connection.endheaders(b"x" * 100)
            while application.request("HEAD", path, {}).headers["Upload-Offset"] != "100":
                pass
            application.process.send_signal(signal.SIGTERM)
            response = connection.getresponse()
            assert (response.status, response.headers["Connection"]) == (503, "close")
            assert response.headers["Retry-After"]
            response.read()
        assert application.process.wait(20) is not None


FOLLOWED = """
from fastapi import FastAPI
from tusd_py import TusServer

tus = TusServer(upload_dir="uploads")
app = FastAPI(lifespan=tus.lifespan)
app.mount("/files", tus)
"""


@pytest.mark.parametrize("implementation", ["auto", "websockets", "websockets-sansio"])
def test_progress_is_told_over_a_websocket_of_the_application(tmp_path: Path, implementation: str) -> None:
    """Refusals are answers of HTTP where uvicorn passes them on."""
    arguments = ("--ws", implementation, "--ws-max-size", "4096", "--ws-per-message-deflate", "false")
    with running(tmp_path, FOLLOWED, *arguments) as application:
        port = urlsplit(application.origin).port or 0
        created = application.request("POST", "/files/", {"Upload-Length": "5"})
        path = urlsplit(created.headers["Location"]).path
        with WebSocket(port, f"{path}/events", {"Origin": application.origin}) as follower:
            assert follower.was_accepted
            assert [message["type"] for message in follower.until("snapshot")] == ["snapshot"]
            follower.send({"type": "ping"})
            assert follower.next() == {"type": "pong"}
            application.request("PATCH", path, {"Upload-Offset": "0", **OFFSET_TYPE}, b"hello")
            assert follower.rest()[-1] == "finished"
            assert follower.code == 1000
        assert WebSocket(port, "/files/unknown/events").status == 404
        assert WebSocket(port, path).status == 404
        with WebSocket(port, f"{path}/events") as follower:
            assert follower.rest() == ["snapshot"]
        second = application.request("POST", "/files/", {"Upload-Length": "5"})
        with WebSocket(port, f"{urlsplit(second.headers['Location']).path}/events") as follower:
            follower.until("snapshot")
            application.process.send_signal(signal.SIGTERM)
            assert follower.rest() == []
            assert follower.code == 1012
        assert application.process.wait(scaled(10)) in (0, -signal.SIGTERM)
    assert not any("Traceback" in line for line in application.log), application.log


INFORMED = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    assert "http.response.informational" in scope["extensions"]
    await send({"type": "http.response.informational", "status": 104, "headers": [(b"upload-offset", b"5")]})
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.informational", "status": 104, "headers": []})
    await send({"type": "http.response.body"})
"""


def test_interim_responses_can_be_sent_before_the_final_one(tmp_path: Path) -> None:
    (tmp_path / "protocol.py").write_text(
        "from tusd_py.uvicorn_server.protocol import upload_protocol\nProtocol = upload_protocol(30)\n"
    )
    with running(tmp_path, INFORMED, "--http", "protocol:Protocol", "--lifespan", "off") as application:
        address = urlsplit(application.origin)
        with socket.create_connection((address.hostname, address.port), timeout=scaled(10)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
    first, second = answer.split(b"\r\n\r\n")[:2]
    assert first == b"HTTP/1.1 104 \r\nupload-offset: 5"
    assert second.startswith(b"HTTP/1.1 204 ")
