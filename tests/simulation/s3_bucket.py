"""A bucket of S3 in memory: objects, multipart uploads, conditions, and the errors of S3. No I/O."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass, field
from random import Random

from tusd_py.backends.s3.config import Capabilities

MIN_PART = 5 << 10  # bytes; a thousandth of the real limit
PAGE = 3  # entries of a listing, whatever is asked for


class S3Error(Exception):
    """An answer of S3 that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, or a part of a multipart upload."""

    content: bytes
    etag: str
    at: float  # seconds since the epoch by the clock of S3
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def crc(self) -> str:
        return crc_of(self.content)


@dataclass(slots=True)
class Pending:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    at: float
    headers: dict[str, str]
    parts: dict[int, Stored] = field(default_factory=dict)


def crc_of(content: bytes) -> str:
    return base64.b64encode(zlib.crc32(content).to_bytes(4)).decode()


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class BucketModel:
    """One bucket of a server with these capabilities. Methods raise `S3Error`."""

    def __init__(self, rng: Random, capabilities: Capabilities) -> None:
        self.rng = rng
        self.capabilities = capabilities
        # For the same bytes, as with encryption by keys; servers without checksums have no ETags but MD5.
        self.etags_differ = capabilities.checksum == "crc32" and rng.random() < 0.4
        self.now = 0.0
        self.keeps_versions = False
        self.versions: dict[str, list[str]] = {}  # ids of the versions of each key, and of markers of its removals
        self.objects: dict[str, Stored] = {}
        self.pending: dict[str, Pending] = {}  # by the id of the multipart upload
        self.aborted: set[str] = set()  # keys of multipart uploads that a lifecycle rule has removed

    # Objects.

    def put(self, key: str, content: bytes, headers: dict[str, str], if_match: str, if_none_match: str) -> Stored:
        found = self.objects.get(key)
        if self.capabilities.conditional_put:
            if if_none_match == "*" and found is not None:
                raise S3Error(412, "PreconditionFailed")
            if if_match and found is None:
                raise S3Error(404, "NoSuchKey")
            if if_match and found is not None and found.etag != if_match:
                raise S3Error(412, "PreconditionFailed")
        stored = self.objects[key] = Stored(content, etag_of(content), self.now, headers)
        self._note_version(key)
        return stored

    def _note_version(self, key: str) -> None:
        if self.keeps_versions:
            self.versions.setdefault(key, []).append(f"v{self.rng.randrange(1 << 40)}")

    def get(self, key: str) -> Stored:
        if key not in self.objects:
            raise S3Error(404, "NoSuchKey")
        return self.objects[key]

    def delete(self, key: str, version: str = "") -> None:
        """Remove an object, or one version for good."""
        self.objects.pop(key, None)
        if version:
            self.versions[key].remove(version)
        else:
            self._note_version(key)

    def list_objects(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Return keys after this one, and whether there are more."""
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return keys[:PAGE], len(keys) > PAGE

    # Multipart uploads.

    def create(self, key: str, headers: dict[str, str]) -> str:
        upload_id = self.rng.randbytes(6).hex()
        self.pending[upload_id] = Pending(key, self.now, headers)
        return upload_id

    def find(self, key: str, upload_id: str) -> Pending:
        pending = self.pending.get(upload_id)
        if pending is None or pending.key != key:
            raise S3Error(404, "NoSuchUpload")
        return pending

    def put_part(self, key: str, upload_id: str, number: int, content: bytes) -> Stored:
        pending = self.find(key, upload_id)
        if not 1 <= number <= self.capabilities.max_parts:
            raise S3Error(400, "InvalidArgument")
        etag = f'"{self.rng.randbytes(16).hex()}"' if self.etags_differ else etag_of(content)
        stored = pending.parts[number] = Stored(content, etag, self.now)
        return stored

    def complete(self, key: str, upload_id: str, listed: list[tuple[int, str, str]]) -> Stored:
        """Make the object of parts: number, ETag and CRC-32 of each, the latter empty if it was not given."""
        pending = self.find(key, upload_id)
        numbers = [number for number, _, _ in listed]
        if not numbers or numbers != sorted(set(numbers)):
            raise S3Error(400, "InvalidPartOrder" if numbers else "MalformedXML")
        if not self.capabilities.number_gaps and numbers != list(range(1, len(numbers) + 1)):
            raise S3Error(400, "InvalidPartOrder")
        parts = []
        for number, etag, crc in listed:
            part = pending.parts.get(number)
            if part is None or part.etag.strip('"') != etag.strip('"') or crc not in ("", part.crc):
                raise S3Error(400, "InvalidPart")
            parts.append(part)
        sizes = [len(part.content) for part in parts]
        if any(size < MIN_PART for size in sizes[:-1]):
            raise S3Error(400, "EntityTooSmall")
        if self.capabilities.equal_parts and (len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]):
            raise S3Error(400, "InvalidPart")
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
        etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'
        stored = Stored(b"".join(part.content for part in parts), etag, self.now, pending.headers)
        self.objects[key] = stored
        self._note_version(key)
        del self.pending[upload_id]
        return stored

    def abort(self, key: str, upload_id: str) -> None:
        self.find(key, upload_id)
        del self.pending[upload_id]

    def expire_all(self) -> None:
        """Remove every multipart upload, as a lifecycle rule does."""
        self.aborted.update(pending.key for pending in self.pending.values())
        self.pending.clear()
