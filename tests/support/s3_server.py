"""S3 servers on free loopback ports, each in a process that ends with the tests, and a proxy that injects faults."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]

from tests.support.s3_models import share_models
from tests.support.timing import scaled
from tusd_py.backends.s3.config import MIN_PART, S3Config, S3Dialect

share_models()
ACCESS_KEY, SECRET_KEY = "tests", "only-for-tests"
BUCKET = "uploads"
START_TIMEOUT = scaled(60.0)  # seconds
START_ATTEMPTS = 3
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_REGION": "us-east-1",
}


_making_clients = threading.Lock()


@cache
def _session() -> Any:
    return boto3.session.Session()


def free_ports(count: int) -> list[int]:
    """Return ports that no process listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def program(name: str) -> str:
    """Return the path of a program of the test environment."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed")
    return found


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; its credentials are in the environment of the tests."""

    endpoint: str
    bucket: str = BUCKET
    dialect: S3Dialect = "aws"

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def client(self) -> Any:
        """Return a client of boto3, to inspect the bucket."""
        with _making_clients:
            os.environ.update(CREDENTIALS)
            return _session().client(
                "s3",
                endpoint_url=self.endpoint,
                config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=20),
            )

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of the objects below a prefix."""
        with contextlib.closing(self.client()) as client:
            answer = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
            return [found["Key"] for found in answer.get("Contents", [])]

    def multiparts(self, prefix: str) -> list[str]:
        """Return the ids of the multipart uploads below a prefix."""
        below = {} if self.dialect == "minio" else {"Prefix": prefix}  # MinIO matches whole keys only
        with contextlib.closing(self.client()) as client:
            answer = client.list_multipart_uploads(Bucket=self.bucket, **below)
            return [found["UploadId"] for found in answer.get("Uploads", []) if found["Key"].startswith(prefix)]


def s3_config(server: S3Server, place: Path, **changes: Any) -> S3Config:
    """Return a configuration with the smallest parts, for a prefix of its own in the bucket."""
    given: dict[str, Any] = {"bucket": server.bucket, "endpoint": server.endpoint, "dialect": server.dialect}
    given["prefix"] = f"{place}/".lstrip("/")
    return S3Config(**(given | {"addressing": "path", "part_size": MIN_PART} | changes))


class Process:
    """A server process in a directory of its own."""

    def __init__(
        self, command: list[str], directory: Path, env: dict[str, str] | None = None, sockets: Iterable[Path] = ()
    ) -> None:
        self._command = command
        self._directory = directory
        self._env = os.environ | CREDENTIALS | (env or {})
        self._sockets = list(sockets)  # socket files that the process leaves behind
        self._start()

    def _start(self) -> None:
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def revive(self, server: S3Server) -> None:
        """Start the server again, on the same port and directory, if its process has ended."""
        if self._process.poll() is not None:
            self._start()
            self.wait_for_bucket(server)

    def wait_for_bucket(self, server: S3Server) -> None:
        """Wait until the server answers, and create the bucket if it is missing."""
        deadline = time.monotonic() + START_TIMEOUT
        with contextlib.closing(server.client()) as client:
            while True:
                try:
                    names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
                    if server.bucket not in names:
                        client.create_bucket(Bucket=server.bucket)
                    client.put_object(Bucket=server.bucket, Key="ready", Body=b"")
                    return
                except Exception as error:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        log = (self._directory / "log").read_text(errors="replace")
                        self.stop()
                        raise RuntimeError(f"the S3 server did not start:\n{log[-2000:]}") from error
                    time.sleep(0.05)

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(scaled(10))

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        for socket_file in self._sockets:
            socket_file.unlink(missing_ok=True)


_running: dict[str, tuple[Process, S3Server]] = {}
_lock = threading.Lock()


def _shared_server(name: str, start: Callable[[Path], tuple[Process, S3Server]]) -> S3Server:
    """Return the one server of a kind for all tests of this process, started by the first call."""
    with _lock:
        if name not in _running:
            os.environ.update(CREDENTIALS)
            _running[name] = _start_with_retries(name, start)
        return _running[name][1]


def _start_with_retries(name: str, start: Callable[[Path], tuple[Process, S3Server]]) -> tuple[Process, S3Server]:
    """Start a server that answers, with other ports if another program took one that was free a moment ago."""
    for attempt in range(1, START_ATTEMPTS + 1):
        process, server = start(Path(tempfile.mkdtemp(prefix=f"tusd-py-{name}-")))
        atexit.register(process.stop)
        try:
            process.wait_for_bucket(server)
        except RuntimeError:
            if attempt == START_ATTEMPTS:
                raise
        else:
            return process, server
    raise AssertionError("unreachable")


def revive_shared() -> None:
    """Start the shared servers of this process again that have ended."""
    for process, server in list(_running.values()):
        process.revive(server)


def s3_server() -> S3Server:
    """Return the server that behaves most like S3: seaweedfs, or with TEST_S3=minio the `minio` from PATH."""
    if os.environ.get("TEST_S3") == "minio":
        return _shared_server("minio", _start_minio)
    return _shared_server("seaweedfs", start_seaweedfs)


def moto() -> S3Server:
    """Return a moto server, a simulation of S3."""
    return _shared_server("moto", _start_moto)


def rclone() -> S3Server:
    """Return an rclone server, which ignores conditions and cannot copy parts."""
    return _shared_server("rclone", _start_rclone)


def start_seaweedfs(directory: Path, *arguments: str) -> tuple[Process, S3Server]:
    """Start another seaweedfs, which answers soon (`Process.wait_for_bucket`)."""
    servers = ["s3", "master", "volume", "filer", "admin"]
    ports = free_ports(2 * len(servers))
    options, sockets = [], []
    for name, port, grpc_port in zip(servers, ports, ports[len(servers) :], strict=False):
        options += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc_port}"]
        sockets += [Path(f"/tmp/seaweedfs-{name}-{port}.sock"), Path(f"/tmp/seaweedfs-{name}-grpc-{grpc_port}.sock")]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory}", "-master.telemetry=false"]
    # One processor for each: there are as many servers as workers of the tests, and more threads only take turns.
    environment = {"GOMAXPROCS": "1"}
    process = Process([program("weed"), "mini", *options, *arguments], directory, environment, sockets)
    return process, S3Server(f"http://127.0.0.1:{ports[0]}")


def _start_minio(directory: Path) -> tuple[Process, S3Server]:
    port, console_port = free_ports(2)
    options = ["--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console_port}", "--quiet"]
    environment = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_UPDATE": "off"}
    command = [program("minio"), "server", *options, str(directory / "data")]
    return Process(command, directory, environment), S3Server(f"http://127.0.0.1:{port}", dialect="minio")


def _start_moto(directory: Path) -> tuple[Process, S3Server]:
    (port,) = free_ports(1)
    return Process([program("moto_server"), "-p", str(port)], directory), S3Server(f"http://127.0.0.1:{port}")


def _start_rclone(directory: Path) -> tuple[Process, S3Server]:
    (port,) = free_ports(1)
    (directory / "data").mkdir()
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off"]
    command = [program("rclone"), "serve", "s3", *options, str(directory / "data")]
    return Process(command, directory, {"RCLONE_CONFIG": str(directory / "no.conf")}), S3Server(
        f"http://127.0.0.1:{port}"
    )


# Faults between a client and a server.


class Fault(StrEnum):
    """The outcome of a request through `FaultyProxy`."""

    NONE = ""
    DELAY = "delay"
    REFUSE = "refuse"  # the connection ends before the request was read
    RESET = "reset"  # the server gets half of the body, the client a reset
    ERROR = "error"  # 500
    SLOW_DOWN = "slow down"  # 503
    LOST = "lost"  # the server executes the request, the answer is lost
    TWICE = "twice"  # the server gets the request twice
    UNKNOWN = "unknown"  # 404: the server does not know the multipart upload
    NO_SERVER = "no server"  # 404 of a gateway that does not find the server


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the proxy."""

    method: str
    path: str  # of the URL, without the query
    query: dict[str, str]

    @property
    def operation(self) -> str:
        """Name of the operation in the documentation of S3; only those that the tests distinguish."""
        if "uploads" in self.query:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if "uploadId" in self.query:
            names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
            return names.get(self.method, "ListParts")
        names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
        return names.get(self.method, "DeleteObjects")

    @property
    def part(self) -> int:
        return int(self.query.get("partNumber", 0))


Faults: TypeAlias = Callable[[Request], Fault]
STATUS = {
    Fault.ERROR: (500, "InternalError"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.UNKNOWN: (404, "NoSuchUpload"),
}
TRANSIENT_FAULTS = [
    fault for fault in Fault if fault not in (Fault.NONE, Fault.UNKNOWN, Fault.NO_SERVER)
]  # for which clients try again
DELAY = 0.2  # seconds
HOLD_TIMEOUT = 60.0  # seconds after which a held request is forwarded even if the test has not released it


class FaultyProxy:
    """A proxy that forwards requests to a server except where `faults` says otherwise; use as a context manager."""

    def __init__(self, server: S3Server, faults: Faults = lambda request: Fault.NONE) -> None:
        self.faults = faults
        self.requests: list[Request] = []
        self._upstream = server.port
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Forwarder, self))
        self._http.daemon_threads = True
        self.server = replace(server, endpoint=f"http://127.0.0.1:{self._http.server_address[1]}")

    def __enter__(self) -> FaultyProxy:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """Forward a request; return status, header fields and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=30)
        try:
            connection.request(method, target, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def forward_half(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=30)) as connection:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body[: len(body) // 2])


class Forwarder(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, proxy: FaultyProxy, *arguments: Any) -> None:
        self._proxy = proxy
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().__init__(*arguments)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _handle(self) -> None:
        target = urlsplit(self.path)
        request = Request(self.command, target.path, dict(parse_qsl(target.query, keep_blank_values=True)))
        fault = self._proxy.faults(request)
        self._proxy.requests.append(request)
        if fault is Fault.REFUSE:
            self._reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        forwarded = (self.command, self.path, headers, body)
        if fault is Fault.DELAY:
            time.sleep(DELAY)
        if fault in STATUS:
            status, code = STATUS[fault]
            self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        if fault is Fault.NO_SERVER:
            self._answer(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
            return
        if fault is Fault.RESET:
            self._proxy.forward_half(*forwarded)
            self._reset()
            return
        answer = self._proxy.forward(*forwarded)
        if fault is Fault.TWICE:
            answer = self._proxy.forward(*forwarded)
        if fault is Fault.LOST:
            self._reset()
            return
        self._answer(*answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _answer(self, status: int, headers: Any, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers["Content-Length"] if self.command == "HEAD" and "Content-Length" in headers else len(body)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def random_faults(seed: int, probability: float = 0.2) -> Faults:
    """Return faults of every transient kind, in an order that depends on the seed only."""
    random_ = random.Random(seed)
    lock = threading.Lock()

    def choose(request: Request) -> Fault:
        with lock:
            return random_.choice(TRANSIENT_FAULTS) if random_.random() < probability else Fault.NONE

    return choose


class HeldRequests:
    """Faults that hold the requests that `choose` selects until they are released, then end with `fate`."""

    def __init__(self, choose: Callable[[Request], bool], fate: Fault = Fault.NONE) -> None:
        self._choose = choose
        self._fate = fate
        self._reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, request: Request) -> Fault:
        if not self._choose(request):
            return Fault.NONE
        self._reached.set()
        self._released.wait(HOLD_TIMEOUT)
        return self._fate

    @property
    def reached(self) -> bool:
        """Whether a request is or was held."""
        return self._reached.is_set()

    def wait(self) -> None:
        """Wait until a request is held."""
        assert self._reached.wait(HOLD_TIMEOUT / 2), "there was no such request"

    def release(self) -> None:
        self._released.set()
