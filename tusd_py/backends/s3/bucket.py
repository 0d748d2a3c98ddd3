"""Requests to one bucket, for a storage and its writers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from tusd_py.asyncutil.threads import Threads
from tusd_py.asyncutil.ttl_set import TTLSet
from tusd_py.backends.s3.client import Client
from tusd_py.backends.s3.config import MAX_PART, S3Config
from tusd_py.backends.s3.copy_plan import Slice
from tusd_py.backends.s3.errors import MultipartMissing, NotSatisfied, ObjectMissing
from tusd_py.backends.s3.identity import IdentityObject
from tusd_py.backends.s3.layout import Layout, Multipart, Tail, checksum_of, entry
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import OWNER, PUT_ID, owner, properties, protection, tails_of, token_of
from tusd_py.backends.s3.part_sizes import PartSizes, choose_sizes, skipped_numbers
from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadError
from tusd_py.core.upload import Upload, UploadPart

T = TypeVar("T")

logger = logging.getLogger("tusd_py.storage")

_warned_buckets: set[tuple[str | None, str]] = set()  # endpoint and name; a server opens its storage more than once
COPY_THREADS = 4
RESERVED_REQUEST_SLOTS = 4  # threads kept for small requests while parts are sent
PART_CURSOR = {"PartNumberMarker": "NextPartNumberMarker"}
VERSION_CURSOR = {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
EXISTENCE_CACHE_TTL = 10.0  # seconds within which the existence of a multipart upload or a tail is not checked again
MAX_DELETED = 1000  # keys of one DeleteObjects request


class Bucket:
    """The requests to one bucket, and their threads. Used by one event loop between `open` and `close`."""

    def __init__(self, config: S3Config, memory: MemoryLimiter, instrumentation: Instrumentation) -> None:
        self.config = config
        self.wants_crc = config.capabilities.checksum == "crc32"
        self.parts_in_flight = 0
        self._memory = memory
        self._client = Client(config, instrumentation)
        self._copy_threads = Threads(COPY_THREADS, "tusd-py-s3-copy")
        self._recently_seen = TTLSet(EXISTENCE_CACHE_TTL)  # multipart uploads and tails
        # Upload id -> next unused part number, where no record has it because nothing was committed.
        self._used_numbers: dict[str, int] = {}
        self.identity = IdentityObject(config, self._client)

    async def open(self) -> None:
        """Connect, and verify that the bucket can be used."""
        # Requests with parts, copied ones too, leave threads free for small requests.
        self._slots = asyncio.Semaphore(max(1, self.config.concurrency - RESERVED_REQUEST_SLOTS))
        await self._client.open()
        await self._warn_about_versions()

    async def close(self, timeout: float | None = None) -> bool:
        """Wait until every request has ended, `timeout` seconds at most; return whether all have."""
        ended = await self._client.close(timeout)
        return await asyncio.to_thread(self._copy_threads.close, timeout) and ended

    def run_copy(self, copy: Callable[[], T]) -> asyncio.Future[T]:
        """Run a copy of bytes in memory in a worker thread."""
        return self._copy_threads.run(copy)

    # Sizes and numbers of parts.

    def sizes_of(self, upload: Upload, layout: Layout) -> PartSizes:
        """Return the part sizes of an upload: those in its layout, or new ones before its first byte."""
        capabilities = self.config.capabilities
        largest = self.config.largest_part
        if not layout.part_size:
            return choose_sizes(
                upload.length,
                self.config.part_size,
                capabilities.max_parts,
                equal=capabilities.equal_parts,
                largest=largest,
            )
        if self.has_free_sizes:
            return PartSizes(layout.part_size, layout.growing, capabilities.max_parts, largest)
        return PartSizes(layout.part_size, layout.growing, capabilities.max_parts, layout.largest or MAX_PART)

    @property
    def has_free_sizes(self) -> bool:
        """Whether the sizes of the parts may change during an upload."""
        capabilities = self.config.capabilities
        return capabilities.number_gaps and not capabilities.equal_parts

    def first_number(self, upload: Upload, layout: Layout, sizes: PartSizes, *, unreleased_predecessors: int) -> int:
        """Return the number of the next part, which no request of an earlier writer may have."""
        if not self.config.capabilities.number_gaps:  # a late request of an earlier writer sends the same bytes
            return sizes.number_at(min(layout.parts_end, upload.offset))
        number = max(layout.next_number, self._used_numbers.get(upload.id, 1))
        for _ in range(unreleased_predecessors):
            number += skipped_numbers(sizes, number, None if upload.length is None else upload.length - upload.offset)
        return number

    def note_used_numbers(self, upload_id: str, next_number: int) -> None:
        """Remember that the part numbers below `next_number` were used, which no record of the upload says."""
        self._used_numbers[upload_id] = next_number

    def drop_upload_state(self, upload_id: str) -> None:
        """Drop the used part numbers and the cached bytes of an upload."""
        self._used_numbers.pop(upload_id, None)
        self._memory.drop_cached(upload_id)

    # Multipart uploads.

    async def check_multipart(self, key: str, multipart_id: str) -> None:
        """Verify that a multipart upload exists; raises `UploadNotFound` if it was aborted."""
        await self._client.call("list_parts", Key=key, UploadId=multipart_id, MaxParts=1)
        self._recently_seen.add(multipart_id)

    async def ensure_multipart(self, key: str, multipart_id: str) -> None:
        """Do what `check_multipart` does, unless the multipart upload existed within `EXISTENCE_CACHE_TTL`."""
        if multipart_id not in self._recently_seen:
            await self.check_multipart(key, multipart_id)

    async def create_multipart(self, upload: Upload, key: str, *, copied: bool = False) -> Multipart:
        """Create a multipart upload; with `copied`, S3 will copy some of its parts from other objects."""
        put_id = f"mpu-{secrets.token_hex(8)}"
        parameters = properties(self.config, upload, put_id)
        capabilities = self.config.capabilities
        if self.wants_crc and (capabilities.copied_checksums or not copied):
            parameters["ChecksumAlgorithm"] = "CRC32"
        answer = await self._client.call("create_multipart_upload", Key=key, **parameters)
        return Multipart(key, answer["UploadId"], put_id)

    async def upload_part(
        self, multipart: Multipart, number: int, start: int, pieces: Sequence[Buffer], crc: int | None = None
    ) -> UploadPart:
        """Upload one part from memory, with its CRC-32 if that is known; return its entry in the part list."""
        end = start + sum(map(len, pieces))
        async with self._slots:
            self.parts_in_flight += 1
            try:
                answer, checksum = await self._client.send(
                    "upload_part", pieces, crc, Key=multipart.key, UploadId=multipart.id, PartNumber=number
                )
            except ObjectMissing:  # some servers know the multipart upload by the key only
                raise MultipartMissing from None
            finally:
                self.parts_in_flight -= 1
        self._recently_seen.add(multipart.id)
        return entry(number, start, end, answer["ETag"], checksum)

    async def copy_part(self, multipart: Multipart, number: int, start: int, source: Slice) -> UploadPart:
        """Let S3 copy one part from another object; return its entry in the part list."""
        async with self._slots:
            answer = await self._client.call(
                "upload_part_copy",
                Key=multipart.key,
                UploadId=multipart.id,
                PartNumber=number,
                CopySource={"Bucket": self.config.bucket, "Key": source.key},
                CopySourceRange=f"bytes={source.start}-{source.end - 1}",
            )
        result = answer["CopyPartResult"]
        return entry(number, start, start + source.size, result["ETag"], result.get("ChecksumCRC32", ""))

    async def complete_multipart(self, multipart: Multipart, parts: Sequence[UploadPart]) -> None:
        """Let S3 make the object of these parts."""
        listed = []
        for part in parts:
            fields = {"PartNumber": part.number, "ETag": part.etag}
            if self.wants_crc and checksum_of(part):
                fields["ChecksumCRC32"] = checksum_of(part)
            listed.append(fields)
        await self._client.call(
            "complete_multipart_upload", Key=multipart.key, UploadId=multipart.id, MultipartUpload={"Parts": listed}
        )

    async def list_parts(self, multipart: Multipart) -> list[dict[str, Any]]:
        """Return the parts that S3 has of a multipart upload; some servers list several parts of one number."""
        pages = self.list_pages("list_parts", PART_CURSOR, Key=multipart.key, UploadId=multipart.id)
        return [part async for page in pages for part in page.get("Parts", [])]

    async def abort(self, key: str, multipart_id: str) -> None:
        """Abort a multipart upload; a missing one is no error."""
        with contextlib.suppress(MultipartMissing, ObjectMissing):
            await self._client.call("abort_multipart_upload", Key=key, UploadId=multipart_id)

    async def try_abort(self, multipart: Multipart) -> None:
        """Abort a multipart upload that no record needs; if that fails, the orphan cleaner finds it."""
        with contextlib.suppress(UploadError):
            await self.abort(multipart.key, multipart.id)

    # Tails.

    def tail_key(self, upload: Upload, name: str) -> str:
        """Return the key of a tail."""
        return f"{tails_of(self.config, upload)}{upload.id}.{name}"

    async def put_tail(self, upload: Upload, start: int, pieces: Sequence[Buffer]) -> Tail:
        """Store bytes from offset `start` on as a new tail."""
        name = secrets.token_urlsafe(9)
        await self._client.send("put_object", pieces, Key=self.tail_key(upload, name), **protection(self.config))
        self._recently_seen.add(name)
        return Tail(name, start, start + sum(map(len, pieces)))

    async def check_tails(self, upload: Upload, tails: Sequence[Tail], start: int) -> None:
        """Verify that the tails of the bytes from `start` on exist. Raises `StorageBehind` if one does not."""

        async def check(tail: Tail) -> None:
            if tail.name not in self._recently_seen:
                if await self.head(self.tail_key(upload, tail.name)) is None:
                    raise StorageBehind(max(start, tail.start))
                self._recently_seen.add(tail.name)

        results = await asyncio.gather(*map(check, tails), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def get_tails(self, upload: Upload, tails: Sequence[Tail], start: int, end: int) -> list[Buffer]:
        """Return the bytes between two offsets, which these tails hold. Raises `StorageBehind` if one is missing."""

        async def get(tail: Tail) -> list[Buffer]:
            first, last = max(start, tail.start), min(end, tail.end)
            try:
                pieces = await self.fetch(
                    Slice(self.tail_key(upload, tail.name), first - tail.start, last - tail.start)
                )
            except ObjectMissing:
                raise StorageBehind(first) from None
            if sum(map(len, pieces)) < last - first:
                raise StorageBehind(first)
            return pieces

        found: list[Buffer] = []
        for result in await asyncio.gather(*map(get, tails), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            found += result
        return found

    async def fetch(self, piece: Slice) -> list[Buffer]:
        """Return bytes of an object, in chunks of the pool as far as possible; fewer if the object is shorter."""
        return await self._client.get_pieces(piece.key, piece.start, piece.end, self._memory.chunks.acquire)

    async def fetch_source(self, piece: Slice) -> list[Buffer]:
        """Do what `fetch` does for a concatenation, leaving threads free for small requests."""
        async with self._slots:
            return await self.fetch(piece)

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one is no error."""
        if self.config.delete_versions:
            await asyncio.gather(*map(self._remove_versions, keys))
            return
        if len(keys) == 1 or not self.wants_crc:  # botocore sends no Content-MD5 with the other
            await asyncio.gather(*(self._client.call("delete_object", Key=key) for key in keys))
            return
        for first in range(0, len(keys), MAX_DELETED):
            batch = [{"Key": key} for key in keys[first : first + MAX_DELETED]]
            answer = await self._client.call("delete_objects", Delete={"Objects": batch, "Quiet": True})
            failed = [error.get("Code") for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
            if failed:
                raise StorageUnavailable(f"the storage answered {failed[0]}")

    async def _remove_versions(self, key: str) -> None:
        """Delete all versions of an object, and the markers of earlier deletions."""
        async for page in self.list_pages("list_object_versions", VERSION_CURSOR, Prefix=key):
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            ids = [version["VersionId"] for version in found if version["Key"] == key]
            await asyncio.gather(*(self._client.call("delete_object", Key=key, VersionId=id) for id in ids))
            if not ids:  # versions of other keys with this prefix follow
                return

    async def _warn_about_versions(self) -> None:
        """Log a warning if the bucket keeps every version of deleted objects; none if that is unknown."""
        try:
            answer = await self._client.call("get_bucket_versioning")
        except UploadError as error:  # the permission is needed for nothing else, and not every server has this call
            logger.debug("whether the bucket keeps versions is not known: %s", error.message)
            return
        bucket = (self.config.endpoint, self.config.bucket)
        keeps = answer.get("Status") == "Enabled" and not self.config.delete_versions
        if keeps and bucket not in _warned_buckets:
            _warned_buckets.add(bucket)
            logger.warning(
                "the bucket %s keeps versions: deleted uploads and tails stay in it, and cost money, without"
                " --s3-delete-versions or a lifecycle rule for noncurrent versions below %s",
                self.config.bucket,
                self.config.tails,
            )

    async def remove_tails(self, upload: Upload, names: Sequence[str]) -> bool:
        """Delete tails that are no longer needed; return False, which does no harm, if that failed."""
        if not names:
            return True
        try:
            await self.remove([self.tail_key(upload, name) for name in names])
        except UploadError:
            return False
        return True

    # Objects.

    async def list_pages(
        self, operation: str, cursor: dict[str, str], **parameters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a listing.

        `cursor` maps the parameters of the next request to the fields of the answer that hold their values.
        """
        position: dict[str, Any] = {}
        while True:
            page = await self._client.call(operation, **parameters, **position)
            yield page
            if not page.get("IsTruncated"):
                return
            position = {parameter: page.get(field, "") for parameter, field in cursor.items()}

    async def get(self, key: str, start: int, end: int) -> bytes:
        """Return the bytes of an object between two offsets; fewer if it is shorter."""
        return await self._client.get(key, start, end)

    async def presign(self, key: str, expires: int, **parameters: Any) -> str:
        """Return a URL that serves an object for `expires` seconds."""
        return await self._client.presign("get_object", expires, Key=key, **parameters)

    async def head(self, key: str) -> dict[str, Any] | None:
        """Return the head of an object; None if there is no object."""
        try:
            found = await self._client.call("head_object", Key=key)
        except ObjectMissing:
            await self._confirm_missing(key)
            return None
        found["Metadata"] = {name.lower(): value for name, value in found.get("Metadata", {}).items()}
        return found

    async def _confirm_missing(self, key: str) -> None:
        """See that S3 itself misses an object: the answer to HEAD may be that of a gateway that does not reach S3."""
        with contextlib.suppress(ObjectMissing):
            await self._client.get(key, 0, 1)
            raise StorageUnavailable(
                "HEAD says that an object is missing, but GET finds it: perhaps a proxy is at fault"
            )

    async def put_object(
        self, upload: Upload, key: str, pieces: Sequence[Buffer], token: int, crc: int | None = None
    ) -> str:
        """Store the whole object in one request; return its put id.

        Where the server has conditions, a writer that lost its lock (an older token) cannot replace an object by other
        bytes, and raises `StorageUnavailable`. Tokens may have gone back with the records since the object was made.
        """
        put_id = f"{token}-{secrets.token_hex(8)}"
        parameters = {"Key": key, **properties(self.config, upload, put_id)}
        condition = {"IfNoneMatch": "*"} if self.config.capabilities.conditional_put else {}
        for _ in range(3):
            try:
                await self._client.send("put_object", pieces, crc, **parameters, **condition)
                return put_id
            except NotSatisfied:
                found = await self.head(key)
                if found is None:
                    condition = {"IfNoneMatch": "*"}
                    continue
                metadata = found["Metadata"]
                if metadata.get(PUT_ID) == put_id:  # the reply to an earlier attempt was lost
                    return put_id
                if metadata.get(OWNER) == owner(upload) and token_of(metadata.get(PUT_ID, "")) > token:
                    if await self._client.holds(key, found["ContentLength"], pieces):
                        return str(metadata[PUT_ID])
                    raise
                condition = {"IfMatch": found["ETag"]}
        raise NotSatisfied

    async def copy_object(self, upload: Upload, key: str, source: str) -> None:
        """Let S3 make the whole object as a copy of another one."""
        parameters = properties(self.config, upload, f"copy-{secrets.token_hex(8)}")
        parameters["CopySource"] = {"Bucket": self.config.bucket, "Key": source}
        if "Tagging" in parameters:
            parameters["TaggingDirective"] = "REPLACE"
        async with self._slots:
            await self._client.call("copy_object", Key=key, MetadataDirective="REPLACE", **parameters)

    async def is_placed(self, upload: Upload, key: str, put_id: str, etag: str = "") -> bool:
        """Return whether the object exists, was made by the request with this put id, and has the size of the upload.

        For servers that keep no metadata the ETag decides.
        """
        found = await self.head(key)
        if found is None or found["ContentLength"] != upload.offset:
            return False
        known = found["Metadata"].get(PUT_ID)
        return known == put_id if known is not None else not etag or found.get("ETag") == etag
