"""A tus client on plain sockets that can stop anywhere in a request, for the failure tests."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import socket
import struct
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import pytest

from tests.support.timing import promised, scaled

PROMPT = 2.0  # seconds within which a client that comes back is served
PATIENCE = scaled(30.0)  # seconds after which a test gives up waiting
KIBI = 1024
MEBI = 1024 * KIBI
SOCKETS = Path("/proc/net/tcp")
OFFSET_STREAM = "application/offset+octet-stream"
RESTARTS_UPLOAD = {408, 409, 429}  # statuses of HEAD, besides 5xx, that make clients start again at byte 0

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def offset(self) -> int:
        return int(self.headers["upload-offset"])


class Connection:
    """One connection that carries one request at a time, sent piece by piece."""

    def __init__(self, port: int, timeout: float = PATIENCE) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_port = port
        self.client_port: int = self.socket.getsockname()[1]
        self._method = "GET"

    def start(self, method: str, path: str, headers: Headers) -> None:
        """Send the head of a request."""
        self._method = method
        fields = {"Host": f"127.0.0.1:{self.server_port}", "Tus-Resumable": "1.0.0", **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, timeout: float = PATIENCE) -> Answer:
        """Return the answer to the request; raises `ConnectionError` if the connection ends within it."""
        self.socket.settimeout(timeout)
        with contextlib.closing(http.client.HTTPResponse(self.socket, method=self._method)) as response:
            try:
                response.begin()
                body = response.read()
            except http.client.HTTPException as error:
                raise ConnectionError(f"no whole answer: {error!r}") from error
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def answer_to(self, method: str, timeout: float = PATIENCE) -> Answer:
        """Read an answer byte by byte up to its body, so that answers to pipelined requests stay apart."""
        self.socket.settimeout(timeout)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError(f"no whole answer: {head!r}")
            head += byte
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = 0 if method == "HEAD" else int(fields.get("content-length", "0"))
        body = b""
        while len(body) < size:
            data = self.socket.recv(size - len(body))
            if not data:
                raise ConnectionError("no whole answer")
            body += data
        return Answer(int(first.split()[1]), fields, body)

    def answer_or_closed(self, timeout: float = PATIENCE) -> Answer | None:
        """Return the answer, or None if the server closed the connection instead."""
        try:
            return self.answer(timeout)
        except ConnectionError:
            return None

    def wait_until_read(self) -> None:
        """Wait until the server process has read everything that was sent."""
        wait_until(lambda: self.unread() == 0, "the server read what was sent")

    def unread(self) -> int:
        """Return the number of sent bytes that the server process has not read yet, or a larger one."""
        if not SOCKETS.exists():
            pytest.skip("only Linux tells what a process has not read yet")
        not_arrived = _queues(self.client_port, self.server_port)[0]
        return not_arrived + _queues(self.server_port, self.client_port)[1]

    def finish_sending(self) -> None:
        """Send FIN; the answer can still be read."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Abort the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _queues(local_port: int, remote_port: int) -> tuple[int, int]:
    """Return the bytes in the send and in the receive queue of one loopback socket; zeros if there is none."""
    for line in SOCKETS.read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if int(local.rpartition(":")[2], 16) == local_port and int(remote.rpartition(":")[2], 16) == remote_port:
            sending, _, receiving = queues.partition(":")
            return int(sending, 16), int(receiving, 16)
    return 0, 0


def request(
    port: int, method: str, path: str, headers: Headers | None = None, body: bytes = b"", timeout: float = PATIENCE
) -> Answer:
    """Make one request on a connection of its own; return the answer. Raises `ConnectionError` if it breaks."""
    length = {"Content-Length": str(len(body))} if body or method in ("POST", "PATCH") else {}
    with Connection(port, timeout) as connection:
        connection.start(method, path, {"Connection": "close", **length, **(headers or {})})
        with contextlib.suppress(ConnectionError):  # refused before the end of the body: the answer says why
            connection.send(body)
        return connection.answer(timeout)


def create(port: int, length: int | None, headers: Headers | None = None, body: bytes = b"") -> str:
    """Create an upload and return its path; without a length it is deferred."""
    answer = request(port, "POST", "/files", creation_headers(length, body) | dict(headers or {}), body)
    assert answer.status == 201, answer
    return path_of(answer)


def creation_headers(length: int | None, body: bytes = b"") -> dict[str, str]:
    headers = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    return headers | ({"Content-Type": OFFSET_STREAM} if body else {})


def path_of(created: Answer) -> str:
    return urlsplit(created.headers["location"]).path


def head(port: int, path: str) -> Answer:
    """Make a HEAD request, whose status must not make a client start again at byte 0; return the answer."""
    answer = request(port, "HEAD", path)
    assert answer.status not in RESTARTS_UPLOAD, answer
    assert answer.status < 500, answer
    return answer


def offset_of(port: int, path: str) -> int:
    answer = head(port, path)
    assert answer.status == 200, answer
    return answer.offset


def patch_headers(offset: int, headers: Headers | None = None) -> dict[str, str]:
    return {"Upload-Offset": str(offset), "Content-Type": OFFSET_STREAM, **(headers or {})}


def patch(port: int, path: str, offset: int, body: bytes, headers: Headers | None = None) -> Answer:
    return request(port, "PATCH", path, patch_headers(offset, headers), body)


def start_patch(port: int, path: str, offset: int, size: int | None, headers: Headers | None = None) -> Connection:
    """Send the head of a PATCH and return its connection; without a size the body is chunked."""
    framing = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
    connection = Connection(port)
    try:
        connection.start("PATCH", path, patch_headers(offset, headers) | framing)
    except BaseException:
        connection.close()
        raise
    return connection


def stalled_patch(port: int, path: str, data: bytes, sent: int) -> Connection:
    """Send a PATCH for all of `data` up to the byte at `sent`, and wait until the server has read that."""
    connection = start_patch(port, path, 0, len(data))
    try:
        connection.send(data[:sent])
        connection.wait_until_read()
    except BaseException:
        connection.close()
        raise
    return connection


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; the empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def checksum(data: bytes, algorithm: str = "sha1") -> dict[str, str]:
    digest = hashlib.new(algorithm, data, usedforsecurity=False).digest()
    return {"Upload-Checksum": f"{algorithm} {b64encode(digest).decode()}"}


def content(port: int, path: str) -> bytes:
    """Return the bytes of a finished upload."""
    answer = request(port, "GET", path)
    assert answer.status == 200, answer
    return answer.body


def assert_content(port: int, path: str, expected: bytes) -> None:
    """Assert that an upload is finished and holds exactly these bytes, compared by their digest."""
    received = content(port, path)
    assert (len(received), sha256(received)) == (len(expected), sha256(expected))


def complete(port: int, path: str, data: bytes, headers: Headers | None = None) -> None:
    """Come back as a client does, with one HEAD and one PATCH each in good time, and check what is stored in the end.

    The offset that HEAD answers has to be the one that the PATCH needs.
    """
    with promptly("HEAD"):
        offset = offset_of(port, path)
    assert offset <= len(data)
    with promptly("the PATCH of the client that came back"):
        answer = patch(port, path, offset, data[offset:], headers)
    assert (answer.status, answer.offset) == (204, len(data)), answer
    assert offset_of(port, path) == len(data)
    assert_content(port, path, data)


def look_at_a_running_patch(patched_port: int, asked_port: int, data: bytes) -> None:
    """HEAD neither waits for a running PATCH nor ends it, and answers everything that had arrived."""
    piece = 64 * KIBI
    path = create(patched_port, len(data))
    sent = 0
    offsets = [0]
    with start_patch(patched_port, path, 0, len(data)) as connection:

        def send() -> None:
            nonlocal sent
            while sent < len(data):
                seen = len(offsets)
                connection.send(data[sent : sent + piece])
                sent = min(len(data), sent + piece)
                time.sleep(0.01)  # a network, not a memory copy
                if len(data) - sent <= 10 * piece:  # on a slow machine the last pieces wait for whoever looks
                    wait_until(lambda: len(offsets) > seen, "HEAD is answered")  # noqa: B023

        with ThreadPoolExecutor(1) as executor:
            sender = executor.submit(send)
            while not sender.done():
                arrived = sent - connection.unread()
                with promptly("HEAD"):
                    offset = offset_of(asked_port, path)
                assert arrived <= offset <= sent + piece
                offsets.append(offset)
            sender.result()
        answer = connection.answer()
    assert (answer.status, answer.offset) == (204, len(data))
    assert offsets == sorted(offsets)
    assert len(set(offsets)) > 5
    assert_content(asked_port, path, data)


def take_over(ports: Sequence[int]) -> None:
    """Assert that a second PATCH at another server ends one that is still running, and no byte is mixed up."""
    old, new = payload(2 * MEBI, 1), payload(2 * MEBI, 2)
    path = create(ports[0], len(old))
    with stalled_patch(ports[0], path, old, MEBI) as first:
        with promptly("HEAD"):
            offset = offset_of(ports[1], path)
        assert offset == MEBI
        with start_patch(ports[1], path, offset, len(new) - offset) as second:
            second.send(new[offset : offset + 1000])
            ended = first.answer_or_closed(promised(PROMPT))
            assert ended is None or ended.status == 423
            with contextlib.suppress(ConnectionError):
                first.send(old[MEBI:])  # too late
            second.send(new[offset + 1000 :])
            answer = second.answer()
    assert (answer.status, answer.offset) == (204, len(new))
    assert_content(ports[2], path, old[:offset] + new[offset:])


def contend(ports: Sequence[int], reference: bytes, writers: int) -> None:
    """Run many clients that PATCH one upload at once, each with bytes of its own, and check who wrote which bytes."""
    contents = [reference.translate(bytes(byte ^ key for byte in range(256))) for key in range(writers)]
    path = create(ports[0], len(reference))
    starts: list[dict[int, int]] = [{} for _ in range(writers)]  # offset of a PATCH: end that was acknowledged
    deadline = time.monotonic() + PATIENCE

    def write(writer: int) -> None:
        chance = random.Random(writer)
        while time.monotonic() < deadline:
            offset = offset_of(chance.choice(ports), path)
            if offset == len(reference):
                return
            end = min(len(reference), offset + 150_000 + 10_000 * writer)
            starts[writer].setdefault(offset, offset)
            with contextlib.suppress(ConnectionError):
                answer = patch(chance.choice(ports), path, offset, contents[writer][offset:end])
                assert answer.status in (204, 409, 423), answer
                if answer.status == 204:
                    assert answer.offset == end
                    starts[writer][offset] = end
        raise AssertionError("the contenders never came to an end")

    with ThreadPoolExecutor(writers) as executor:
        for result in [executor.submit(write, writer) for writer in range(writers)]:
            result.result()
    authors = bytes(a ^ b for a, b in zip(content(ports[0], path), reference, strict=True))
    position = 0
    while position < len(authors):
        writer = authors[position]
        assert writer < writers, f"the byte at {position} was sent by nobody"
        assert position in starts[writer], f"writer {writer} sent no PATCH from {position} on"
        assert set(authors[position : starts[writer][position]]) <= {writer}, "acknowledged bytes were overwritten"
        while position < len(authors) and authors[position] == writer:
            position += 1


@contextlib.contextmanager
def promptly(what: str, seconds: float = PROMPT) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    if took > seconds:  # which may be the fault of the machine
        limit = promised(seconds, moments=5)
        assert took <= limit, f"{what} took {took:.2f} s, more than {limit:.2f} s"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for at most so many seconds of an ordinary machine."""
    seconds = scaled(seconds)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
