"""Uploads to S3 where several things happen at once: memory runs out, requests fail, holders of a lock change."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contracts.parts import TIMEOUT, within
from tests.contracts.s3_storage import (  # noqa: F401 (fixtures)
    DATA,
    PART,
    QUICK,
    Opener,
    blocks_of,
    calls,
    opened,
    proxy,
    send,
    send_all,
    server,
    storage,
)
from tests.support.s3_server import Fault, FaultyProxy, HeldRequests, Request, S3Server, moto
from tusd_py.backends.s3.config import MIB
from tusd_py.backends.s3.layout import size_of_part
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.storage import Buffer, Writer
from tusd_py.core.errors import UploadError
from tusd_py.testing.storage_helpers import TOKEN, UPLOAD, Record, committed, content, finish

PRESETS = pytest.mark.parametrize("dialect", ["aws", "ceph"])  # with CRC-32 and conditions, and without


def tail_of(upload_id: str) -> Callable[[Request], bool]:
    """Return a condition for the requests that store a tail of this upload."""
    return lambda request: request.method == "PUT" and f"/tails/{upload_id}." in request.path


async def write(writer: Writer, data: bytes) -> None:
    """Write `data` and wait until the writer has taken all of it."""
    for block in blocks_of(data):
        await writer.write([block])
    await writer.write(())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never comes true"
        await asyncio.sleep(0.01)


async def held_spill(storage: S3Storage, proxy: FaultyProxy, first: Writer, data: bytes) -> HeldRequests:
    """Make the first upload spill `data` as a tail in a request that is held and will fail; return the held request.

    When it has begun there is room for all again. The storage has memory for two parts.
    """
    await within(write(first, data))
    second, third = (storage.writer(replace(UPLOAD, id=name), TOKEN) for name in ("second", "third"))
    await within(write(second, DATA[: 4 * MIB - 100]))  # less than the first: it does not spill
    proxy.faults = held = HeldRequests(tail_of("first"), Fault.ERROR)
    pressing = asyncio.create_task(write(third, DATA[: 3 * MIB]))
    await asyncio.to_thread(held.wait)
    await second.close()
    await within(pressing)
    await third.close()
    return held


async def kept(record: Record, writer: Writer) -> Record:
    """Close a writer that has failed; return the record as committed before."""
    with pytest.raises(UploadError):
        await writer.flush(sync=False)
    record = committed(record, writer)
    await writer.close()
    return record


async def assert_goes_on(storage: S3Storage, record: Record, data: bytes) -> None:
    """Assert that the next append can send the rest, and that the upload then has the right bytes."""
    assert await storage.stored_size(record) == record.offset
    complete = await send_all(storage, record, data[record.offset :])
    found = await content(storage, complete)
    assert len(found) == len(data)
    assert found == data


# Bytes in memory that have to be stored as a tail, and that fails: what was taken after them does not count.


@PRESETS
@pytest.mark.parametrize("before", [0, 1000])
async def test_a_spill_that_fails_while_the_object_is_made(
    opened: Opener, proxy: FaultyProxy, dialect: str, before: int
) -> None:
    data = DATA[: 3 * MIB]
    record: Record = replace(UPLOAD, id="first", length=len(data))
    if before:
        record = await send(await opened(proxy.server, dialect=dialect), record, data[:before])
        assert record.offset == before
    storage: S3Storage = await opened(proxy.server, dialect=dialect, buffer_size=PART, **QUICK)
    first, second = storage.writer(record, TOKEN), storage.writer(replace(UPLOAD, id="second"), TOKEN)
    await within(write(first, data[before:]))
    proxy.faults = held = HeldRequests(tail_of("first"), Fault.ERROR)
    pressing = asyncio.create_task(write(second, data))
    await asyncio.to_thread(held.wait)
    finishing = asyncio.create_task(first.finish(sync=True))
    await asyncio.sleep(0.2)  # a chance to take what is about to be lost
    held.release()
    with pytest.raises(UploadError):
        await within(finishing)
    record = await kept(record, first)
    await within(pressing)
    await second.close()
    proxy.faults = lambda request: Fault.NONE
    await assert_goes_on(storage, record, data)
    assert storage.buffered_bytes == 0


@PRESETS
@pytest.mark.parametrize("before", [PART, PART + 1000])
async def test_a_spill_that_fails_while_a_part_leaves(
    opened: Opener, proxy: FaultyProxy, dialect: str, before: int
) -> None:
    record: Record = replace(UPLOAD, id="first", length=len(DATA))
    record = await send(await opened(proxy.server, dialect=dialect), record, DATA[:before])
    assert record.offset == before
    storage: S3Storage = await opened(proxy.server, dialect=dialect, buffer_size=2 * PART, **QUICK)
    first = storage.writer(record, TOKEN)
    middle = before + 4 * MIB + 500_000
    held = await held_spill(storage, proxy, first, DATA[before:middle])
    await first.write([DATA[middle : 2 * PART]])  # the part is full
    await asyncio.sleep(0.5)  # a chance to leave
    held.release()
    await asyncio.sleep(0.5)  # a chance to arrive
    record = await kept(record, first)
    proxy.faults = lambda request: Fault.NONE
    assert record.offset >= before
    record = await send(storage, record, DATA[record.offset :])
    assert record.offset == len(DATA)
    assert [size_of_part(part) for part in record.part_list] == [PART] * 4
    assert await content(storage, await finish(storage, record)) == DATA


@PRESETS
async def test_a_spill_that_fails_while_bytes_are_copied(opened: Opener, proxy: FaultyProxy, dialect: str) -> None:
    storage: S3Storage = await opened(proxy.server, dialect=dialect, buffer_size=2 * PART, **QUICK)
    record: Record = replace(UPLOAD, id="first", length=len(DATA))
    gate, copying = threading.Event(), threading.Event()
    gate.set()

    def observe(data: Buffer) -> None:
        copying.set()
        gate.wait(TIMEOUT)

    first = storage.writer(record, TOKEN, observe)
    held = await held_spill(storage, proxy, first, DATA[: 4 * MIB])
    gate.clear()
    copying.clear()
    flushing = asyncio.create_task(first.flush([DATA[4 * MIB : 4 * MIB + 500_000]], sync=False))
    assert await asyncio.to_thread(copying.wait, TIMEOUT)
    before = storage.buffered_bytes
    proxy.faults = lambda request: Fault.NONE
    held.release()
    await until(lambda: storage.buffered_bytes < before)  # it has failed
    gate.set()
    with pytest.raises(UploadError):
        await within(flushing)
    record = await kept(record, first)
    await assert_goes_on(storage, record, DATA)
    assert storage.buffered_bytes == 0


# The record learns of every part, also those whose bytes were committed as tails before.


async def test_all_bytes_are_committed_before_their_last_part_has_left(storage: S3Storage) -> None:
    data = DATA[: 2 * PART + 100]
    record: Record = replace(UPLOAD, length=len(data))
    writer = storage.writer(record, TOKEN)
    await write(writer, data)
    await writer.flush(sync=True)
    record = committed(record, writer)
    assert record.offset == len(data)
    await writer.finish(sync=True)
    record = committed(record, writer)
    await writer.close()
    assert record.offset == len(data)
    assert await content(storage, await finish(storage, record)) == data


async def test_all_bytes_of_a_part_are_committed_before_it_has_left(opened: Opener, proxy: FaultyProxy) -> None:
    data = DATA[: 4 * PART]
    storage: S3Storage = await opened(proxy.server, buffer_size=PART, parts_in_flight=1)
    record: Record = replace(UPLOAD, id="first", length=len(data))
    taken = 0

    def observe(data: Buffer) -> None:
        nonlocal taken
        taken += len(data)

    first = storage.writer(record, TOKEN, observe)
    other = storage.writer(replace(UPLOAD, id="other"), TOKEN)
    await within(write(first, data[: 3 * MIB]))
    await within(write(other, data[: 3 * MIB]))
    assert first.snapshot().offset == 3 * MIB  # it had to make room
    apart: HeldRequests = HeldRequests(lambda request: not apart.reached and tail_of("first")(request))
    second_part = HeldRequests(lambda request: request.operation == "UploadPart" and request.part == 2)
    proxy.faults = lambda request: apart(request) or second_part(request)
    await within(write(first, data[3 * MIB : PART]))
    await asyncio.to_thread(apart.wait)  # the first part gathers its bytes: the second one has to wait
    writing = asyncio.create_task(write(first, data[PART : 2 * PART]))
    await until(lambda: taken == 2 * PART)
    await asyncio.sleep(0.2)  # until the last of them are copied
    await within(write(other, data[3 * MIB : PART - 1000]))  # all of the second part becomes tails
    apart.release()
    await within(writing)
    await asyncio.to_thread(second_part.wait)
    await until(lambda: first.snapshot().offset == 2 * PART)
    record = committed(record, first)
    assert [part.number for part in record.part_list] == [1]
    second_part.release()
    await other.close()
    await within(write(first, data[2 * PART :]))
    await first.finish(sync=True)
    record = committed(record, first)
    await first.close()
    assert record.offset == len(data)
    assert await content(storage, await finish(storage, record)) == data


async def test_writer_offset_stays_after_the_object_was_made(storage: S3Storage) -> None:
    writer = storage.writer(replace(UPLOAD, length=7), TOKEN)
    assert await writer.finish([b"content"], sync=True)
    assert writer.snapshot().offset == 7
    await writer.flush(sync=False)
    assert writer.snapshot().offset == 7
    await writer.close()


# Memory.


async def test_a_large_upload_is_admitted_while_small_ones_come_and_go(opened: Opener, server: S3Server) -> None:
    """Beside a slow client that might want all the room."""
    storage: S3Storage = await opened(server, buffer_size=PART)
    slow = storage.writer(replace(UPLOAD, id="slow"), TOKEN)
    await write(slow, DATA[:MIB])

    async def send_small_ones() -> None:
        number = 0
        while True:
            await send_all(storage, replace(UPLOAD, id=f"small-{number}", length=1000), DATA[:1000])
            await asyncio.sleep(0.3)
            number += 1

    sending = asyncio.create_task(send_small_ones())
    large = storage.writer(replace(UPLOAD, id="large"), TOKEN)
    try:
        await within(write(large, DATA[:MIB]))
    finally:
        sending.cancel()
        await asyncio.wait((sending,))
        await slow.close()
        await large.close()


async def test_room_is_made_when_a_flush_has_ended(opened: Opener, proxy: FaultyProxy) -> None:
    """Of an upload that then is silent: nothing else would give the waiting one its turn."""
    storage: S3Storage = await opened(proxy.server, buffer_size=PART)
    silent, other = (storage.writer(replace(UPLOAD, id=name), TOKEN) for name in ("silent", "other"))
    await within(write(silent, DATA[: PART - 100_000]))
    proxy.faults = held = HeldRequests(tail_of("silent"))
    flushing = asyncio.create_task(silent.flush(sync=True))
    await asyncio.to_thread(held.wait)
    writing = asyncio.create_task(write(other, DATA[:200_000]))  # so little is admitted at once
    await asyncio.sleep(0.2)  # it asks for room
    assert not writing.done()
    held.release()
    await within(flushing)
    try:
        await within(writing)
    finally:
        await silent.close()
        await other.close()


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.ERROR])
async def test_memory_is_given_back_although_closing_is_cancelled(
    opened: Opener, proxy: FaultyProxy, fate: Fault
) -> None:
    storage: S3Storage = await opened(proxy.server, **QUICK)
    writer = storage.writer(UPLOAD, TOKEN)
    await write(writer, DATA[: PART + 1000])
    proxy.faults = held = HeldRequests(lambda request: request.method in ("PUT", "POST"), fate)
    flushing = asyncio.create_task(writer.flush(sync=True))
    await asyncio.to_thread(held.wait)
    flushing.cancel()
    await asyncio.wait((flushing,))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0.1)  # it waits for the flush
    closing.cancel()
    await asyncio.wait((closing,))
    held.release()
    async with asyncio.timeout(TIMEOUT):
        while storage.buffered_bytes:
            await storage.delete(UPLOAD)  # forgets what is kept for its next request
            await asyncio.sleep(0.01)


# Holders of the lock.


async def test_two_holders_in_a_row_lose_their_lock(opened: Opener) -> None:
    """The second one before it commits anything: the third one has other numbers of parts than either."""
    held = HeldRequests(lambda request: request.operation == "UploadPart")
    with FaultyProxy(moto(), held) as proxy:  # as S3, it has one part of a number
        one, two, three = await opened(moto()), await opened(proxy.server), await opened(moto())
        record = await send(one, replace(UPLOAD, length=len(DATA)), DATA[:PART])
        stale = two.writer(record, TOKEN, unreleased_predecessors=1)
        for block in blocks_of(b"x" * (2 * PART)):
            await stale.write([block])
        await asyncio.to_thread(held.wait)
        after = await send(three, record, DATA[PART : 3 * PART], unreleased_predecessors=2)
        held.release()
        await stale.flush(sync=True)
        await stale.close()
        await assert_goes_on(three, after, DATA)
