"""HTTP requests and answers as values, and the headers of tus."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

KIBI = 1024
MEBI = 1024 * KIBI
OFFSET_STREAM = "application/offset+octet-stream"
MAX_INTEGER = 2**63 - 1

# A tuple is one header line for each of its values.
Value = str | bytes | tuple[str | bytes, ...]
Headers = Mapping[str, Value]
Body = bytes | list[bytes] | None  # a list is sent in chunks, None without Content-Length and Transfer-Encoding

TUS = {"Tus-Resumable": "1.0.0"}

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


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it arrived, repeated fields included."""

    status: int
    fields: tuple[tuple[str, str], ...]  # names in lower case, in the order of arrival
    body: bytes
    interim: tuple[int, ...] = ()  # 1xx before it

    @property
    def headers(self) -> dict[str, str]:
        """The fields by their names in lower case; of repeated ones the last."""
        return dict(self.fields)

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


def shown(value: object) -> str:
    """Return the id of a parameter in the name of a test."""
    return ascii(value)[:40]


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body; the empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def metadata(**pairs: str | bytes) -> str:
    return ",".join(f"{key} {encoded(value)}" for key, value in pairs.items())


def checksum(data: bytes, algorithm: str = "sha1") -> dict[str, str]:
    digest = hashlib.new(algorithm, data, usedforsecurity=False).digest()
    return {"Upload-Checksum": f"{algorithm} {encoded(digest)}"}


def creation_headers(length: int | None, body: Body = b"") -> dict[str, str]:
    """Of a POST that creates an upload; without a length it is deferred."""
    headers = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    return TUS | headers | ({"Content-Type": OFFSET_STREAM} if body else {})


def patch_headers(offset: int, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    return TUS | {"Content-Type": OFFSET_STREAM, "Upload-Offset": str(offset)} | dict(headers or {})


def path_of(created: Answer) -> str:
    """Return the path of the upload that a POST has created."""
    return urlsplit(created["Location"]).path


def identity(url: str) -> str:
    """Return the id of an upload."""
    return url.rpartition("/")[2]
