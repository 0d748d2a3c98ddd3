"""The places of the metrics, and who may read them there."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import os
import re
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from tests.admin.calls import TOKEN, token_file
from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import ServerProcess, serving
from tests.support.timing import scaled, wait_until
from tests.support.wire.messages import Answer
from tests.support.wire.requests import create, request
from tusd_py import InvalidSettings, create_app
from tusd_py.auth.api_tokens import new_token
from tusd_py.uvicorn_server.unix_sockets import bound_unix

SCOPES = ("uploads:metrics", "uploads:admin", "uploads:read", "")


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=scaled(30))
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_socket(path: Path, target: str) -> tuple[int, str]:
    """Return status and body of a GET by a Unix socket."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metrics_port_of(server: ServerProcess) -> int:
    """Return the port that the server has told of."""
    pattern = re.compile(r"metrics are served on http://127\.0\.0\.1:(\d+)/metrics")
    wait_until(lambda: pattern.search("".join(server.log)) is not None)
    return int(pattern.findall("".join(server.log))[0])


def bearer(port: int, token: str | None) -> Answer:
    return request(port, "GET", "/metrics", {} if token is None else {"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("workers", [1, 2])
def test_port_and_socket_have_the_metrics_of_all_processes_and_nothing_else(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "metrics.socket"
    with serving(tmp_path, metrics_port=0, metrics_socket=path, workers=workers) as server:
        port = metrics_port_of(server)
        for _ in range(6):
            create(server.port, 5)
        wait_until(lambda: b"tusd_uploads_created 6.0" in bearer(port, None).body)
        wait_until(lambda: "tusd_uploads_created 6.0" in ask_socket(path, "/metrics")[1])
        for _ in range(4):
            assert ask_socket(path, "/metrics")[0] == 200
            assert request(server.port, "GET", "/metrics").status == 404
        for target in ("/files", "/healthz", "/", "/admin/api/uploads"):
            assert request(port, "GET", target).status == 404
            assert ask_socket(path, target)[0] == 404
        assert request(port, "POST", "/metrics").status == 405
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.exists() == (workers == 1)  # a single process ends by the signal itself


def test_socket_that_a_killed_server_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.socket"
    with ServerProcess(tmp_path / "uploads", metrics_socket=path) as first:
        first.kill()
    assert path.exists()
    with serving(tmp_path, metrics_socket=path):
        assert ask_socket(path, "/metrics")[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_place_that_cannot_be_had_stops_the_start_in_one_line(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "metrics.socket"
    with serving(tmp_path, metrics_port=0, metrics_socket=path) as server:
        port = metrics_port_of(server)
        options = ["serve", "--port", "0", "--workers", str(workers), "--upload-dir", str(tmp_path / "other")]
        refused = execute(*options, "--metrics-port", str(port))
        assert_refused_in_one_line(refused, 1, "--metrics-port", str(port))
        assert_refused_in_one_line(execute(*options, "--metrics-socket", str(path)), 1, str(path), "another server")
        assert ask_socket(path, "/metrics")[0] == 200


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--metrics-port", "65536"], ["--metrics-port", "65535"]),
        (["--metrics-port", "many"], ["--metrics-port", "whole number"]),
        (["--metrics-port", "8080"], ["--metrics-port", "--port"]),
        (["--metrics-port", "0", "--disable-metrics"], ["--metrics-port", "--disable-metrics"]),
        (["--metrics-socket", "s", "--disable-metrics"], ["--metrics-socket", "--disable-metrics"]),
        (["--metrics-auth", "--disable-metrics"], ["--metrics-auth", "--disable-metrics"]),
        (["--metrics-auth"], ["--metrics-auth", "--admin-token-file"]),
    ],
)
def test_setting_that_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    refused = execute("serve", "--port", "8080", "--upload-dir", str(tmp_path / "uploads"), *options)
    assert_refused_in_one_line(refused, 2, *parts)


@pytest.mark.parametrize("name", ["x" * 200, "missing/metrics.socket", "file"])
def test_path_that_can_be_no_socket_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("something else")
    path = tmp_path / name
    refused = execute("serve", "--port", "0", "--upload-dir", str(tmp_path / "uploads"), "--metrics-socket", str(path))
    assert_refused_in_one_line(refused, 1, "--metrics-socket", str(path))
    assert (tmp_path / "file").read_text() == "something else"


def test_protected_metrics_need_an_administrator_or_the_scope(tmp_path: Path) -> None:
    tokens = {scope: new_token(f"reader-{number}", (scope,) if scope else ()) for number, scope in enumerate(SCOPES)}
    (tmp_path / "tokens").write_text("".join(f"{line}\n" for _, line in tokens.values()))
    options = {"admin_token_file": token_file(tmp_path), "api_tokens_file": tmp_path / "tokens"}
    with serving(tmp_path, metrics_auth=True, **options) as server:
        assert bearer(server.port, TOKEN).status == 200
        statuses = {scope: bearer(server.port, token).status for scope, (token, _) in tokens.items()}
        assert statuses == {"uploads:metrics": 200, "uploads:admin": 200, "uploads:read": 403, "": 403}
        for token in (None, "wrong"):
            refused = bearer(server.port, token)
            assert refused.status == 401
            assert refused["WWW-Authenticate"].startswith("Bearer")
            assert b"tusd_" not in refused.body
        forbidden = bearer(server.port, tokens["uploads:read"][0])
        assert 'scope="uploads:metrics"' in forbidden["WWW-Authenticate"]
        reader = {"Authorization": f"Bearer {tokens['uploads:metrics'][0]}", "Tus-Resumable": "1.0.0"}
        assert request(server.port, "POST", "/files", {**reader, "Upload-Length": "5"}).status == 403
        assert request(server.port, "GET", "/healthz").status == 200


def test_moved_metrics_can_be_protected_too(tmp_path: Path) -> None:
    with serving(tmp_path, metrics_port=0, metrics_auth=True, admin_token_file=token_file(tmp_path)) as server:
        port = metrics_port_of(server)
        assert (bearer(port, None).status, bearer(port, TOKEN).status) == (401, 200)


def test_one_of_many_servers_gets_a_socket_that_was_left(tmp_path: Path) -> None:
    path, together = tmp_path / "metrics", threading.Barrier(8)
    outcomes: list[str | None] = []

    def start(done: threading.Event) -> None:
        together.wait()
        try:
            with bound_unix(path, 8):
                outcomes.append("listens")
                done.wait(scaled(60))
        except OSError as error:
            outcomes.append(error.strerror)

    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        done = threading.Event()
        threads = [threading.Thread(target=start, args=(done,)) for _ in range(together.parties)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(outcomes) == together.parties)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        done.set()
        for thread in threads:
            thread.join()
        assert sorted(map(str, outcomes)) == [*["another server listens there"] * (together.parties - 1), "listens"]
        assert not path.exists()
        outcomes.clear()


def test_socket_of_a_successor_stays_when_a_server_ends_that_has_closed_its_own(tmp_path: Path) -> None:
    """A file system may use the number of an inode again for the socket of the successor."""
    path = tmp_path / "metrics"
    with bound_unix(path, 8) as early:
        began = path.lstat().st_mtime_ns
        early.close()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            os.utime(path, ns=(began + 10**9, began + 10**9))
    assert path.is_socket()


def test_lock_that_another_process_keeps_on_the_directory_stops_no_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with bound_unix(path, 8), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert not path.exists()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "place", [{"metrics_port": 9100}, {"metrics_port": 0}, {"metrics_socket": Path("metrics")}, {"admin_port": 9101}]
)
def test_place_where_only_the_command_listens_is_refused_by_an_application(
    tmp_path: Path, place: dict[str, Any]
) -> None:
    (name,) = place
    with pytest.raises(InvalidSettings, match=f"^{name} is for `tusd-py serve` alone"):
        create_app(upload_dir=tmp_path / "uploads", admin_token_file=token_file(tmp_path), **place)


async def test_scrapes_at_the_same_time_take_one_thread(tmp_path: Path) -> None:
    """One that hangs, as with the file system of the uploads, leaves the other threads to other work."""
    app = create_app(upload_dir=tmp_path / "uploads")
    loop, began, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    calls = []

    def measure() -> int:
        calls.append(threading.get_ident())
        loop.call_soon_threadsafe(began.set)
        release.wait(scaled(60))
        return 7

    app.state.tus.metrics.watch_s3_memory(measure, int)
    request = Request({"type": "http", "method": "GET", "path": "/metrics", "headers": []})
    try:
        async with asyncio.timeout(scaled(30)):
            scrapes = [asyncio.create_task(app.state.metrics.get(request)) for _ in range(100)]
            await began.wait()
            await asyncio.to_thread(int)
            scrapes[0].cancel()
            release.set()
            answers = await asyncio.gather(*scrapes[1:])
        assert all(b"tusd_s3_buffered_bytes 7.0" in answer.body for answer in answers)
        assert len(calls) == 1
        assert (await app.state.metrics.get(request)).status_code == 200
        assert len(calls) == 2
    finally:
        release.set()


def test_application_without_authentication_has_no_protected_metrics(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="metrics_auth needs admin_token_file, or authentication"):
        create_app(upload_dir=tmp_path / "uploads", metrics_auth=True)
