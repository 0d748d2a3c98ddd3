"""Requests, numbers of parts and memory of uploads in S3."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import asyncio
import base64
import random
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.parts import TIMEOUT, within
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
)
from tests.support.s3_server import (
    Fault,
    FaultyProxy,
    Request,
    S3Server,
    moto,
    rclone,
    s3_config,
)
from tusd_py.backends.s3.config import MIB
from tusd_py.backends.s3.layout import Tail, checksum_of, contiguous, parse, size_of_part
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.storage import Buffer
from tusd_py.core.errors import StorageUnavailable
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import (
    TOKEN,
    UPLOAD,
    Record,
    append,
    committed,
    content,
    finish,
)

# Calls.


async def test_an_empty_upload_is_one_request(storage: S3Storage, calls: Calls) -> None:
    assert await content(storage, await finish(storage, UPLOAD)) == b""
    assert calls == {"put_object": 1, "head_object": 1}  # the second by reading


@pytest.mark.parametrize("length", [None, 7])
async def test_a_small_upload_is_one_request(storage: S3Storage, calls: Calls, length: int | None) -> None:
    await send_all(storage, replace(UPLOAD, length=length), b"content")
    assert calls == {"put_object": 1}


async def test_an_upload_of_exactly_one_part_needs_no_multipart_upload(storage: S3Storage, calls: Calls) -> None:
    upload = await send_all(storage, replace(UPLOAD, length=PART), DATA[:PART])
    assert calls == {"put_object": 1}
    assert await content(storage, upload) == DATA[:PART]


async def test_the_requests_of_a_large_upload(storage: S3Storage, calls: Calls, server: S3Server) -> None:
    upload = await send_all(storage, replace(UPLOAD, length=len(DATA)), DATA)
    assert calls == {
        "create_multipart_upload": 1,
        "upload_part": 5,
        "complete_multipart_upload": 1,
        "head_object": 1,
    }
    assert await content(storage, upload) == DATA
    assert server.keys(storage.config.prefix) == [parse(upload.storage_state).key]


async def test_small_appends_cost_one_request_each(storage: S3Storage, calls: Calls) -> None:
    upload: Upload = UPLOAD
    expected = b""
    for number in range(100):
        upload = await send(storage, upload, (data := bytes([number]) * 1024))
        expected += data
        assert len(parse(upload.storage_state).tails) <= 7
        assert len(upload.storage_state) < 2000
    assert calls["put_object"] == 100
    assert calls["get_object"] == 0
    assert calls["delete_objects"] <= 100 / 8
    assert await content(storage, await finish(storage, upload)) == expected


async def test_small_appends_by_many_processes(opened: Opener, server: S3Server, calls: Calls) -> None:
    """None of them has the tail in memory."""
    instances = [await opened(server, calls) for _ in range(2)]
    calls.clear()
    upload: Upload = UPLOAD
    for number in range(32):
        upload = await send(instances[number % 2], upload, bytes([number]) * 1024)
    assert calls["put_object"] == 32
    assert calls["get_object"] <= 32
    expected = b"".join(bytes([number]) * 1024 for number in range(32))
    assert await content(instances[0], await finish(instances[0], upload)) == expected


async def test_looking_costs_one_request_at_most(storage: S3Storage, calls: Calls) -> None:
    assert await storage.stored_size(UPLOAD) == 0
    assert not calls
    tail = await send(storage, UPLOAD, b"tail")
    parts = await send(storage, replace(UPLOAD, id="parts"), DATA)
    whole = await send_all(storage, replace(UPLOAD, id="whole"), b"whole")
    for upload in (tail, parts, whole):
        calls.clear()
        assert await storage.stored_size(upload) == upload.offset
        assert calls.total() == 1


async def test_concurrent_size_queries_are_answered_for_their_own_records(opened: Opener, proxy: FaultyProxy) -> None:
    storage = await opened(proxy.server)
    before = await send(storage, UPLOAD, b"before")
    after = await send(storage, before, b" and after")
    proxy.faults = lambda request: Fault.DELAY
    looking = [asyncio.create_task(storage.stored_size(upload)) for upload in (before, before, after)]
    assert await asyncio.gather(*looking) == [before.offset, before.offset, after.offset]


async def test_parts_leave_at_the_same_time_and_before_the_body_has_ended(opened: Opener, proxy: FaultyProxy) -> None:
    storage = await opened(proxy.server)
    arrived = threading.Barrier(3)

    def meet(request: Request) -> Fault:
        if request.operation == "UploadPart":
            arrived.wait(TIMEOUT)
        return Fault.NONE

    proxy.faults = meet
    writer = storage.writer(UPLOAD, TOKEN)
    for block in blocks_of(DATA[: 3 * PART]):
        await within(writer.write([block]))
    for _ in range(int(TIMEOUT / 0.01)):
        if writer.snapshot().offset == 3 * PART:
            break
        await asyncio.sleep(0.01)
    assert [part.end for part in writer.snapshot().new_parts] == [PART, 2 * PART, 3 * PART]
    await writer.close()


# Numbers of parts.


async def test_a_writer_that_lost_its_lock_cannot_replace_a_part(storage: S3Storage) -> None:
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA[: PART + 5])
    stale = storage.writer(upload, TOKEN)
    for block in blocks_of(b"x" * (2 * PART)):
        await stale.write([block])
    after = await send(storage, upload, DATA[upload.offset : 3 * PART], unreleased_predecessors=True)
    await stale.flush(sync=True)
    await stale.close()
    numbers = [part.number for part in after.part_list]
    assert numbers == [1, 258, 259]
    assert await content(storage, await send_all(storage, after, DATA[3 * PART :])) == DATA


async def test_a_writer_that_lost_its_lock_cannot_replace_the_object(storage: S3Storage) -> None:
    stale = storage.writer(replace(UPLOAD, length=5), TOKEN)
    await stale.write([b"stale"])
    complete = await append(storage, UPLOAD, [b"right"])
    complete = await finish(storage, replace(complete, token=TOKEN + 1))
    with pytest.raises(StorageUnavailable):
        await stale.finish(sync=True)
    await stale.close()
    assert await content(storage, complete) == b"right"


async def test_parts_that_were_discarded_are_not_numbered_again(storage: S3Storage) -> None:
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA[:PART])
    writer = storage.writer(upload, TOKEN)
    for block in blocks_of(b"x" * (2 * PART + 7)):
        await writer.write([block])
    await writer.flush(sync=False)
    await writer.discard(upload.offset)
    await writer.close()
    upload = await send(storage, upload, DATA[PART : 3 * PART])
    assert [part.number for part in upload.part_list] == [1, 4, 5]
    assert await content(storage, await send_all(storage, upload, DATA[3 * PART :])) == DATA


@pytest.mark.parametrize("seed", range(4))
async def test_the_checksum_of_a_part_is_that_of_its_bytes(opened: Opener, server: S3Server, seed: int) -> None:
    """However they came together: in small pieces, by way of tails, beside some that were discarded."""
    storage = await opened(server, buffer_size=2 * PART)

    async def request(record: Record, data: bytes, chance: random.Random) -> Record:
        writer = storage.writer(record, TOKEN)
        position = record.offset
        if chance.random() < 0.5:
            await writer.write([b"x" * chance.choice([5, 300_000, PART])])
            if chance.random() < 0.5:
                await writer.flush(sync=False)
            await writer.discard(position)
        for _ in range(chance.randint(1, 30)):
            end = min(len(data), position + chance.choice([10, 70_000, 300_000, 1 << 20]))
            await writer.write([data[position:end]])
            position = end
            if chance.random() < 0.2:
                await writer.flush(sync=True)
                record = committed(record, writer)
        await writer.flush(sync=True)
        record = committed(record, writer)
        await writer.close()
        return record

    async def upload(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        data = DATA[number:]
        record: Record = replace(UPLOAD, id=f"upload-{number}", length=len(data))
        while record.offset < len(data):
            record = await request(record, data, chance)
        parts = contiguous(record.part_list, record.offset)
        assert [checksum_of(part) for part in parts] == [
            base64.b64encode(zlib.crc32(data[part.end - size_of_part(part) : part.end]).to_bytes(4)).decode()
            for part in parts
        ]
        assert await content(storage, await finish(storage, record)) == data

    await asyncio.wait_for(asyncio.gather(*map(upload, range(4))), 100)


# Opening.


@pytest.mark.parametrize(
    ("changes", "environment", "sentence"),
    [
        ({"bucket": "not-there"}, {}, "there is no bucket not-there"),
        ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "refused the credentials"),
        ({}, {"AWS_ACCESS_KEY_ID": "unknown"}, "refused the credentials"),
        ({"endpoint": "http://127.0.0.1:9"}, {}, "cannot be reached"),
        ({"endpoint": "http://-"}, {}, "cannot be set up"),
        ({"bucket": "not/a/name"}, {}, "a name is not valid"),
    ],
)
async def test_mistakes_are_told_at_the_start(
    server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    environment: dict[str, str],
    sentence: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage = S3Storage(s3_config(server, tmp_path, **(QUICK | changes)))
    with pytest.raises(StorageUnavailable) as raised:
        await storage.open()
    assert sentence in raised.value.message
    await storage.close()


# Other servers.


async def test_a_server_without_conditions_and_copies(opened: Opener) -> None:
    storage = await opened(rclone(), dialect="plain")
    for number, data in enumerate([b"", b"small", DATA]):
        upload: Record = replace(UPLOAD, id=f"upload-{number}", length=len(data))
        if data:
            upload = await send(storage, upload, data[: len(data) // 2])
            assert upload.offset == len(data) // 2
        complete = await send_all(storage, upload, data[upload.offset :])
        assert await content(storage, complete) == data
        assert await storage.stored_size(complete) == len(data)
        await storage.delete(complete)
        assert await storage.stored_size(complete) == 0


@pytest.mark.parametrize(("dialect", "is_made"), [("aws", True), ("ceph", False), ("plain", False)])
async def test_object_is_made_before_the_record_only_where_a_late_request_cannot_replace_one(
    opened: Opener, dialect: str, is_made: bool
) -> None:
    storage = await opened(moto(), dialect=dialect)
    writer = storage.writer(replace(UPLOAD, length=5), TOKEN)
    assert await writer.finish([b"small"], sync=True) is is_made
    await writer.close()


@pytest.mark.parametrize("dialect", ["aws", "minio", "r2", "scaleway", "ceph", "plain"])
async def test_upload_with_every_s3_dialect(opened: Opener, calls: Calls, dialect: str) -> None:
    storage = await opened(moto(), calls, dialect=dialect)
    upload = await send(storage, replace(UPLOAD, length=len(DATA)), DATA[: 2 * PART + 9])
    assert await storage.stored_size(upload) == upload.offset == 2 * PART + 9
    upload = await send_all(storage, upload, DATA[upload.offset :])
    assert await content(storage, upload) == DATA
    await storage.delete(upload)
    assert set(calls.outcomes) >= {("upload_part", "ok"), ("complete_multipart_upload", "ok")}


# Memory.


async def test_memory_is_bounded_and_given_back(opened: Opener, server: S3Server) -> None:
    """Many uploads at once, far more than their parts have room for."""
    storage = await opened(server, buffer_size=2 * PART, parts_in_flight=2)
    most = 0

    def observe(data: Buffer) -> None:
        nonlocal most
        most = max(most, storage.buffered_bytes)

    async def upload(number: int) -> None:
        data = DATA[number : number + PART + 100_000 * number]
        writer = storage.writer(replace(UPLOAD, id=f"upload-{number}"), TOKEN, observe)
        for block in blocks_of(data, 300_000):
            await writer.write([block])
            if number % 3 == 0:
                await asyncio.sleep(0.02)
        await writer.flush(sync=True)
        record = committed(replace(UPLOAD, id=f"upload-{number}"), writer)
        await writer.close()
        assert await content(storage, await finish(storage, record)) == data

    await asyncio.wait_for(asyncio.gather(*map(upload, range(12))), 100)
    assert 0 < most <= 2 * PART
    assert storage.parts_in_flight == 0
    assert storage.buffered_bytes == 0


async def test_many_fast_uploads_fill_their_parts_in_turn(opened: Opener, server: S3Server, calls: Calls) -> None:
    """Far more uploads than parts that have room: hardly a byte is sent to S3 more than once."""
    storage = await opened(server, calls, buffer_size=4 * PART)

    async def upload(number: int) -> None:
        name = replace(UPLOAD, id=f"upload-{number}", length=2 * PART)
        data = DATA[number : number + 2 * PART]
        assert await content(storage, await send_all(storage, name, data)) == data

    await asyncio.wait_for(asyncio.gather(*map(upload, range(12))), 100)
    assert calls["upload_part"] == 24
    assert calls["put_object"] <= 12
    assert storage.buffered_bytes == 0


def test_tails_are_cut_to_what_was_committed() -> None:
    layout = parse('{"key":"k","end":10,"tails":[["a",10,20],["b",20,24],["c",30,40]]}')
    assert layout.covered(100) == 24
    assert layout.tails_from(10, 22) == (Tail("a", 10, 20), Tail("b", 20, 22))
    assert layout.covered(5) == 5
    assert MIB == 1 << 20
