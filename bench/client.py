"""A tus client made for load: prepared request bytes, sendfile for bulk, one epoll loop for many small requests."""

import base64
import os
import select
import socket
import struct
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

SILENCE_SECONDS = 60
RECEIVE_BYTES = 256 << 10
CONTENT_TYPE = {"Content-Type": "application/offset+octet-stream"}
# tuspyserver answers HEAD only for uploads that have a file name and a type.
FIELDS = {"filename": b"bench.bin", "filetype": b"application/octet-stream"}
METADATA = ",".join(f"{name} {base64.b64encode(value).decode()}" for name, value in FIELDS.items())


class BenchError(Exception):
    """A response other than the expected one, or none at all."""


class NotOfferedError(BenchError):
    """A workload needs an optional feature that the server does not have."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    body_start: int
    body_length: int

    def expect(self, status: int, what: str) -> "Response":
        if self.status != status:
            raise BenchError(f"{what} was answered {self.status} instead of {status}")
        return self


Script = Generator[Request, Response, None]


def build(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"", length: int | None = None
) -> Request:
    """Return a request with its body, or for a body that is sent separately with its announced `length`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Tus-Resumable: 1.0.0"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if method in ("POST", "PATCH"):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return Request(method, "\r\n".join([*lines, "", ""]).encode() + body)


def build_creation(path: str, upload_length: int, body: bytes = b"") -> Request:
    typed = CONTENT_TYPE if body else {}
    return build("POST", path, {"Upload-Length": str(upload_length), "Upload-Metadata": METADATA, **typed}, body)


def build_patch(path: str, offset: int, body: bytes = b"", length: int | None = None, checksum: str = "") -> Request:
    extra = {"Upload-Checksum": checksum} if checksum else {}
    return build("PATCH", path, {"Upload-Offset": str(offset), **CONTENT_TYPE, **extra}, body, length)


def location_path(response: Response) -> str:
    parts = urlsplit(response.headers["location"])
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def parse(buffer: bytes | bytearray, method: str) -> Response | None:
    """Return the response at the start of the buffer once its head is complete; its body may be incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    status_line, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    status = int(status_line[9:12])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if method == "HEAD" or status in (204, 304):
        length = 0
    elif "chunked" in headers.get("transfer-encoding", ""):
        last = buffer.find(b"0\r\n\r\n", end + 4)
        if last < 0:
            return None
        length = last + 5 - end - 4
    else:
        length = int(headers.get("content-length", "0"))
    return Response(status, headers, end + 4, length)


class Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECONDS)
        # A Python timeout makes the descriptor non-blocking, and sendfile should block in the kernel.
        self.socket.settimeout(None)
        limit = struct.pack("ll", SILENCE_SECONDS, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def exchange(self, request: Request) -> Response:
        self.socket.sendall(request.data)
        return self.response(request.method)

    def response(self, method: str) -> Response:
        while True:
            response = self.take(method)
            if response:
                return response
            self.fill()

    def fill(self) -> None:
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise BenchError("the server closed the connection")
        self.buffer += data

    def take(self, method: str) -> Response | None:
        """Remove the next complete response from the buffer and return it; interim responses are skipped."""
        response = parse(self.buffer, method)
        if response is None or len(self.buffer) < response.body_start + response.body_length:
            return None
        del self.buffer[: response.body_start + response.body_length]
        return self.take(method) if response.status < 200 else response

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            sent = os.sendfile(self.socket.fileno(), descriptor, offset, end - offset)
            if not sent:
                raise BenchError("the payload file is too short")
            offset += sent

    def download(self, request: Request, sink: memoryview) -> Iterator[memoryview]:
        """Yield the body piece by piece, each valid until the next."""
        self.socket.sendall(request.data)
        while (response := parse(self.buffer, request.method)) is None:
            self.fill()
        if response.status in (404, 405, 501):
            raise NotOfferedError("does not serve downloads")
        response.expect(200, "the download")
        rest = bytes(self.buffer[response.body_start :])
        self.buffer.clear()
        yield memoryview(rest)
        remaining = response.body_length - len(rest)
        while remaining:
            count = self.socket.recv_into(sink[: min(len(sink), remaining)])
            if not count:
                raise BenchError("the server closed the connection during a download")
            remaining -= count
            yield sink[:count]


def create(connection: Connection, creation_path: str, upload_length: int) -> str:
    response = connection.exchange(build_creation(creation_path, upload_length))
    return location_path(response.expect(201, "the creation"))


@dataclass(slots=True)
class ScriptConnection:
    connection: Connection
    script: Script
    method: str = ""
    started: float = 0.0

    def send(self, request: Request) -> None:
        self.method = request.method
        self.connection.socket.sendall(request.data)

    def start(self) -> None:
        self.started = time.perf_counter()
        self.send(next(self.script))

    def advance(self) -> bool:
        """Read what has arrived and send the next request; return whether the script has ended."""
        self.connection.fill()
        response = self.connection.take(self.method)
        if response is None:
            return False
        try:
            self.send(self.script.send(response))
        except StopIteration:
            return True
        return False


def run_scripts(port: int, scripts: Iterator[Script], connections: int) -> list[float]:
    """Run the scripts over `connections` kept-alive connections, one script on each at a time.

    Returns the seconds that each script took.
    """
    poll = select.epoll()
    running_scripts: dict[int, ScriptConnection] = {}
    seconds: list[float] = []
    try:
        for _, script in zip(range(connections), scripts, strict=False):
            running_script = ScriptConnection(Connection(port), script)
            running_scripts[running_script.connection.socket.fileno()] = running_script
            poll.register(running_script.connection.socket.fileno(), select.EPOLLIN)
            running_script.start()
        while running_scripts:
            events = poll.poll(SILENCE_SECONDS)
            if not events:
                raise BenchError(f"no answer for {SILENCE_SECONDS} s")
            for descriptor, _ in events:
                running_script = running_scripts[descriptor]
                if running_script.advance():
                    seconds.append(time.perf_counter() - running_script.started)
                    start_next_script(poll, running_scripts, descriptor, next(scripts, None))
    finally:
        poll.close()
        for running_script in running_scripts.values():
            running_script.connection.socket.close()
    return seconds


def start_next_script(
    poll: select.epoll, running_scripts: dict[int, ScriptConnection], descriptor: int, script: Script | None
) -> None:
    if script is None:
        poll.unregister(descriptor)
        running_scripts.pop(descriptor).connection.socket.close()
    else:
        running_scripts[descriptor].script = script
        running_scripts[descriptor].start()
