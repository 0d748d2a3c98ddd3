"""HTTP/1.1 byte by byte: what a test sends is exact, and it can stop anywhere; what comes back is read whole."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.timing import TIMEOUT, scaled, wait_until
from tests.support.wire.messages import TUS, Answer, Body, Headers, chunk

SOCKETS = Path("/proc/net/tcp")
READ_SIZE = 1 << 16


class Closed(ConnectionError):
    """A connection that the server closed where an answer was due."""


class Connection:
    """One connection to a server, named by a URL or by its port; it stays open between requests."""

    def __init__(
        self, server: str | int, timeout: float = TIMEOUT, *, receive_buffer: int | None = None, address: str = ""
    ) -> None:
        """Connect, from an address of the test.

        `receive_buffer` is the number of bytes that the kernel may hold for the test.
        """
        self.authority = f"127.0.0.1:{server}" if isinstance(server, int) else authority_of(server)
        host, _, port = self.authority.rpartition(":")
        if receive_buffer is None:
            self.socket = socket.create_connection((host, int(port)), timeout, (address, 0) if address else None)
        else:
            self.socket = socket.socket()
            self.socket.settimeout(timeout)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # before the handshake
            self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_port = int(port)
        self.client_port: int = self.socket.getsockname()[1]
        self._method = "GET"
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # Sending.

    def start(self, method: str, url: str, headers: Headers) -> None:
        """Send the head of a request of tus."""
        self.send_head(method, url, TUS | dict(headers))

    def send_head(self, method: str, url: str, headers: Headers | None = None, *, version: str = "1.1") -> None:
        """Send the request line and the headers as they are given, and Host."""
        self.send(self.head_of(method, url, headers, version=version))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_chunk(self, data: bytes) -> None:
        self.send(chunk(data))

    def head_of(self, method: str, url: str, headers: Headers | None = None, *, version: str = "1.1") -> bytes:
        """Return the request line and the header fields as given, with Host added if it is missing."""
        self._method = method
        target = url.removeprefix(f"http://{self.authority}")
        lines = [f"{method} {target} HTTP/{version}".encode("latin-1")]
        given = dict(headers or {})
        if "Host" not in given:
            given = {"Host": self.authority} | given
        for name, value in given.items():
            for one in value if isinstance(value, tuple) else (value,):
                lines.append(name.encode() + b": " + (one.encode("latin-1") if isinstance(one, str) else one))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def send_request(self, method: str, url: str, headers: Headers | None = None, body: Body = None) -> None:
        """Send a whole request: in one go, so that an early answer does not meet a client busy with its headers."""
        given = dict(headers or {})
        if isinstance(body, bytes):
            given["Content-Length"] = str(len(body))
        elif body is not None:
            given["Transfer-Encoding"] = "chunked"
            body = b"".join(chunk(part) for part in [*body, b""])
        self.send(self.head_of(method, url, given) + (body or b""))

    def finish_sending(self) -> None:
        """Send FIN; the answer can still be read."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Abort the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # The other side.

    def wait_until_read(self) -> None:
        """Wait until the server process has read everything that was sent."""
        wait_until(lambda: self.unread() == 0, "the server read what was sent")

    def unread(self) -> int:
        """Return the number of sent bytes that the server process has not read yet, or a larger one."""
        if not SOCKETS.exists():
            pytest.skip("only Linux tells what a process has not read yet")
        not_arrived = _queues(self.client_port, self.server_port)[0]
        return not_arrived + _queues(self.server_port, self.client_port)[1]

    def is_closed(self) -> bool:
        """Return whether the server has closed the connection, or closes it soon."""
        self.socket.settimeout(scaled(5))
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    # Receiving.

    def answer(self, timeout: float = TIMEOUT, *, method: str | None = None, awaited_body: bytes = b"") -> Answer:
        """Return the next answer; raises `ConnectionError` if the connection ends within it.

        `method` is that of the request, by default of the one whose head was sent last. `awaited_body` is sent when
        the server asks for it (100 Continue).
        """
        self.socket.settimeout(timeout)
        interim: list[int] = []
        while True:
            status, fields = self._read_head()
            if status >= 200:
                break
            interim.append(status)
            if status == 100 and awaited_body:
                with contextlib.suppress(ConnectionError):  # answered before its end
                    self.send(awaited_body)
        named = dict(fields)
        if (method or self._method) == "HEAD" or status in (204, 304):
            body = b""
        elif "chunked" in named.get("transfer-encoding", ""):
            body = self._read_chunked()
        elif "content-length" in named:
            body = self._read(int(named["content-length"]))
        else:
            body = self._read_to_end()
        return Answer(status, tuple(fields), body, tuple(interim))

    def answer_or_closed(self, timeout: float = TIMEOUT) -> Answer | None:
        """Return the answer, or None if the server closed the connection instead."""
        try:
            return self.answer(timeout)
        except ConnectionError:
            return None

    def expect_continue(self) -> None:
        status, _ = self._read_head()
        assert status == 100, status

    def _read_head(self) -> tuple[int, list[tuple[str, str]]]:
        first, *lines = self._read_through(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields: list[tuple[str, str]] = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, line
            fields.append((name.lower(), value.strip(" \t")))
        return int(first.split(" ")[1]), fields

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _read_through(self, end: bytes) -> bytes:
        """Read up to `end` and past it; return the bytes before it."""
        while (position := self._received.find(end)) < 0:
            self._receive()
        return self._read(position + len(end))[:position]

    def _read_chunked(self) -> bytes:
        parts: list[bytes] = []
        while True:
            part = self._read(int(self._read_through(b"\r\n"), 16))
            assert self._read(2) == b"\r\n"
            if not part:
                return b"".join(parts)
            parts.append(part)

    def _read_to_end(self) -> bytes:
        with contextlib.suppress(Closed):
            while True:
                self._receive()
        return self._read(len(self._received))

    def _receive(self) -> None:
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise Closed(bytes(self._received))
        self._received += data


def authority_of(url: str) -> str:
    return url.removeprefix("http://").partition("/")[0]


def _queues(local_port: int, remote_port: int) -> tuple[int, int]:
    """Return the bytes in the send and in the receive queue of one loopback socket; zeros if there is none."""
    # A search rather than a split of each line: beside other tests there are thousands of sockets.
    found = re.search(rf":{local_port:04X} \w+:{remote_port:04X} \w+ (\w+):(\w+) ", SOCKETS.read_text())
    return (int(found[1], 16), int(found[2], 16)) if found else (0, 0)
