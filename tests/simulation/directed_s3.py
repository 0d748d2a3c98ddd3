"""Directed scenarios of S3: refusals, conditions, versions, properties of objects, and bytes that S3 has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from botocore.exceptions import ConnectionClosedError, NoCredentialsError  # type: ignore[import-untyped]

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import refused
from tests.simulation.s3_bucket import S3Error, Stored
from tests.simulation.s3_messages import Reply, Request, answer, error
from tests.simulation.s3_world import S3World
from tusd_py.backends.s3.client import BrokenBody
from tusd_py.backends.s3.errors import MultipartMissing, NotSatisfied, ObjectMissing
from tusd_py.backends.s3.finished import finished_since
from tusd_py.backends.s3.layout import Layout, dump
from tusd_py.backends.s3.object_keys import OWNER, PUT_ID, owner
from tusd_py.core.errors import StorageFull, StorageUnavailable, UploadError
from tusd_py.core.upload import Upload, UploadKind, final_upload_id
from tusd_py.uploads.service import UploadService

REFUSALS: Sequence[tuple[int, str, type[UploadError], str]] = (
    (404, "NoSuchBucket", StorageUnavailable, "no bucket"),
    (404, "NoSuchKey", ObjectMissing, "no longer there"),
    (404, "NoSuchUpload", MultipartMissing, "was aborted"),
    (412, "PreconditionFailed", NotSatisfied, "another object"),
    (403, "QuotaExceeded", StorageFull, "full"),
    (507, "XMinioStorageFull", StorageFull, "full"),
    (403, "AccessDenied", StorageUnavailable, "refused the credentials"),
    (403, "RequestTimeTooSkewed", StorageUnavailable, "clock is wrong"),
    (400, "Strange", StorageUnavailable, "answered Strange"),
)
MIB = 1 << 10  # in the world


class BucketWorld(DirectedWorld, S3World):
    """The directed world of S3."""


def bucket_of(service: UploadService) -> Any:
    storage: Any = service.storage
    return storage._bucket


def answers(world: BucketWorld, operation: str, *replies: Reply | Exception | None) -> None:
    """Have S3 answer the next requests of one kind so, and then as it does; None is a request that is carried out."""
    left = list(replies)
    world.network.answers = lambda request: left.pop(0) if left and request.operation == operation else None


@scenario("s3")
async def refusals_of_s3_are_told_as_what_they_are(world: BucketWorld) -> None:
    for status, code, kind, text in REFUSALS:
        answers(world, "get_object", *[error(S3Error(status, code))] * (4 if status > 500 else 1))
        told = await refused(world, kind, lambda service: bucket_of(service).get("p/key", 0, 1))
        world.check(text in str(told), f"{code} is told as {told}")
    answers(world, "get_object", *[NoCredentialsError()] * 4)
    told = await refused(world, StorageUnavailable, lambda service: bucket_of(service).get("p/key", 0, 1))
    world.check("no credentials" in str(told), f"missing credentials are told as {told}")
    told = await refused(world, StorageUnavailable, lambda service: bucket_of(service).get("", 0, 1))
    world.check("not valid" in str(told), f"an empty key is told as {told}")
    answers(world, "get_object")


def new(upload_id: str, length: int, **fields: Any) -> Upload:
    return Upload(upload_id, 1.0, length, **fields)


@scenario("s3")
async def an_object_is_replaced_by_nobody_who_has_lost_the_lock(world: BucketWorld) -> None:
    """The first writer of an object is one with a newer token, or another upload."""
    upload = new("a" * 32, 3000)
    pieces = [b"a" * 1000, b"b" * 2000]

    def put(token: int, *content: bytes) -> Callable[[UploadService], Any]:
        return lambda service: bucket_of(service).put_object(upload, "p/object", list(content), token)

    def stored() -> bytes:
        return world.bucket.objects["p/object"].content

    made = await world.on(world.host, put(7, *pieces))
    world.check(await world.on(world.host, put(6, *pieces)) == made, "an object of the same bytes is not found")
    await refused(world, NotSatisfied, put(6, b"c" * 3000))
    await refused(world, NotSatisfied, put(6, b"c" * 1000))
    world.check(stored() == b"".join(pieces), "an object was replaced by a holder of an older token")
    await world.on(world.host, put(8, b"d" * 3000))
    world.check(stored() == b"d" * 3000, "an object was not replaced by the holder of the lock")
    del world.bucket.objects["p/object"]


@scenario("s3")
async def a_creation_of_an_object_whose_answer_is_lost_is_found(world: BucketWorld) -> None:
    upload = new("b" * 32, 5)

    def put(service: UploadService) -> Any:
        return bucket_of(service).put_object(upload, "p/object", [b"bytes"], 3)

    def lose(request: Request) -> Exception | None:
        if request.operation != "put_object" or "p/object" in world.bucket.objects:
            return None
        answer(world.bucket, request)
        lost: Exception = ConnectionClosedError(endpoint_url="s3")
        return lost

    world.network.answers = lose
    put_id = await world.on(world.host, put)
    made = world.bucket.objects.pop("p/object")
    world.check(made.headers[f"x-amz-meta-{PUT_ID}"] == put_id, "an object has another maker")
    refusal = error(S3Error(412, "PreconditionFailed"))
    answers(world, "put_object", refusal)  # the object has been removed since
    await world.on(world.host, put)
    world.check(world.bucket.objects.pop("p/object").content == b"bytes", "an object has other bytes")
    answers(world, "put_object", *[refusal] * 3)
    await refused(world, NotSatisfied, put)


@scenario("s3", s3={"delete_versions": True})
async def a_bucket_that_keeps_versions_keeps_none_of_what_was_removed(world: BucketWorld) -> None:
    world.bucket.keeps_versions = True
    await world.restart(world.host)
    whole, unfinished = await world.complete(12_000), await world.unfinished(9000, 2000)
    for _ in range(4):
        await world.client.append(unfinished, 100)
    for upload in (whole, unfinished):
        await world.client.remove(upload)
        left = {key: ids for key, ids in world.bucket.versions.items() if upload.id in key and ids}
        world.check(not left, f"versions of a removed upload are left: {left}")


@scenario("s3")
async def a_bucket_that_keeps_versions_is_used_with_a_warning(world: BucketWorld) -> None:
    world.bucket.keeps_versions = True
    await world.restart(world.host)
    await world.restart(world.host)
    upload = await world.complete(3000)
    await world.client.download(upload)


@scenario("s3", s3={"tags": ("kind=upload", "project=press"), "download": "redirect", "encryption": "AES256"})
async def objects_have_their_tags_and_are_downloaded_from_s3(world: BucketWorld) -> None:
    part = await world.complete(6000, "partial")
    final = await world.client.join([part])
    whole = await world.complete(3000)
    for upload in (final, whole):
        found = world.bucket.objects[world._key(upload.id)]
        world.check(found.headers.get("x-amz-tagging") == "kind=upload&project=press", f"tags are {found.headers}")
        redirect = await world.client.ask("GET", upload.path, status=(302, 303, 307))
        world.check(world._key(upload.id) in redirect.headers.get("location", ""), f"a download leads to {redirect}")
    for upload in (part, final, whole):
        upload.abandoned = True  # the world downloads from the server alone


@scenario("s3")
async def a_body_that_breaks_off_again_and_again_is_no_end(world: BucketWorld) -> None:
    upload = await world.complete(3000)
    key = world._key(upload.id)
    whole = world.bucket.objects[key]
    broken = Reply(206, whole.content[:1000], {"Content-Length": "3000", "ETag": whole.etag})
    answers(world, "get_object", *[broken] * 2)
    await world.client.download(upload)
    answers(world, "get_object", *[broken] * 3)
    await refused(world, BrokenBody, lambda service: bucket_of(service).get(key, 0, 3000))


# Objects that are newer than records.


@scenario("s3")
async def an_object_is_that_of_a_record_only_if_all_agrees(world: BucketWorld) -> None:
    parts = ("c" * 32, "d" * 32)
    final = new(final_upload_id(parts, None, ""), 3000, concatenation=UploadKind.FINAL, partial_ids=parts)
    stored = dump(Layout(key=world._key("e" * 32), part_size=5120))
    upload = new("e" * 32, 3000, offset=1000, token=5, storage_state=stored)
    multipart = dump(Layout(key=world._key(upload.id), multipart="m", put_id="mpu-1", part_size=5120))
    cases = (
        (new("e" * 32, 3000), owner(upload), "5-x", 3000, True),  # no byte was acknowledged
        (upload, owner(upload), "5-x", 3000, True),
        (upload, owner(upload), "4-x", 3000, False),  # a later holder has changed the record
        (upload, owner(final), "5-x", 3000, False),  # of another upload
        (upload, owner(upload), "", 3000, False),  # no put id
        (upload, owner(upload), "5-x", 900, False),  # fewer bytes than were acknowledged
        (upload, owner(upload), "5-x", 2999, False),  # another length
        (replace(upload, length=None), owner(upload), "5-x", 2999, True),
        (replace(upload, storage_state=multipart), owner(upload), "mpu-1", 3000, True),
        (replace(upload, storage_state=multipart), owner(upload), "mpu-2", 3000, False),
        (final, owner(final), "9-x", 3000, True),
        (replace(final, partial_ids=parts[:1]), owner(final), "9-x", 3000, False),
    )
    for record, maker, put_id, size, is_found in cases:
        headers = {f"x-amz-meta-{OWNER}": maker} | ({f"x-amz-meta-{PUT_ID}": put_id} if put_id else {})
        world.bucket.objects[world._key(record.id)] = Stored(bytes(size), '"e"', world.bucket.now, headers)
        finished = await world.on(world.host, lambda service: finished_since(bucket_of(service), record))  # noqa: B023
        del world.bucket.objects[world._key(record.id)]
        world.check((finished is not None) == is_found, f"{record} is finished by {put_id!r} of {size}: {finished}")
        world.check(finished is None or finished.offset == size, f"a finished upload has {finished}")
    nothing = await world.on(world.host, lambda service: finished_since(bucket_of(service), upload))
    world.check(nothing is None, "an upload without an object is finished")


# Bytes that S3 has lost.


@scenario("s3")
async def tails_that_s3_has_lost_take_the_offset_back(world: BucketWorld) -> None:
    upload = await world.unfinished(9000, 2000)
    await world.client.append(upload, 500)
    tails = [key for key in world.bucket.objects if key.startswith(world._tail_key(upload.id, ""))]
    world.check(tails, "there are no tails")
    for key in tails:
        del world.bucket.objects[key]
    await asyncio.sleep(15.0)  # what was there a moment ago is not asked for again
    upload.floor, upload.last_offset = 0, 0
    world.oracle.losses += 1
    looked = await world.client.look(upload)
    world.check(looked.offset == 0, f"after a loss of all bytes the offset is {looked.offset}")
    await world.client.append(upload, 9000)
    await world.client.download(upload)


@scenario("s3")
async def a_part_that_s3_has_lost_is_noticed_before_the_upload_counts_as_complete(world: BucketWorld) -> None:
    upload = await world.unfinished(30_000, 22_000)
    pending = next(iter(world.bucket.pending.values()))
    world.check(len(pending.parts) > 2, f"there are {len(pending.parts)} parts")
    lost = sorted(pending.parts)[1]
    first = len(pending.parts[sorted(pending.parts)[0]].content)
    del pending.parts[lost]
    world.oracle.losses += 1
    upload.floor = 0
    await world.client.append(upload, 8000, status=(204, 409, 500, 503))
    looked = await world.client.look(upload)
    world.check(looked.offset == first, f"after the loss of the second part the offset is {looked.offset}")
