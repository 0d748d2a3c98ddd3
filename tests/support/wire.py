"""HTTP/1.1 byte by byte: requests are sent exactly as a test gives them, answers are read whole, with repeated fields.

Every answer is checked against the rules that hold for all answers: see `assert_common_rules`.
"""

from __future__ import annotations

import base64
import contextlib
import random
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.harness import ServerProcess
from tests.support.timing import scaled

# A tuple is one header line for each of its values.
Value = str | bytes | tuple[str | bytes, ...]
Headers = Mapping[str, Value]
Body = bytes | list[bytes] | None  # a list is sent in chunks, None without Content-Length and Transfer-Encoding

TUS: dict[str, Value] = {"Tus-Resumable": "1.0.0"}
OFFSET_STREAM = "application/offset+octet-stream"
MAX_INTEGER = 2**63 - 1
ID = r"[A-Za-z0-9_-]{22,128}"  # 128 random bits need 22 characters at least
IMF_DATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
# Texts that must not be in an answer to a client.
LEAKS = re.compile(rb"Traceback|File \"|sqlite|Errno|/tmp|\.tusd-py|Exception|Error\(", re.IGNORECASE)

# Values that are no integer of a header field, most of them near to 5.
NO_INTEGERS: tuple[Value, ...] = (
    "",
    "-1",
    "-0",
    "+5",
    "5 x",
    "5 5",
    "5, 5",
    "5,",
    "5;5",
    "5.0",
    "5_0",
    "5L",
    "0x5",
    "0b101",
    "1e3",
    "five",
    '"5"',
    "NaN",
    "Infinity",
    "None",
    "1" + "\u0665".encode().decode("latin-1"),  # an Arabic digit
    "\u0665".encode(),
    "\uff15".encode(),  # a full-width digit
    b"\xb2",  # superscript two in ISO 8859-1
    b"\xff",
    str(MAX_INTEGER + 1),
    str(2**64 + 5),
    "9" * 30,
    "9" * 5000,  # more digits than int() converts
    ("5", "6"),
)


def shown(value: object) -> str:
    """Return the id of a parameter in the name of a test."""
    return ascii(value)[:40]


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def metadata(**pairs: str | bytes) -> str:
    return ",".join(f"{key} {encoded(value)}" for key, value in pairs.items())


@dataclass(frozen=True)
class Answer:
    status: int
    fields: tuple[tuple[str, str], ...]  # names in lower case, in the order of arrival
    body: bytes
    interim: tuple[int, ...]  # 1xx before it

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} is repeated: {values}"
        return values[0] if values else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"no {name} in {self}"
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    @property
    def offset(self) -> int:
        return int(self["Upload-Offset"])

    @property
    def text(self) -> str:
        return self.body.decode()

    def listed(self, name: str) -> list[str]:
        """Return the items of a comma-separated field."""
        return [item.strip() for item in self[name].split(",")]


class Closed(ConnectionError):
    """A connection that the server closed where an answer was due."""


class Connection:
    """One connection to a server; it stays open between requests."""

    def __init__(self, url: str, timeout: float | None = None) -> None:
        authority = url.removeprefix("http://").partition("/")[0]
        host, _, port = authority.rpartition(":")
        self.authority = authority
        self._socket = socket.create_connection((host, int(port)), timeout or scaled(15))
        self._received = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_head(self, method: str, url: str, headers: Headers | None = None, *, version: str = "1.1") -> None:
        self.send(self.head_of(method, url, headers, version=version))

    def send_chunk(self, data: bytes) -> None:
        self.send(chunk(data))

    def head_of(self, method: str, url: str, headers: Headers | None = None, *, version: str = "1.1") -> bytes:
        """Return the request line and the header fields as given, with Host added if it is missing."""
        target = url.removeprefix(f"http://{self.authority}")
        lines = [f"{method} {target} HTTP/{version}".encode("latin-1")]
        given = dict(headers or {})
        if "Host" not in given:
            given = {"Host": self.authority} | given
        for name, value in given.items():
            for one in value if isinstance(value, tuple) else (value,):
                lines.append(name.encode() + b": " + (one.encode("latin-1") if isinstance(one, str) else one))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def ask(self, method: str, url: str, headers: Headers | None = None, body: Body = None) -> Answer:
        given = dict(headers or {})
        if isinstance(body, bytes):
            given["Content-Length"] = str(len(body))
        elif body is not None:
            given["Transfer-Encoding"] = "chunked"
            body = b"".join(chunk(part) for part in [*body, b""])
        # One send, so that an early answer does not meet a client that is still busy with its headers.
        self.send(self.head_of(method, url, given) + (body or b""))
        return self.answer(method, given)

    def expect_continue(self) -> None:
        status, _ = self._read_head()
        assert status == 100, status

    def answer(self, method: str, headers: Headers | None = None) -> Answer:
        """Return the next answer, checked against the rules for all answers."""
        answer = self.read_answer(method)
        assert_common_rules(method, headers or {}, answer)
        return answer

    def read_answer(self, method: str) -> Answer:
        interim: list[int] = []
        while True:
            status, fields = self._read_head()
            if status >= 200:
                break
            interim.append(status)
        named = dict(fields)
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif "chunked" in named.get("transfer-encoding", ""):
            body = self._read_chunked()
        elif "content-length" in named:
            body = self._read(int(named["content-length"]))
        else:
            body = self._read_to_end()
        return Answer(status, tuple(fields), body, tuple(interim))

    def is_closed(self) -> bool:
        """Return whether the server has closed the connection, or closes it soon."""
        self._socket.settimeout(scaled(5))
        try:
            return not self._socket.recv(1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def _read_head(self) -> tuple[int, list[tuple[str, str]]]:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields: list[tuple[str, str]] = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, line
            fields.append((name.lower(), value.strip(" \t")))
        return int(first.split(" ")[1]), fields

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def _read_chunked(self) -> bytes:
        parts: list[bytes] = []
        while True:
            while b"\r\n" not in self._received:
                self._receive()
            size, _, self._received = self._received.partition(b"\r\n")
            part = self._read(int(size, 16))
            assert self._read(2) == b"\r\n"
            if not part:
                return b"".join(parts)
            parts.append(part)

    def _read_to_end(self) -> bytes:
        with contextlib.suppress(Closed):
            while True:
                self._receive()
        data, self._received = self._received, b""
        return data

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise Closed(self._received)
        self._received += data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def assert_common_rules(method: str, headers: Headers, answer: Answer) -> None:
    """Assert the rules for every answer of the server."""
    effective = str(headers.get("X-HTTP-Method-Override", method)).upper() if method != "OPTIONS" else method
    assert answer.status < 500, answer
    assert answer.status == 304 or not 300 <= answer.status < 400, answer
    assert answer.all("Tus-Resumable") == ["1.0.0"], answer
    assert answer.all("X-Content-Type-Options") == ["nosniff"], answer
    if answer.status in (201, 409) or (answer.status, effective) in ((204, "PATCH"), (200, "HEAD")):
        assert re.fullmatch("[0-9]+", answer["Upload-Offset"]), answer
    elif answer.status >= 400:
        assert "Upload-Offset" not in answer, answer
    if answer.status >= 400:
        assert not LEAKS.search(answer.body), answer


def ask(method: str, url: str, headers: Headers | None = None, body: Body = None) -> Answer:
    """Make one request on a connection of its own; return the answer."""
    with Connection(url) as connection:
        return connection.ask(method, url, headers, body)


def creation(
    url: str, length: int | None, headers: Headers | None = None, body: Body = None, *, answered: int = 201
) -> Answer:
    """Create an upload and return the answer; without a length it is deferred."""
    given: dict[str, Value] = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    if body:
        given["Content-Type"] = OFFSET_STREAM
    answer = ask("POST", url, TUS | given | dict(headers or {}), b"" if body is None else body)
    assert answer.status == answered, answer
    return answer


def create(url: str, length: int | None, headers: Headers | None = None, body: Body = None) -> str:
    """Create an upload and return its URL."""
    return creation(url, length, headers, body)["Location"]


def patch_headers(offset: int) -> dict[str, Value]:
    return TUS | {"Content-Type": OFFSET_STREAM, "Upload-Offset": str(offset)}


def patch(url: str, offset: int, body: Body, headers: Headers | None = None) -> Answer:
    return ask("PATCH", url, patch_headers(offset) | dict(headers or {}), body)


def head(url: str) -> Answer:
    return ask("HEAD", url, TUS)


def delete(url: str) -> Answer:
    return ask("DELETE", url, TUS)


def offset_of(url: str) -> int:
    answer = head(url)
    assert answer.status == 200, answer
    return answer.offset


def content_of(url: str) -> bytes:
    """Return the bytes of a finished upload."""
    answer = ask("GET", url)
    assert answer.status == 200, answer
    return answer.body


def refusal_without_continue(method: str, url: str, headers: Headers, declared: int) -> Answer:
    """Return the refusal of a request that waits for `100 Continue`, which must not come."""
    given = dict(headers) | {"Content-Length": str(declared), "Expect": "100-continue"}
    with Connection(url) as connection:
        connection.send_head(method, url, given)
        answer = connection.answer(method, given)
    assert answer.interim == (), answer
    assert answer["Connection"] == "close", "the next bytes may be the body or a request"
    return answer


def identity(url: str) -> str:
    return url.rpartition("/")[2]


@dataclass(frozen=True)
class Stored:
    """State of a server: its data files with their sizes, and its records."""

    files: Mapping[str, int]
    records: Mapping[str, Sequence[Any]]


def stored(server: ServerProcess) -> Stored:
    folder = Path(server.upload_dir)
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and ".tusd-py" not in path.parts
    }
    database = f"file:{folder / '.tusd-py' / 'uploads.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
        rows = connection.execute("SELECT id, length, offset, status, metadata, concat_header FROM uploads").fetchall()
    return Stored(files, {row[0]: row[1:] for row in rows})


@contextlib.contextmanager
def unchanged(server: ServerProcess) -> Iterator[None]:
    """Assert that the context changes neither the files nor the records of a server."""
    before = stored(server)
    yield
    assert stored(server) == before


def new_upload(server: ServerProcess, before: Stored) -> str:
    """Return the URL of the one upload that was added since `before`, if the client was not told."""
    added = set(stored(server).records) - set(before.records)
    assert len(added) == 1, added
    return f"{server.url}/{added.pop()}"


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait for at most so many seconds of an ordinary machine."""
    seconds = scaled(seconds)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[ServerProcess]:
    """A server that must not log a stack trace."""
    with ServerProcess(folder / "uploads", **options) as server:
        yield server
    log = "".join(server.log)
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
