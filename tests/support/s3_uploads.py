"""Servers that keep uploads in S3, and the contents of the bucket."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import http.client
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.harness import ServerProcess
from tests.support.hosts import assert_no_bugs
from tests.support.s3_server import CREDENTIALS, S3Server, s3_config
from tests.support.timing import scaled
from tests.support.wire.messages import MEBI, Answer
from tests.support.wire.requests import create, offset_of, patch, request
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.storage import Orphan
from tusd_py.uploads.sweeping import Records

PART = 5 * MEBI  # part size of all servers here, the smallest that S3 accepts
READ_SIZE = MEBI
CALL = re.compile(r'tusd_s3_call_duration_seconds_count\{operation="(\w+)",result="(\w+)"\} ([0-9.e+]+)')


@functools.cache
def client_of(server: S3Server) -> Any:
    """Return one client for all tests of this process, since it takes long to create."""
    client = server.client()
    atexit.register(client.close)
    return client


class Place:
    """A prefix of its own in the bucket."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.prefix = f"{secrets.token_hex(6)}/"
        self._client = client_of(server)

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """Return the options of a server for this prefix; the endpoint may be that of a proxy."""
        return {
            "s3_bucket": self.server.bucket,
            "s3_endpoint": endpoint or self.server.endpoint,
            "s3_dialect": self.server.dialect,
            "s3_addressing": "path",
            "s3_prefix": self.prefix,
            "s3_part_size": "5MiB",
            "env": CREDENTIALS,
        }

    def config(self) -> S3Config:
        return s3_config(self.server, Path(self.prefix))

    # Contents.

    @property
    def keys(self) -> list[str]:
        """All keys below the prefix but that of the identity of the storage, which stays."""
        identity = self.config().identity
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.server.bucket, Prefix=self.prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", []) if found["Key"] != identity]

    @property
    def objects(self) -> list[str]:
        """The keys of all objects that are not tails."""
        return [key for key in self.keys if not key.startswith(f"{self.prefix}.tusd-py/")]

    @property
    def multiparts(self) -> list[str]:
        return self.server.multiparts(self.prefix)

    def traces_of(self, path: str) -> list[str]:
        """Return the keys of everything that belongs to an upload, and the ids of its multipart uploads."""
        upload_id = id_of(path)
        return [key for key in self.keys if upload_id in key] + self.server.multiparts(self.prefix + upload_id)

    def key_of(self, path: str) -> str:
        return self.prefix + id_of(path)

    def describe(self, key: str) -> dict[str, Any]:
        """Return the head of an object."""
        found: dict[str, Any] = self._client.head_object(Bucket=self.server.bucket, Key=key)
        return found

    def tags_of(self, key: str) -> dict[str, str]:
        answer = self._client.get_object_tagging(Bucket=self.server.bucket, Key=key)
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def digest(self, key: str) -> tuple[int, str]:
        """Return size and SHA-256 of an object."""
        digest = hashlib.sha256()
        size = 0
        with self._client.get_object(Bucket=self.server.bucket, Key=key)["Body"] as body:
            while data := body.read(READ_SIZE):
                digest.update(data)
                size += len(data)
        return size, digest.hexdigest()

    def assert_object(self, path: str, expected: bytes) -> None:
        """Assert that the object of an upload holds exactly these bytes."""
        assert self.digest(self.key_of(path)) == digest_of(expected)

    def assert_alone(self, path: str, expected: bytes) -> None:
        """Assert that the object of an upload holds exactly these bytes and is all that is left of the upload."""
        self.assert_object(path, expected)
        assert self.traces_of(path) == [self.key_of(path)]

    # Actions of other programs.

    def abort_multiparts(self, path: str) -> int:
        """Abort the multipart uploads of an upload; return their number."""
        key = self.key_of(path)
        ids = self.server.multiparts(key)
        for upload_id in ids:
            self._client.abort_multipart_upload(Bucket=self.server.bucket, Key=key, UploadId=upload_id)
        return len(ids)

    def remove(self, keys: list[str]) -> None:
        for key in keys:
            self._client.delete_object(Bucket=self.server.bucket, Key=key)


@contextlib.contextmanager
def serving(folder: Path, place: Place, endpoint: str | None = None, **options: Any) -> Iterator[ServerProcess]:
    """Run a server that must log no bug."""
    with ServerProcess(folder / "records", **(place.options(endpoint) | options)) as server:
        try:
            yield server
        except BaseException:
            print(*server.log[-30:], sep="")  # the log may tell the cause of the failure
            raise
    assert_no_bugs([server])


def id_of(path: str) -> str:
    return path.rpartition("/")[2]


def digest_of(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def calls_of(server: ServerProcess) -> Counter[str]:
    """Count the calls of each operation of S3 since the server started, failed ones included."""
    counts: Counter[str] = Counter()
    for operation, _, count in CALL.findall(request(server.port, "GET", "/metrics").body.decode()):
        counts[operation] += int(float(count))
    return counts


def peak_memory(server: ServerProcess) -> int:
    """Return the peak of the resident memory of a server, in bytes."""
    (line,) = [
        line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


def fetch(url: str, headers: dict[str, str] | None = None) -> Answer:
    """Make a GET request for any URL, as a client that follows a redirect does; return the answer."""
    target = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(target.netloc, timeout=scaled(30))) as connection:
        connection.request("GET", f"{target.path}?{target.query}", headers=headers or {})
        response = connection.getresponse()
        fields = tuple((name.lower(), value) for name, value in response.getheaders())
        return Answer(response.status, fields, response.read())


async def clean(records: Path, place: Place, *, dry_run: bool = False) -> list[Orphan]:
    """Run the orphan cleanup for orphans of any age; the server of these records must have ended."""
    state = SQLiteState(records / ".tusd-py" / "uploads.sqlite3")
    storage = S3Storage(place.config())
    await state.open()
    await storage.open()
    locker = LocalLocker(records / ".tusd-py" / "locks")
    await locker.open()
    try:
        return list(await storage.clean(Records(state, locker), older_than=0, dry_run=dry_run))
    finally:
        await locker.close()
        await storage.close()
        await state.close()


def send_patches(server: ServerProcess, path: str, data: bytes, size: int, offset: int = 0) -> None:
    """Send PATCHes of one size, with a HEAD after each."""
    while offset < len(data):
        answer = patch(server.port, path, offset, data[offset : offset + size])
        offset = min(len(data), offset + size)
        assert (answer.status, answer.offset) == (204, offset), answer
        assert offset_of(server.port, path) == offset


def create_partial(server: ServerProcess, data: bytes, **headers: str) -> str:
    """Create a partial upload with all of its bytes; return its path."""
    return create(server.port, len(data), {"Upload-Concat": "partial", **headers}, data)
