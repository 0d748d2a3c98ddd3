"""Defects to plant in the storage in S3, each of which the simulation with S3 has to find."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.planted import change, nothing, soon
from tusd_py.backends.s3 import assemble, client, copy, copy_plan, errors, orphans, storage
from tusd_py.backends.s3.bucket import Bucket
from tusd_py.backends.s3.copy_plan import Slice
from tusd_py.backends.s3.layout import Layout, parse
from tusd_py.backends.s3.memory_limiter import CachedPart, MemoryLimiter
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.backends.s3.open_part import OpenPart
from tusd_py.backends.s3.part_uploads import PartUploader
from tusd_py.backends.s3.stored_bytes import StoredBytes
from tusd_py.backends.s3.tails import SupersededTails
from tusd_py.core.upload import UploadPart

S3_PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    S3_PLANTS[function.__name__] = function
    return function


# Parts.


@plant
def part_numbers_reused_after_a_takeover() -> None:
    change(Bucket, "first_number", lambda self, upload, layout, sizes, **_: layout.next_number)


@plant
def parts_after_a_gap_counted() -> None:
    def pop(self: Any) -> list[UploadPart]:
        parts = [pending.part for pending in self._queue if pending.part is not None]
        kept = [pending for pending in self._queue if pending.part is None]
        self._queue.clear()
        self._queue.extend(kept)
        return parts

    change(PartUploader, "_pop_arrived", pop)


@plant
def failed_part_forgotten() -> None:
    real = PartUploader._upload_part

    async def upload(self: Any, pending: Any) -> None:
        jobs, self._jobs = self._jobs, _Deaf()
        try:
            await real(self, pending)
        finally:
            self._jobs = jobs

    class _Deaf:
        fail = staticmethod(nothing)

    change(PartUploader, "_upload_part", upload)


@plant
def buffers_of_a_part_lent_too_early() -> None:
    real = Bucket.upload_part

    async def upload(self: Any, multipart: Any, number: int, start: int, pieces: Any, crc: Any = None) -> UploadPart:
        self._memory.chunks.release_all(pieces)
        return await real(self, multipart, number, start, pieces, crc)

    change(Bucket, "upload_part", upload)


@plant
def tail_not_read_back() -> None:
    async def load(self: Any, pending: Any) -> None: ...

    change(PartUploader, "load", load)


# Completion.


@plant
def parts_compared_by_etag_only() -> None:
    def matching(parts: Sequence[UploadPart], found: Sequence[dict[str, Any]]) -> list[UploadPart]:
        etags = {one["PartNumber"]: one["ETag"] for one in found}
        chain = []
        for part in parts:
            if etags.get(part.number) != part.etag:
                break
            chain.append(part)
        return chain

    change(assemble, "_matching_parts", matching)


@plant
def reused_part_numbers_completed_without_a_look() -> None:
    part_numbers_reused_after_a_takeover()

    def matching(parts: Sequence[UploadPart], found: Sequence[dict[str, Any]]) -> list[UploadPart]:
        etags = {one["PartNumber"]: one["ETag"] for one in found}
        return [UploadPart(part.number, part.end, etags[part.number], "") for part in parts]

    change(assemble, "_matching_parts", matching)


@plant
def error_inside_200_ignored() -> None:
    from botocore import handlers  # type: ignore[import-untyped]

    change(handlers, "_looks_like_special_case_error", lambda *_: False)
    change(assemble, "verify_object", soon)
    change(copy, "verify_object", soon)


@plant
def lost_answer_to_a_completion_taken_for_a_loss() -> None:
    async def verify(bucket: Any, upload: Any, multipart: Any, etag: str, error: Any) -> None:
        if error is not None:
            raise error

    change(assemble, "verify_object", verify)


@plant
def tails_deleted_before_the_object() -> None:
    real = assemble.complete

    async def complete(bucket: Any, memory: Any, upload: Any, layout: Layout, uploaded: Any) -> Layout:
        await bucket.remove_tails(upload, layout.tail_names)
        return await real(bucket, memory, upload, layout, uploaded)

    change(storage, "complete", complete)


@plant
def parts_not_counted_at_completion() -> None:
    real = assemble._complete_multipart

    async def complete(bucket: Any, memory: Any, upload: Any, layout: Layout, uploaded: Any) -> None:
        await real(bucket, memory, upload, layout, list(uploaded)[:-1] if len(uploaded) > 2 else uploaded)

    change(assemble, "_complete_multipart", complete)


# Tails.


@plant
def tail_deleted_before_the_record() -> None:
    change(SupersededTails, "next_batch", lambda self: list(self.names))


@plant
def superseded_tails_deleted_at_the_snapshot() -> None:
    def taken(self: Any) -> None:
        self._deletable = len(self.names)
        self._in_snapshot = self._deleted + len(self.names)

    change(SupersededTails, "snapshot_taken", taken)
    change(SupersededTails, "next_batch", lambda self: self.names[: self._deletable])


@plant
def merged_tail_without_the_bytes_before_it() -> None:
    async def mergeable(self: Any, part: Any, tails: Any, start: int, end: int) -> list[Any]:
        from tusd_py.backends.s3.tails import tails_to_merge

        return tails_to_merge(list(tails), start, end)

    change(OpenPart, "_load_mergeable", mergeable)


@plant
def cached_bytes_of_another_record_used() -> None:
    def take(self: Any, upload_id: str, layout: str, offset: int) -> CachedPart | None:
        part: CachedPart | None = self._cached.pop(upload_id, None)
        if part is not None:
            self._cached_size -= part.size
        return part

    change(MemoryLimiter, "take_cached", take)


@plant
def failed_spill_forgotten() -> None:
    async def spill(self: Any) -> None:
        part = self._buffer
        with contextlib.suppress(Exception):
            await self.store_tail()
        self._spilling = None
        freed = part.drop_before(part.end) if part is self._buffer else 0
        self._memory.release(freed)

    change(OpenPart, "_spill", spill)


# Memory.


@plant
def memory_of_a_failed_part_not_given_back() -> None:
    async def upload(self: Any, pending: Any) -> None:
        try:
            await self.load(pending)
            with self._memory.releasing():
                multipart = await self._ensure_multipart()
                pending.part = await self._bucket.upload_part(
                    multipart, pending.number, pending.start, pending.pieces, pending.crc
                )
            self._memory.chunks.release_all(pending.pieces)
            self._memory.release(pending.reserved)
        except Exception as error:  # as in the code that this replaces
            self._jobs.fail(error)
        self._stored.add_parts(self._pop_arrived())

    change(PartUploader, "_upload_part", upload)


@plant
def memory_of_an_open_part_not_given_back() -> None:
    async def close(self: Any) -> None:
        self._closed = True
        await self._wait_for_spill()
        self._memory.unregister(self)

    change(OpenPart, "close", close)


# Absence and removal.


@plant
def answer_404_of_a_gateway_believed() -> None:
    real = errors.translate

    def translate(error: Exception, bucket: str) -> Any:
        return errors.MultipartMissing() if errors.code_of(error) == "404" else real(error, bucket)

    change(client, "translate", translate)
    change(Bucket, "_confirm_missing", soon)


@plant
def multipart_kept_when_an_upload_is_removed() -> None:
    change(Bucket, "abort", soon)


@plant
def tails_kept_when_an_upload_is_removed() -> None:
    async def delete(self: Any, upload: Any) -> None:
        layout = parse(upload.storage_state)
        self._bucket.drop_upload_state(upload.id)
        key = layout.key or object_key(self.config, upload)
        if layout.multipart:
            await self._bucket.abort(key, layout.multipart)
        await self._bucket.remove([key])

    change(storage.S3Storage, "delete", delete)


@plant
def multipart_of_a_record_aborted() -> None:
    change(StoredBytes, "unpublished_multipart", lambda self: self.multipart)


@plant
def orphans_removed_without_a_look_at_the_record() -> None:
    change(orphans, "_is_named", lambda *_: False)


@plant
def orphans_removed_without_the_lock() -> None:
    from tusd_py.uploads.sweeping import Records

    @contextlib.asynccontextmanager
    async def locked(self: Any, upload_id: str) -> Any:
        yield await self._state.get(upload_id)

    change(Records, "locked", locked)


@plant
def living_multipart_upload_taken_for_an_orphan() -> None:
    """The cleaner guesses ids from keys: what follows {id} in a key counts as a part of the id if it may."""
    pattern = "(?P<id>[A-Za-z0-9_-]{1,128}).*"

    async def believed(bucket: Any, records: Any, findings: Any) -> list[Any]:
        return list(findings)

    change(orphans, "key_pattern", lambda config: (config.prefix, re.compile(re.escape(config.prefix) + pattern)))
    change(orphans, "_unnamed_multiparts", believed)


@plant
def partial_copied_without_its_end() -> None:
    real = copy_plan.plan

    def plan(config: Any, sources: Sequence[Slice], length: int) -> Any:
        return real(config, [Slice(one.key, one.start, max(one.start + 1, one.end - 1)) for one in sources], length)

    change(copy, "plan", plan)
