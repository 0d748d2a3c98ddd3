"""Uploads in S3 through failures of requests, and through crashes."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contracts.parts import TIMEOUT
from tests.contracts.s3_storage import (  # noqa: F401 (fixtures)
    DATA,
    PART,
    QUICK,
    Calls,
    Opener,
    blocks_of,
    calls,
    once,
    opened,
    proxy,
    send,
    send_all,
    server,
    storage,
    write_all,
)
from tests.support.s3_server import (
    TRANSIENT_FAULTS,
    Fault,
    FaultyProxy,
    HeldRequests,
    S3Server,
    moto,
    random_faults,
    s3_server,
)
from tests.support.upload_records import FixedRecords
from tusd_py.asyncutil.ttl_set import TTLSet
from tusd_py.backends.s3.bucket import EXISTENCE_CACHE_TTL
from tusd_py.backends.s3.layout import parse
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadNotFound
from tusd_py.testing.storage_helpers import (
    TOKEN,
    UPLOAD,
    Record,
    committed,
    content,
    finish,
)


@pytest.mark.parametrize("part", [1, 2, 4])
async def test_a_part_that_fails_while_the_next_ones_arrive(opened: Opener, proxy: FaultyProxy, part: int) -> None:
    storage = await opened(proxy.server, **QUICK)
    earlier = (part - 1) * PART
    proxy.faults = failing = HeldRequests(
        lambda request: request.operation == "UploadPart" and request.part == part, Fault.ERROR
    )
    new = replace(UPLOAD, length=len(DATA))
    writer = storage.writer(new, TOKEN)
    sending = asyncio.create_task(write_all(writer, DATA))
    for _ in range(int(TIMEOUT / 0.01)):  # it fails once the earlier ones are stored
        if failing.reached and writer.snapshot().offset == earlier:
            break
        await asyncio.sleep(0.01)
    failing.release()
    with pytest.raises(StorageUnavailable):
        await sending
    upload = committed(new, writer)
    await writer.close()
    proxy.faults = once("UploadPart", Fault.NONE)
    assert upload.offset == earlier
    assert await storage.stored_size(upload) == upload.offset
    upload = await send_all(storage, upload, DATA[upload.offset :])
    assert await content(storage, upload) == DATA


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
@pytest.mark.parametrize(
    "operation",
    ["CreateMultipartUpload", "UploadPart", "PutObject", "GetObject", "CompleteMultipartUpload", "HeadObject"],
)
async def test_one_fault_is_overcome(opened: Opener, proxy: FaultyProxy, operation: str, fault: Fault) -> None:
    writing, finishing = await opened(proxy.server), await opened(proxy.server)
    data = DATA[: 2 * PART + 200]
    proxy.faults = once(operation, fault)
    upload = await send(writing, replace(UPLOAD, length=len(data)), data[: PART + 100])
    assert upload.offset == PART + 100
    upload = await send_all(finishing, upload, data[upload.offset :])
    assert await content(writing, upload) == data
    assert operation in {request.operation for request in proxy.requests}


@pytest.mark.parametrize("data", [b"small", DATA[: 2 * PART + 1]])
@pytest.mark.parametrize("cleaned", [False, True])
async def test_an_object_whose_making_was_not_heard_of(
    opened: Opener, proxy: FaultyProxy, data: bytes, cleaned: bool
) -> None:
    storage = await opened(proxy.server, **QUICK)
    upload = await send(storage, UPLOAD, data)
    made = "PutObject" if len(data) < PART else "CompleteMultipartUpload"
    if cleaned:
        await finish(storage, upload)
    else:
        proxy.faults = once(made, Fault.LOST)
        with pytest.raises(StorageUnavailable):
            await finish(storage, upload)
    complete = await finish(storage, upload)
    assert await content(storage, complete) == data
    assert await storage.stored_size(complete) == len(data)


async def test_a_multipart_upload_that_was_aborted_is_gone(
    storage: S3Storage, server: S3Server, opened: Opener
) -> None:
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA[: 2 * PART])
    all_parts = await send(storage, replace(UPLOAD, id="all", length=len(DATA)), DATA)
    client = server.client()
    for record in (upload, all_parts):
        layout = parse(record.storage_state)
        await asyncio.to_thread(
            client.abort_multipart_upload, Bucket=server.bucket, Key=layout.key, UploadId=layout.multipart
        )
    client.close()
    with pytest.raises(UploadNotFound):
        await storage.stored_size(upload)
    with pytest.raises(UploadNotFound):
        await finish(storage, all_parts)
    writer = storage.writer(upload, TOKEN)
    with pytest.raises(UploadNotFound):
        await writer.flush([DATA[2 * PART :]], sync=True)
    await writer.close()
    await storage.delete(upload)
    await storage.delete(all_parts)
    assert server.keys(storage.config.prefix) == []


async def test_a_multipart_upload_is_looked_for_again_after_a_while(storage: S3Storage, calls: Calls) -> None:
    now = 0.0
    storage._bucket._recently_seen = TTLSet(EXISTENCE_CACHE_TTL, clock=lambda: now)
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA[:PART])
    calls.clear()
    upload = await send(storage, upload, b"a")
    assert calls == {"put_object": 1}
    now += EXISTENCE_CACHE_TTL
    calls.clear()
    upload = await send(storage, upload, b"b")
    upload = await send(storage, upload, b"c")
    assert calls == {"put_object": 2, "list_parts": 1, "head_object": 1}


def test_ttl_set_forgets_old_entries() -> None:
    now = 0.0
    recent = TTLSet(10, clock=lambda: now)
    for now in range(100):
        recent.add(str(now))
        recent.add("always")
    assert all(name in recent for name in ("always", "90", "99"))
    assert "89" not in recent
    assert len(recent) == 11


@pytest.mark.parametrize("start", [s3_server, moto])
async def test_a_part_that_was_replaced_does_not_count(opened: Opener, start: Callable[[], S3Server]) -> None:
    """One server has both and takes the one of the part list, the other refuses."""
    server = start()
    storage = await opened(server)
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA)
    layout = parse(upload.storage_state)
    target = {"Bucket": server.bucket, "Key": layout.key, "UploadId": layout.multipart, "PartNumber": 3}
    client = server.client()
    await asyncio.to_thread(client.upload_part, **target, Body=b"x" * PART)
    client.close()
    try:
        complete = await finish(storage, upload)
    except StorageBehind as error:
        upload = replace(upload, offset=error.stored)
        assert upload.offset == await storage.stored_size(upload) == 2 * PART
        complete = await send_all(storage, upload, DATA[2 * PART :])
    assert await content(storage, complete) == DATA


async def test_a_tail_that_is_lost_is_noticed(storage: S3Storage, opened: Opener, server: S3Server) -> None:
    upload = await send(storage, UPLOAD, DATA[: PART + 1000])
    upload = await send(storage, upload, b"y" * 10)
    tails = parse(upload.storage_state).tails
    assert [(tail.start, tail.end) for tail in tails] == [(PART, PART + 1000), (PART + 1000, PART + 1010)]
    client = server.client()
    key = f"{storage.config.tails}{UPLOAD.id}.{tails[1].name}"
    await asyncio.to_thread(client.delete_object, Bucket=server.bucket, Key=key)
    client.close()
    other = await opened(server)
    with pytest.raises(StorageBehind) as raised:
        await finish(other, upload)
    assert raised.value.stored == PART + 1000
    upload = await send(other, upload.at(PART + 1000), b"z")
    expected = DATA[: PART + 1000] + b"z"
    assert await content(other, await finish(other, upload)) == expected


# Crashes: what was not committed never counts, what was is never lost.


async def test_a_crash_between_storing_a_tail_and_its_commit(opened: Opener, server: S3Server) -> None:
    upload = await send(await opened(server), UPLOAD, b"acknowledged ")
    crashed = (await opened(server)).writer(upload, TOKEN)
    for number in range(40):
        await crashed.flush([b"%d" % number], sync=True)  # each takes in the tail before
    storage = await opened(server)
    assert await storage.stored_size(upload) == upload.offset
    after = await send(storage, upload, b"bytes", unreleased_predecessors=True)
    assert await content(storage, await finish(storage, after)) == b"acknowledged bytes"
    await crashed.close()


async def test_commits_that_failed_cost_no_acknowledged_byte(opened: Opener, server: S3Server) -> None:
    """A writer goes on after a commit that failed: the tails of the record stay."""
    upload = await send(await opened(server), UPLOAD, b"acknowledged ")
    writer = (await opened(server)).writer(upload, TOKEN)
    for number in range(40):
        await writer.flush([b"%d" % number], sync=True)
        assert writer.snapshot().offset > upload.offset
    await writer.close()
    storage = await opened(server)
    assert await content(storage, await finish(storage, upload)) == b"acknowledged "


async def test_nothing_is_left_behind(storage: S3Storage, server: S3Server) -> None:
    """Many commits of one request, a request that is cut off, one that is discarded."""
    upload: Record = replace(UPLOAD, length=len(DATA))
    writer = storage.writer(upload, TOKEN)
    for block in blocks_of(DATA[: 2 * PART + 7], 100_001):
        await writer.flush([block], sync=True)
        upload = committed(upload, writer)
        assert len(parse(upload.storage_state).dropped) < 64
    await writer.close()
    lost = storage.writer(upload, TOKEN)
    await lost.flush([b"never committed"], sync=True)
    await lost.close()
    discarded = storage.writer(upload, TOKEN)
    await discarded.flush([b"never committed"], sync=True)
    await discarded.discard(upload.offset)
    await discarded.close()
    upload = await send_all(storage, upload, DATA[upload.offset :])
    assert await content(storage, upload) == DATA
    assert server.keys(storage.config.prefix) == [parse(upload.storage_state).key]
    assert server.multiparts(storage.config.prefix) == []
    await storage.delete(upload)
    assert server.keys(storage.config.prefix) == []


@pytest.mark.parametrize("seed", range(6))
async def test_s3_upload_survives_random_faults(
    opened: Opener, proxy: FaultyProxy, server: S3Server, seed: int
) -> None:
    """Requests that fail half-way and continue at the offset, with processes that change; then a clean bucket."""
    chance = random.Random(seed)
    instances = [await opened(proxy.server, attempts=2, read_timeout=10) for _ in range(2)]
    proxy.faults = random_faults(seed, 0.15)
    data = DATA[: chance.choice([100_000, PART, 2 * PART, len(DATA)])]
    upload: Record = replace(UPLOAD, length=len(data))
    complete = None
    for _ in range(200):
        storage = chance.choice(instances)
        try:
            if upload.offset == len(data):
                complete = await finish(storage, upload)
                break
            end = min(len(data), upload.offset + chance.choice([10, 1000, PART // 3, 2 * PART]))
            before = upload.offset
            upload = await send(storage, upload, data[before:end], unreleased_predecessors=chance.random() < 0.2)
            assert before <= upload.offset <= end
            assert await storage.stored_size(upload) == upload.offset
        except StorageBehind as error:
            upload = replace(upload, offset=error.stored)
        except StorageUnavailable:
            continue
    assert complete is not None
    proxy.faults = lambda request: Fault.NONE
    assert await content(instances[0], complete) == data
    await instances[0].clean(FixedRecords(complete), older_than=-60)
    assert server.keys(instances[0].config.prefix) == [parse(complete.storage_state).key]
    assert server.multiparts(instances[0].config.prefix) == []
