"""Directed scenarios of objects of S3 that are put together: what is refused half-way, lost, or taken by another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.directed import scenario
from tests.simulation.directed_calls import change_record, record_of, refused, small
from tests.simulation.directed_finals import final_of, join
from tests.simulation.directed_s3 import BucketWorld, answers, bucket_of
from tests.simulation.oracle import Expected
from tests.simulation.s3_bucket import S3Error, Stored
from tests.simulation.s3_messages import Reply, error
from tusd_py.backends.s3 import orphans
from tusd_py.backends.s3.assemble import complete, verify_object
from tusd_py.backends.s3.config import MAX_OBJECT
from tusd_py.backends.s3.copy_plan import Slice, plan, plan_copies
from tusd_py.backends.s3.errors import MultipartMissing, NotSatisfied, ObjectMissing
from tusd_py.backends.s3.layout import Layout, Multipart, parse
from tusd_py.backends.s3.memory_limiter import MemoryLimiter
from tusd_py.backends.s3.object_keys import OWNER
from tusd_py.backends.s3.part_sizes import GROWTH_STEPS, PartSizes, choose_sizes, skipped_numbers
from tusd_py.core.errors import (
    MaxSizeExceeded,
    ServerShutdown,
    StorageBehind,
    StorageUnavailable,
    UploadError,
    UploadNotFound,
)
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import OrphanCleaner

INVALID_PART = error(S3Error(400, "InvalidPart"))
NO_UPLOAD = error(S3Error(404, "NoSuchUpload"))
DENIED = error(S3Error(403, "AccessDenied"))


# Completions.


@scenario("s3")
async def parts_that_s3_refuses_are_looked_at_and_completed_again(world: BucketWorld) -> None:
    upload = await world.unfinished(30_000, 22_000)
    answers(world, "complete_multipart_upload", INVALID_PART)
    await world.client.append(upload, 8000)
    await world.client.download(upload)


@scenario("s3", settings={"sweep_interval": 0})
async def an_object_that_is_another_one_is_no_end_of_an_upload(world: BucketWorld) -> None:
    upload = await world.unfinished(30_000, 22_000)
    record = await record_of(world, upload)
    layout = parse(record.storage_state)
    multipart = Multipart(layout.key, layout.multipart, layout.put_id)
    missing, behind = MultipartMissing(), StorageBehind(5)

    async def verify(reason: UploadError | None) -> UploadError | None:
        try:
            await world.on(
                world.host, lambda service: verify_object(bucket_of(service), record, multipart, '"e"', reason)
            )
        except UploadError as told:
            return told
        return None

    for reason in (missing, behind):
        told = await verify(reason)
        world.check(told is reason, f"without an object {reason!r} is told as {told!r}")
    told = await verify(None)
    world.check(type(told) is StorageUnavailable, f"without an object a completion ends with {told!r}")
    world.bucket.objects[layout.key] = Stored(bytes(30_000), '"other"', world.bucket.now)
    for other in (missing, None):
        told = await verify(other)
        world.check(type(told) is StorageUnavailable, f"beside another object a completion ends with {told!r}")
    told = await verify(behind)
    world.check(told is behind, f"beside another object {behind!r} is told as {told!r}")
    del world.bucket.objects[layout.key]
    await world.client.append(upload, 8000)
    await world.client.download(upload)


@scenario("s3", settings={"sweep_interval": 0})
async def an_object_is_not_made_of_bytes_that_are_missing(world: BucketWorld) -> None:
    whole, parted = await world.unfinished(9000, 2000), await world.unfinished(30_000, 22_000)
    await world.client.append(whole, 500)
    record = await record_of(world, whole)
    layout = parse(record.storage_state)

    def end(upload: Any, chosen: Layout, memory: int = 16 << 10) -> Any:
        return lambda service: complete(bucket_of(service), MemoryLimiter(memory), upload, chosen, ())

    placed = replace(layout, placed="5-x", tails=())
    behind = await refused(world, StorageBehind, end(record, placed))
    world.check(getattr(behind, "stored", None) == 0, f"{behind!r}, where the object is gone")
    longer = replace(record, offset=2600)
    behind = await refused(world, StorageBehind, end(longer, layout))
    world.check(getattr(behind, "stored", None) == 2500, f"{behind!r}, where 2500 bytes are stored")
    key = world._key(whole.id)
    tails = {name: world.bucket.objects.pop(name) for name in list(world.bucket.objects) if whole.id in name}
    await asyncio.sleep(15.0)  # what was there a moment ago is not asked for again
    world.check(tails, "there are no tails")
    for other in (None, Stored(bytes(2500), '"o"', world.bucket.now, {f"x-amz-meta-{OWNER}": "x"})):
        if other is not None:
            world.bucket.objects[key] = other
        await refused(world, StorageBehind, end(record, layout))
        world.check(world.bucket.objects.pop(key, None) is other, "an object is made without its bytes, or replaced")
    world.bucket.objects.update(tails)
    begun = await record_of(world, parted)
    behind = await refused(world, StorageBehind, end(begun, parse(begun.storage_state)))
    world.check(getattr(behind, "stored", None) == 0, f"{behind!r}, where no part is listed")
    for upload in (whole, parted):
        await world.client.append(upload, upload.length - upload.last_offset)
        await world.client.download(upload)


@scenario("s3")
async def a_condition_that_is_never_met_is_no_endless_loop(world: BucketWorld) -> None:
    upload = await record_of(world, await world.unfinished(3000, 100))
    answers(world, "put_object", *[error(S3Error(412, "PreconditionFailed"))] * 3)
    await refused(world, NotSatisfied, lambda service: bucket_of(service).put_object(upload, "p/object", [b"x"], 3))
    world.check("p/object" not in world.bucket.objects, "an object is made whose condition was not met")


@scenario("s3", settings={"sweep_interval": 0})
async def bytes_that_s3_has_lost_are_neither_told_nor_read(world: BucketWorld) -> None:
    tailed, parted, whole = await world.unfinished(9000, 2000), await world.unfinished(30_000, 12_000), None
    await world.client.append(tailed, 500)
    whole = await world.complete(3000)
    record = await record_of(world, tailed)
    last = world._tail_key(tailed.id, parse(record.storage_state).tails[-1].name)
    kept = world.bucket.objects.pop(last)
    stored = await world.on(world.host, lambda service: service.storage.stored_size(record))
    world.check(stored == 2000, f"{stored} bytes are stored, where the last of two tails is lost")
    world.bucket.objects[last] = kept
    begun, pending = await record_of(world, parted), dict(world.bucket.pending)
    world.bucket.pending.clear()
    await refused(world, MultipartMissing, lambda service: service.storage.stored_size(begun))
    world.bucket.pending.update(pending)
    ended, key = await record_of(world, whole), world._key(whole.id)
    kept = world.bucket.objects.pop(key)

    async def read(service: UploadService, start: int, end: int) -> bytes:
        return b"".join([bytes(piece) async for piece in service.storage.read(ended, start, end)])

    for start in (0, 3000):
        await refused(world, ObjectMissing, lambda service, start=start: read(service, start, 3000))  # type: ignore[misc]
    world.bucket.objects[key] = kept
    held = await world.on(world.host, lambda service: read(service, 3000, 3000))
    world.check(held == b"", f"{len(held)} bytes are read where none were asked for")
    for upload in (tailed, parted):
        await world.client.append(upload, upload.length - upload.last_offset)
        await world.client.download(upload)


# Concatenations.


async def _parts(world: BucketWorld, *sizes: int) -> list[Expected]:
    return [await world.complete(size, "partial") for size in sizes]


@scenario("s3", settings={"sweep_interval": 0})
async def a_concatenation_whose_multipart_upload_vanishes_is_made_again(world: BucketWorld) -> None:
    parts = await _parts(world, 12_000, 12_000)
    for operation, reply in (
        ("complete_multipart_upload", NO_UPLOAD),
        ("upload_part_copy", NO_UPLOAD),
        ("upload_part_copy", DENIED),
    ):
        answers(world, operation, *[reply] * 4)
        await refused(world, StorageUnavailable, lambda service: service.concatenate(final_of(parts)))
        answers(world, operation)
        world.check(not world.bucket.pending, f"after {reply} a multipart upload is left")
    final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)


@scenario("s3", settings={"sweep_interval": 0}, s3={"parts_in_flight": 1, "dialect": "plain"})
async def a_concatenation_ends_with_its_first_part_that_fails(world: BucketWorld) -> None:
    """Where S3 copies no parts, all bytes pass through the server; those of a part that is short end it too."""
    parts = await _parts(world, 12_000, 12_000)
    answers(world, "upload_part", *[DENIED] * 4)
    before = len(world.bucket.objects)
    await refused(world, StorageUnavailable, lambda service: service.concatenate(final_of(parts)))
    answers(world, "upload_part")
    key = world._key(parts[0].id)
    whole = world.bucket.objects[key]
    world.bucket.objects[key] = replace(whole, content=whole.content[:11_000])
    await refused(world, StorageUnavailable, lambda service: service.concatenate(final_of(parts)))
    del world.bucket.objects[key]
    await refused(world, UploadNotFound, lambda service: service.concatenate(final_of(parts)))
    world.bucket.objects[key] = whole
    world.check(len(world.bucket.objects) == before, "a concatenation that failed leaves an object")
    world.check(not world.bucket.pending, "a concatenation that failed leaves a multipart upload")
    final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)


@scenario("s3", settings={"sweep_interval": 0})
async def a_small_concatenation_of_a_short_part_is_not_made(world: BucketWorld) -> None:
    parts = await _parts(world, 1000, 1500)
    key = world._key(parts[0].id)
    etag = world.bucket.objects[key].etag
    answers(world, "get_object", *[Reply(206, bytes(900), {"Content-Length": "900", "ETag": etag})] * 4)
    await refused(world, StorageUnavailable, lambda service: service.concatenate(final_of(parts)))
    answers(world, "get_object")
    final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)


@scenario("s3", settings={"sweep_interval": 0})
async def no_concatenation_begins_at_a_shutdown(world: BucketWorld) -> None:
    parts = await _parts(world, 12_000, 12_000)
    service: Any = world.service
    await world.on(world.host, lambda _: _interrupt(service))
    await refused(world, ServerShutdown, lambda service: service.concatenate(final_of(parts)))
    world.check(not world.bucket.pending, "a concatenation that ended leaves a multipart upload")
    await world.restart(world.host)
    final = await join(world, parts)
    await world.client.look(final)
    await world.client.download(final)


async def _interrupt(service: Any) -> None:
    service.storage.interrupt()


# Plans.


def _is_whole(pieces: Sequence[Any], sources: Sequence[Slice]) -> bool:
    """Return whether parts hold all bytes of sources, in their order."""
    wanted = [(source.key, position) for source in sources for position in range(source.start, source.end, 64)]
    found: list[tuple[str, int]] = []
    for piece in pieces:
        for cut in piece.slices:
            found += [(cut.key, position) for position in range(cut.start, cut.end) if position % 64 == 0]
    return found == wanted


@scenario("s3")
async def plans_of_concatenations_hold_every_byte_once(world: BucketWorld) -> None:
    config = world.config
    for sizes in (
        [64 * 100] * 3,
        [64, 64 * 200, 64, 64],
        [64 * 500],
        [64] * 200,
        [64 * 79, 64, 64 * 90, 64 * 10],
        [64 * 160],
    ):
        sources = [Slice(f"k{number}", 0, size) for number, size in enumerate(sizes)]
        for dialect in ("aws", "plain", "r2"):
            made = world._draw_config(world.client.rng).model_copy(update={"dialect": dialect})
            pieces = plan(made, sources, sum(sizes))
            world.check(_is_whole(pieces, sources), f"{sizes} with {dialect} are cut into other bytes")
            small_ones = [piece.size for piece in pieces[:-1] if piece.size < config.part_size]
            world.check(not small_ones, f"{sizes} with {dialect} have parts of {small_ones} bytes")
        world.check(_is_whole(plan_copies(sources, 64 * 100), sources), f"{sizes} are copied otherwise")
    parts = config.model_copy(update={"dialect": "scaleway"}).capabilities.max_parts
    many = [Slice(f"k{number}", 0, config.part_size) for number in range(parts + 1)]
    pieces = plan(config.model_copy(update={"dialect": "scaleway"}), many, config.part_size * len(many))
    world.check(len(pieces) <= parts, f"an object has {len(pieces)} parts, of {parts} that S3 takes")
    plain = config.model_copy(update={"dialect": "plain"})
    for chosen, length in ((config, MAX_OBJECT + 1), (plain, plain.largest_part * plain.capabilities.max_parts + 1)):
        try:
            pieces = plan(chosen, [Slice("k", 0, length)], length)
        except MaxSizeExceeded:
            continue
        world.complain(f"an object of {length} bytes has {len(pieces)} parts")


@scenario("s3")
async def numbers_of_parts_follow_from_their_sizes(world: BucketWorld) -> None:
    for sizes in (PartSizes(500, max_parts=100), PartSizes(500, growing=True, max_parts=GROWTH_STEPS * 3)):
        end = 0
        for number in range(1, 30):
            world.check(sizes.number_at(end) == number, f"the part at {end} has the number {sizes.number_at(end)}")
            end += sizes.size(number)
        for remaining in (None, 1000):
            skipped = skipped_numbers(sizes, 5, remaining)
            world.check(0 <= skipped < sizes.max_parts, f"{skipped} numbers are skipped")
    for length in (None, 1000, 1 << 30):
        chosen = choose_sizes(length, 5 << 10, 1000, equal=False, largest=1 << 30)
        room = chosen.capacity_from(1)
        world.check(length is None or room >= length, f"the parts of an upload of {length} bytes hold {room}")


# Orphans.


@scenario("s3", settings={"sweep_interval": 0})
async def orphans_are_found_in_batches_and_removed_unless_somebody_needs_them_now(world: BucketWorld) -> None:
    uploads = [await world.unfinished(30_000, 12_000) for _ in range(2)]
    records = [await record_of(world, upload) for upload in uploads]
    for upload in uploads:
        await change_record(world, upload, storage_state="", offset=0)
    before = set(world.bucket.pending)
    with small(orphans, BATCH_SIZE=1):
        found = await world.on(world.host, lambda service: _clean(service, dry_run=True))
        world.check(len(found) >= 2 and set(world.bucket.pending) == before, f"a dry run finds {len(found)} orphans")
        real = orphans._is_orphan

        async def commits(bucket: Any, upload: Any, finding: Any) -> bool:
            """Have a request commit just before the lock is granted."""
            return await real(bucket, records[0] if finding.upload_id == records[0].id else upload, finding)

        with small(orphans, _is_orphan=commits):
            await world.on(world.host, _clean)
    world.check(parse(records[0].storage_state).multipart in world.bucket.pending, "what a request needs is removed")
    world.check(parse(records[1].storage_state).multipart not in world.bucket.pending, "an orphan is left")
    await change_record(world, uploads[0], storage_state=records[0].storage_state, offset=12_000)
    uploads[1].floor, uploads[1].last_offset = 0, 0
    del uploads[1].known[:]
    for upload in uploads:
        await world.client.append(upload, upload.length - upload.last_offset)
        await world.client.download(upload)


async def _clean(service: UploadService, *, dry_run: bool = False) -> Sequence[Any]:
    found: Sequence[Any] = await OrphanCleaner(service).clean(older_than=0, dry_run=dry_run)
    return found
