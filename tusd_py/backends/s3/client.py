"""The S3 client of one process: boto3 in worker threads of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from tusd_py.asyncutil.threads import Threads
from tusd_py.backends.s3.body import Reader, body_of, crc32, crc32_text, md5, read_all, read_pieces
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.errors import MultipartMissing, ObjectMissing, code_of, translate
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageUnavailable, UploadError

T = TypeVar("T")

CLOSE_TIMEOUT = 2.0  # seconds for requests whose callers were cancelled
COMPARED_SIZE = 1 << 20  # bytes of an object that are read at a time, to be compared with others
BODY_ATTEMPTS = 3  # requests for a body that breaks off, which botocore does not repeat


class Client:
    """The calls of S3, by name. Methods raise `StorageFull`, `StorageUnavailable` and the errors of `s3/errors.py`."""

    def __init__(self, config: S3Config, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> None:
        self._config = config
        self._instrumentation = instrumentation
        self._client: Any = None
        self.confirm_missing: Callable[[], Awaitable[None]] | None = None  # awaited before an object counts as missing

    async def open(self) -> None:
        """Create the client of boto3, which takes some 100 ms, and verify that the bucket can be used."""
        self._threads = Threads(self._config.concurrency, "tusd-py-s3")
        self._client = await self._threads.run(partial(_build, self._config))
        await self.call("list_objects_v2", Prefix=self._config.prefix, MaxKeys=1)

    async def close(self, timeout: float | None = None) -> bool:
        """Wait until all requests have ended, `timeout` seconds (default: 2) at most; return whether they have."""
        return not hasattr(self, "_threads") or await asyncio.to_thread(self._close, timeout)

    def _close(self, timeout: float | None) -> bool:
        ended = self._threads.close(CLOSE_TIMEOUT if timeout is None else timeout)
        if self._client is not None:
            self._client.close()
        return ended

    @property
    def boto3(self) -> Any:
        """The client of boto3, for benchmarks."""
        return self._client

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Make one request, with the retries of botocore; return the answer."""
        return await self._run_confirmed(partial(self._call, operation, parameters))

    async def send(
        self, operation: str, pieces: Sequence[Buffer], crc: int | None = None, **parameters: Any
    ) -> tuple[dict[str, Any], str]:
        """Make a request with a body, whose CRC-32 may be known; return the answer and the checksum of the body."""
        return await self._run_confirmed(partial(self._send, operation, pieces, crc, parameters))

    async def get(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes of an object between two offsets; fewer if it is shorter."""
        return await self._run_confirmed(partial(self._get, key, start, end, read_all))

    async def get_pieces(self, key: str, start: int, end: int, new_chunk: Callable[[], bytearray]) -> list[Buffer]:
        """Do what `get` does, into chunks of a pool."""
        return await self._run_confirmed(partial(self._get, key, start, end, partial(read_pieces, new_chunk=new_chunk)))

    async def holds(self, key: str, size: int, pieces: Sequence[Buffer]) -> bool:
        """Return whether an object of this size consists of exactly these pieces."""
        if size != sum(map(len, pieces)):
            return False
        start = 0
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for first in range(0, len(view), COMPARED_SIZE):
                expected = view[first : first + COMPARED_SIZE]
                if await self.get(key, start, start + len(expected)) != expected:
                    return False
                start += len(expected)
        return True

    async def get_unconfirmed(self, key: str, end: int) -> bytes:
        """Return the first bytes of an object, without confirming that it is missing."""
        return await self._threads.run(partial(self._get, key, 0, end, read_all))

    async def _run_confirmed(self, work: Callable[[], T]) -> T:
        try:
            return await self._threads.run(work)
        except (ObjectMissing, MultipartMissing):
            if self.confirm_missing is not None:
                await self.confirm_missing()
            raise

    async def presign(self, operation: str, expires: int, **parameters: Any) -> str:
        """Return a URL that makes a request of `operation` for `expires` seconds."""
        parameters["Bucket"] = self._config.bucket
        make = partial(self._client.generate_presigned_url, operation, parameters, expires)
        url: str = await self._threads.run(partial(self._measure, "presign", make))
        return url

    def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        method = getattr(self._client, operation)
        return self._measure(operation, partial(method, Bucket=self._config.bucket, **parameters))

    def _send(
        self, operation: str, pieces: Sequence[Buffer], crc: int | None, parameters: dict[str, Any]
    ) -> tuple[dict[str, Any], str]:
        if self._config.capabilities.checksum == "md5":
            name, checksum = "ContentMD5", md5(pieces)
        else:
            name, checksum = "ChecksumCRC32", crc32_text(crc32(pieces) if crc is None else crc)
        body = body_of(pieces)
        return self._call(operation, parameters | {name: checksum, "Body": body, "ContentLength": len(body)}), checksum

    def _get(self, key: str, start: int, end: int, read: Callable[[Reader], T]) -> T:
        attempt = 1
        while True:
            try:
                return self._measure("get_object", partial(self._fetch, key, start, end, read))
            except BrokenBody:
                if attempt == BODY_ATTEMPTS:
                    raise
                attempt += 1

    def _fetch(self, key: str, start: int, end: int, read: Callable[[Reader], T]) -> T:
        parameters = {"Bucket": self._config.bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
        body = self._client.get_object(**parameters)["Body"]
        with body:
            try:
                return read(body.read)
            except Exception as error:
                raise BrokenBody from error

    def _measure(self, operation: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        outcome = "ok"
        try:
            return work()
        except UploadError as error:
            outcome = error.code
            raise
        except Exception as error:
            outcome = code_of(error)
            raise translate(error, self._config.bucket) from error
        finally:
            self._instrumentation.s3_request_finished(operation, outcome, time.monotonic() - started)


class BrokenBody(StorageUnavailable):
    """The end of an answer before its last byte."""

    default_message = "the storage broke off in the middle of an object"


def _build(config: S3Config) -> Any:
    try:
        import boto3  # type: ignore[import-untyped]
        from botocore.config import Config  # type: ignore[import-untyped]
    except ImportError as error:
        raise StorageUnavailable("boto3 is not installed: pip install boto3 zlib-ng") from error
    options = Config(
        signature_version="s3v4",
        max_pool_connections=config.concurrency,
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        retries={"mode": "standard", "total_max_attempts": config.attempts},
        tcp_keepalive=True,
        # This client passes checksums explicitly: botocore's own trailers are slow, and many servers refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": config.addressing, "payload_signing_enabled": False},
    )
    for library in ("boto3", "botocore"):  # their lines of level INFO tell for example where credentials were found
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        session = boto3.session.Session()
        return session.client(
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region or session.region_name or "us-east-1",
            config=options,
        )
    except Exception as error:  # a malformed endpoint, an unknown profile
        raise StorageUnavailable(f"the storage cannot be set up: {error}") from error
