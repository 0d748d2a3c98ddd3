"""The operations of a storage and its writers on one bucket, request by request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tusd_py.asyncutil.threads import Threads
from tusd_py.asyncutil.ttl_set import TTLSet
from tusd_py.backends.s3.client import Client
from tusd_py.backends.s3.config import MAX_PART, S3Config
from tusd_py.backends.s3.errors import MultipartMissing, NotSatisfied, ObjectMissing
from tusd_py.backends.s3.layout import Layout, Tail, checksum_of, entry
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import MARKER, OWNER, owner, properties, protection, tails_of, token_of
from tusd_py.backends.s3.part_sizes import PartSizes, Slice, choose_sizes, skipped
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadError
from tusd_py.core.upload import Upload, UploadPart

logger = logging.getLogger("tusd_py.storage")

_warned_of: set[tuple[str | None, str]] = set()  # buckets; a server opens its storage more than once
COPY_THREADS = 4
RESERVED_REQUEST_SLOTS = 4  # threads that parts leave to small requests
COPY_SHARE = 3  # concatenations use a third of what is left
EXISTENCE_CACHE_TTL = 10.0  # seconds that a multipart upload or a tail is not looked for again
DELETE_CONCURRENCY = 1000  # keys of one DeleteObjects


@dataclass(frozen=True, slots=True)
class Multipart:
    """One multipart upload."""

    key: str
    id: str
    marker: str


class Bucket:
    """Requests to one bucket, with the memory and the threads behind them."""

    def __init__(self, config: S3Config, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> None:
        self.config = config
        self.client = Client(config, instrumentation)
        self.memory = MemoryLimiter(config.memory)
        self.wants_crc = config.capabilities.checksum == "crc32"
        self.parts_in_flight = 0
        self.is_interrupted = False  # concatenations are to end
        self.seen = TTLSet(EXISTENCE_CACHE_TTL)  # multipart uploads and tails that were there a moment ago
        # The next unused part number of uploads whose record does not know it, since nothing was committed.
        self.used_numbers: dict[str, int] = {}

    async def open(self) -> None:
        self.is_interrupted = False
        self.copying = Threads(COPY_THREADS, "tusd-py-s3-copy")
        # Parts, and copies among them, leave threads to small requests; copies leave most of the rest to parts.
        self.slots = asyncio.Semaphore(max(1, self.config.concurrency - RESERVED_REQUEST_SLOTS))
        self.copies = asyncio.Semaphore(max(1, (self.config.concurrency - RESERVED_REQUEST_SLOTS) // COPY_SHARE))
        await self.client.open()
        await self.warn_of_versions()

    async def close(self, patience: float | None = None) -> bool:
        """Wait for everything under way, `patience` seconds at most; False if something has not ended."""
        ended = await self.client.close(patience)
        if hasattr(self, "copying"):
            ended = await asyncio.to_thread(self.copying.close, patience) and ended
        return ended

    # Sizes and numbers of parts.

    def sizes_of(self, upload: Upload, layout: Layout) -> PartSizes:
        """As they were chosen with the first byte, which may be now."""
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
        if capabilities.number_gaps and not capabilities.equal_parts:  # then sizes may change on the way
            return PartSizes(layout.part_size, layout.growing, capabilities.max_parts, largest)
        return PartSizes(layout.part_size, layout.growing, capabilities.max_parts, layout.largest or MAX_PART)

    def first_number(self, upload: Upload, layout: Layout, sizes: PartSizes, *, unreleased_predecessors: int) -> int:
        """The number of the next part, that no request of an earlier writer may have."""
        if (
            not self.config.capabilities.number_gaps
        ):  # then only the identical bytes of a retry keep parts what they are
            return sizes.number_at(min(layout.parts_end, upload.offset))
        number = max(layout.next_number, self.used_numbers.get(upload.id, 1))
        for _ in range(unreleased_predecessors):
            number += skipped(sizes, number, None if upload.length is None else upload.length - upload.offset)
        return number

    async def check_multipart(self, key: str, multipart_id: str) -> None:
        """See that a multipart upload is still there; raises `UploadNotFound` if somebody has aborted it."""
        await self.client.call("list_parts", Key=key, UploadId=multipart_id, MaxParts=1)
        self.seen.note(multipart_id)

    # Parts.

    async def create_multipart(self, upload: Upload, key: str, *, copied: bool = False) -> Multipart:
        """A multipart upload, some of whose parts will be `copied`."""
        marker = f"mpu-{secrets.token_hex(8)}"
        parameters = properties(self.config, upload, marker)
        capabilities = self.config.capabilities
        if self.wants_crc and (capabilities.copied_checksums or not copied):
            parameters["ChecksumAlgorithm"] = "CRC32"
        answer = await self.client.call("create_multipart_upload", Key=key, **parameters)
        return Multipart(key, answer["UploadId"], marker)

    async def upload_part(
        self, multipart: Multipart, number: int, start: int, pieces: Sequence[Buffer], crc: int | None = None
    ) -> UploadPart:
        """One part from memory, with its CRC-32 if that is known; returns its entry in the ledger."""
        end = start + sum(map(len, pieces))
        async with self.slots:
            self.parts_in_flight += 1
            try:
                answer, checksum = await self.client.send(
                    "upload_part", pieces, crc, Key=multipart.key, UploadId=multipart.id, PartNumber=number
                )
            except ObjectMissing:  # some servers know the multipart upload by the key only
                raise MultipartMissing from None
            finally:
                self.parts_in_flight -= 1
        self.seen.note(multipart.id)
        return entry(number, start, end, answer["ETag"], checksum)

    async def copy_part(self, multipart: Multipart, number: int, start: int, source: Slice) -> UploadPart:
        """One part that S3 copies from another object."""
        async with self.slots:
            answer = await self.client.call(
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
        listed = []
        for part in parts:
            fields = {"PartNumber": part.number, "ETag": part.etag}
            if self.wants_crc and checksum_of(part):
                fields["ChecksumCRC32"] = checksum_of(part)
            listed.append(fields)
        await self.client.call(
            "complete_multipart_upload", Key=multipart.key, UploadId=multipart.id, MultipartUpload={"Parts": listed}
        )

    async def abort(self, key: str, multipart_id: str) -> None:
        with contextlib.suppress(MultipartMissing, ObjectMissing):
            await self.client.call("abort_multipart_upload", Key=key, UploadId=multipart_id)

    # Tails.

    def tail_key(self, upload: Upload, name: str) -> str:
        return f"{tails_of(self.config, upload)}{upload.id}.{name}"

    async def put_tail(self, upload: Upload, start: int, pieces: Sequence[Buffer]) -> Tail:
        name = secrets.token_urlsafe(9)
        await self.client.send("put_object", pieces, Key=self.tail_key(upload, name), **protection(self.config))
        self.seen.note(name)
        return Tail(name, start, start + sum(map(len, pieces)))

    async def check_tails(self, upload: Upload, tails: Sequence[Tail]) -> None:
        """See that tails are still there; raises `StorageBehind` if one is not."""

        async def check(tail: Tail) -> None:
            if tail.name not in self.seen:
                if await self.head(self.tail_key(upload, tail.name)) is None:
                    raise StorageBehind(tail.start)
                self.seen.note(tail.name)

        results = await asyncio.gather(*map(check, tails), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def get_tails(self, upload: Upload, tails: Sequence[Tail]) -> list[Buffer]:
        """The bytes of tails that follow each other; raises `StorageBehind` if one is no longer there."""

        async def get(tail: Tail) -> list[Buffer]:
            try:
                pieces = await self.fetch(Slice(self.tail_key(upload, tail.name), 0, tail.size))
            except ObjectMissing:
                raise StorageBehind(tail.start) from None
            if sum(map(len, pieces)) < tail.size:
                raise StorageBehind(tail.start)
            return pieces

        found: list[Buffer] = []
        for result in await asyncio.gather(*map(get, tails), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            found += result
        return found

    async def fetch(self, piece: Slice) -> list[Buffer]:
        """Bytes of an object in memory that `PartMemory.recycle` takes back; fewer if it is shorter."""
        return await self.client.get_pieces(piece.key, piece.start, piece.end, self.memory.block)

    async def remove(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are fine."""
        if self.config.delete_versions:
            await asyncio.gather(*map(self._remove_versions, keys))
            return
        if len(keys) == 1 or not self.wants_crc:  # botocore sends no Content-MD5 with the other
            await asyncio.gather(*(self.client.call("delete_object", Key=key) for key in keys))
            return
        for first in range(0, len(keys), DELETE_CONCURRENCY):
            batch = [{"Key": key} for key in keys[first : first + DELETE_CONCURRENCY]]
            answer = await self.client.call("delete_objects", Delete={"Objects": batch, "Quiet": True})
            failed = [error.get("Code") for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
            if failed:
                raise StorageUnavailable(f"the storage answered {failed[0]}")

    async def _remove_versions(self, key: str) -> None:
        """Delete all versions of an object, and the markers of earlier deletions."""
        marker: dict[str, str] = {}
        while True:
            answer = await self.client.call("list_object_versions", Prefix=key, **marker)
            found = [*answer.get("Versions", []), *answer.get("DeleteMarkers", [])]
            ids = [version["VersionId"] for version in found if version["Key"] == key]
            await asyncio.gather(*(self.client.call("delete_object", Key=key, VersionId=id) for id in ids))
            if not answer.get("IsTruncated") or not ids:
                return
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "VersionIdMarker": answer.get("NextVersionIdMarker", ""),
            }

    async def warn_of_versions(self) -> None:
        """Say so if the bucket keeps every version of what is deleted, unless that cannot be found out."""
        try:
            answer = await self.client.call("get_bucket_versioning")
        except UploadError as error:  # the right to ask is not needed otherwise, and not every server knows it
            logger.debug("whether the bucket keeps versions is not known: %s", error.message)
            return
        bucket = (self.config.endpoint, self.config.bucket)
        keeps = answer.get("Status") == "Enabled" and not self.config.delete_versions
        if keeps and bucket not in _warned_of:
            _warned_of.add(bucket)
            logger.warning(
                "the bucket %s keeps versions: deleted uploads and tails stay in it, and cost money, without"
                " --s3-delete-versions or a lifecycle rule for noncurrent versions below %s",
                self.config.bucket,
                self.config.tails,
            )

    async def remove_tails(self, upload: Upload, names: Sequence[str]) -> bool:
        """Delete tails that nothing needs any more; False if that failed, which does no harm."""
        try:
            await self.remove([self.tail_key(upload, name) for name in names])
        except UploadError:
            return False
        return True

    # Objects.

    async def head(self, key: str) -> dict[str, Any] | None:
        """Return the head of an object; None if there is no object."""
        try:
            found = await self.client.call("head_object", Key=key)
        except ObjectMissing:
            await self._confirm_missing(key)
            return None
        found["Metadata"] = {name.lower(): value for name, value in found.get("Metadata", {}).items()}
        return found

    async def _confirm_missing(self, key: str) -> None:
        """See that it is S3 who misses an object: the answer to HEAD may be that of a gateway that misses S3."""
        with contextlib.suppress(ObjectMissing):
            await self.client.get(key, 0, 1)
            raise StorageUnavailable("the storage is not sure of an object")

    async def put_object(
        self, upload: Upload, key: str, pieces: Sequence[Buffer], token: int, crc: int | None = None
    ) -> str:
        """The whole object in one request; returns its marker.

        Where the server has conditions, a writer that lost its lock (an older token) cannot replace an object, and
        raises `StorageUnavailable`.
        """
        marker = f"{token}-{secrets.token_hex(8)}"
        parameters = {"Key": key, **properties(self.config, upload, marker)}
        condition = {"IfNoneMatch": "*"} if self.config.capabilities.conditional_put else {}
        for _ in range(3):
            try:
                await self.client.send("put_object", pieces, crc, **parameters, **condition)
                return marker
            except NotSatisfied:
                found = await self.head(key)
                if found is None:
                    condition = {"IfNoneMatch": "*"}
                    continue
                metadata = found["Metadata"]
                if metadata.get(MARKER) == marker:  # an answer was lost
                    return marker
                if metadata.get(OWNER) == owner(upload) and token_of(metadata.get(MARKER, "")) > token:
                    raise
                condition = {"IfMatch": found["ETag"]}
        raise NotSatisfied

    async def copy_object(self, upload: Upload, key: str, source: str) -> None:
        """The whole object as a copy of another one."""
        parameters = properties(self.config, upload, f"copy-{secrets.token_hex(8)}")
        parameters["CopySource"] = {"Bucket": self.config.bucket, "Key": source}
        if "Tagging" in parameters:
            parameters["TaggingDirective"] = "REPLACE"
        async with self.slots:
            await self.client.call("copy_object", Key=key, MetadataDirective="REPLACE", **parameters)

    async def is_placed(self, upload: Upload, key: str, marker: str, etag: str = "") -> bool:
        """Whether the object is there, made by the request with this marker, and as long as the upload.

        For servers that keep no metadata the ETag counts.
        """
        found = await self.head(key)
        if found is None or found["ContentLength"] != upload.offset:
            return False
        known = found["Metadata"].get(MARKER)
        return known == marker if known is not None else not etag or found.get("ETag") == etag
