"""Storage of uploads in an S3 bucket.

An upload is a multipart upload whose parts leave memory while the body still arrives, or one object if it fits into a
part. Bytes that do not fill a part yet are stored in objects of its own (tails) when they have to be durable. The
record tells which parts and tails count (`layout.py`); S3 is only asked whether they exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from tusd_py.backends.s3.assemble import complete
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.copy import Concatenator
from tusd_py.backends.s3.errors import MultipartMissing, ObjectMissing
from tusd_py.backends.s3.finished import finished_since
from tusd_py.backends.s3.layout import dump, layout_of, parse
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import location_of, object_key
from tusd_py.backends.s3.orphans import clean
from tusd_py.backends.s3.part_sizes import size_limits
from tusd_py.backends.s3.writer import S3Writer
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.storage import Observer, Orphan, PieceSize, SizeLimits, UploadRecords, largest_piece
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import StorageUnavailable
from tusd_py.core.upload import Upload, UploadPart

READ_SIZE = 1 << 20
MAX_PROBES = 4  # concurrent requests for durable sizes; the other request slots are for bytes


class S3Storage:
    """The storage of uploads in one bucket."""

    def __init__(self, config: S3Config, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> None:
        if not config.bucket:
            raise ValueError("the bucket has no name")
        self.config = config
        self._memory = MemoryLimiter(config.memory)
        self._bucket = Bucket(config, self._memory, instrumentation)
        instrumentation.watch_s3_memory(lambda: self.buffered_bytes, lambda: self.parts_in_flight)
        self._concatenator = Concatenator(self._bucket, self._memory)
        self._probes: dict[tuple[str, str, int], asyncio.Task[int]] = {}
        self._probing = asyncio.Semaphore(MAX_PROBES)
        self._identity = self._bucket.identity

    @property
    def buffered_bytes(self) -> int:
        """Bytes of parts in memory now."""
        return self._memory.used

    @property
    def parts_in_flight(self) -> int:
        """Number of parts that are being sent to S3 now."""
        return self._bucket.parts_in_flight

    @property
    def size_limits(self) -> SizeLimits:
        """The limits of the configured part size, memory and server."""
        config, capabilities = self.config, self.config.capabilities
        return size_limits(
            config.part_size,
            capabilities.max_parts,
            equal=capabilities.equal_parts,
            copies=capabilities.part_copy,
            largest=config.largest_part,
        )

    async def open(self) -> None:
        """See `Storage.open`."""
        self._concatenator.open()
        await self._bucket.open()

    def interrupt(self) -> None:
        """See `SupportsConcatenation.interrupt`."""
        self._concatenator.interrupt()

    async def close(self, timeout: float | None = None) -> bool:
        """See `Storage.close`."""
        for probe in list(self._probes.values()):
            probe.cancel()
        return await self._bucket.close(timeout)

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> S3Writer:
        """See `Storage.writer`."""
        return S3Writer(
            self._bucket, self._memory, upload, token, observer, unreleased_predecessors=unreleased_predecessors
        )

    def locate(self, upload: Upload) -> str:
        """See `Storage.locate`."""
        return location_of(self.config, upload)

    async def stored_size(self, upload: Upload) -> int:
        """Return the durable size in bytes. Raises `UploadNotFound` if the multipart upload was aborted.

        Concurrent calls for the same record share one request; cancelling one does not cancel the others.
        """
        record = (upload.id, upload.storage_state, upload.offset)
        probe = self._probes.get(record)
        if probe is None:
            probe = self._probes[record] = asyncio.create_task(self._probe(upload))
            probe.add_done_callback(lambda probe: self._probed(record, probe))
        return await asyncio.shield(probe)

    def _probed(self, record: tuple[str, str, int], probe: asyncio.Task[int]) -> None:
        del self._probes[record]
        if not probe.cancelled():
            probe.exception()  # mark it as retrieved: every caller may be cancelled

    async def _probe(self, upload: Upload) -> int:
        async with self._probing:
            return await self._ask_s3(upload)

    async def _ask_s3(self, upload: Upload) -> int:
        """Return the durable size by one request to S3, or by none if nothing was stored yet."""
        layout = layout_of(upload)
        if layout.is_assembled:
            found = await self._bucket.head(layout.key)
            return 0 if found is None else min(found["ContentLength"], upload.offset)
        covered = layout.covered(upload.offset)
        if layout.multipart:
            try:
                await self._bucket.check_multipart(layout.key, layout.multipart)
            except MultipartMissing:
                if (finished := await finished_since(self._bucket, upload)) is None:
                    raise
                return finished.offset
            return covered
        for tail in reversed(layout.tails_from(layout.parts_end, covered)):
            if await self._bucket.head(self._bucket.tail_key(upload, tail.name)) is not None:
                return tail.end
        return min(covered, layout.parts_end)

    async def finished_since(self, upload: Upload) -> Upload | None:
        """See `RecognisesFinished.finished_since`."""
        return await finished_since(self._bucket, upload)

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        """See `Storage.finish`."""
        return dump(await complete(self._bucket, self._memory, upload, layout_of(upload), parts))

    async def discard_superseded(self, upload: Upload) -> None:
        """Do nothing: a repeated completion needs the object."""

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        """See `SupportsConcatenation.concatenate`."""
        return dump(await self._concatenator.concatenate(final, partials))

    async def delete(self, upload: Upload) -> None:
        """See `Storage.delete`."""
        layout = parse(upload.storage_state)
        key = layout.key or object_key(self.config, upload)
        bucket = self._bucket
        await self._identity.check()  # S3 does not report whether a deleted object existed
        bucket.drop_upload_state(upload.id)
        if layout.multipart:
            await bucket.abort(key, layout.multipart)
        await bucket.remove([key, *(bucket.tail_key(upload, name) for name in layout.tail_names)])

    async def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        """See `Storage.read`."""
        key = self._key(upload)
        if start == end and await self._bucket.head(key) is None:
            raise ObjectMissing
        while start < end:
            data = await self._bucket.get(key, start, min(end, start + piece_size(READ_SIZE)))
            if not data:
                raise StorageUnavailable("the stored object is shorter than the upload")
            start += len(data)
            yield data

    async def download_url(self, upload: Upload, disposition: str, content_type: str) -> str | None:
        """Return a presigned URL if the configuration lets clients download from S3; otherwise None."""
        if self.config.download != "redirect":
            return None
        return await self._bucket.presign(
            self._key(upload),
            self.config.redirect_expires,
            ResponseContentDisposition=disposition,
            ResponseContentType=content_type,
        )

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove multipart uploads and tails that no record names, at least `older_than` seconds old.

        Returns the findings; with `dry_run` nothing is removed.
        """
        return await clean(self._bucket, records, older_than=older_than, dry_run=dry_run)

    # The identity (`SupportsIdentity`).

    async def read_identity(self) -> str | None:
        """See `SupportsIdentity.read_identity`."""
        return await self._identity.read()

    async def create_identity(self, identity: str, *, replace: bool = False) -> None:
        """See `SupportsIdentity.create_identity`."""
        await self._identity.create(identity, replace=replace)

    @property
    def what_to_check(self) -> str:
        """See `SupportsIdentity.what_to_check`."""
        return self._identity.proof.what_to_check

    def expect_identity(self, identity: str) -> None:
        """See `SupportsIdentity.expect_identity`."""
        self._identity.proof.expected = identity

    async def prove_identity(self) -> None:
        """See `SupportsIdentity.prove_identity`."""
        await self._identity.check()

    async def renew_identity(self) -> None:
        """See `SupportsIdentity.renew_identity`."""
        await self._identity.renew()

    def describe(self, upload: Upload) -> Mapping[str, str]:
        """See `DescribesPlaces.describe`."""
        try:
            return {"type": "s3store", "bucket": self.config.bucket, "key": self._key(upload)}
        except StorageUnavailable:  # the record names another storage
            return {}

    def _key(self, upload: Upload) -> str:
        return parse(upload.storage_state).key or object_key(self.config, upload)
