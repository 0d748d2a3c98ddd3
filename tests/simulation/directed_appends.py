"""Directed scenarios of appends: limits, late lengths, bytes that are lost, syncs that fail, full memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import (
    Sending,
    append,
    context_of,
    create,
    gone,
    refused,
    send,
)
from tests.simulation.directed_finals import cut
from tests.simulation.filesystem import File
from tests.simulation.moments import CHANGE
from tests.simulation.oracle import Attempt, Expected
from tests.support.services import Body
from tusd_py.core.errors import (
    FinalUploadModified,
    InvalidLength,
    LockTimeout,
    MaxSizeExceeded,
    OffsetMismatch,
    QuotaExceeded,
    ServerShutdown,
    SizeExceeded,
    UploadNotFound,
    WrongStatus,
)
from tusd_py.core.upload import MAX_UPLOAD_SIZE, Upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

ALWAYS: Mapping[str, Any] = {"durability": "always"}


def body(upload: Expected, size: int, **choices: Any) -> AppendRequest:
    """Return a request for an append of so many bytes, which are not to be kept."""
    options = {name: choices.pop(name) for name in ("declared", "arrived", "breaks_off") if name in choices}
    return AppendRequest(upload.last_offset, Body(bytes(size), **options), **choices)


def refuse(world: DirectedWorld, kind: type[Any], upload: Expected, size: int, **choices: Any) -> Any:
    """Append bytes that have to be refused with an error of this kind."""
    return refused(world, kind, lambda service: service.append(upload.id, body(upload, size, **choices)))


# Limits and lengths.


@scenario(settings={"max_size": 5000})
async def more_bytes_than_an_upload_may_have_are_refused(world: DirectedWorld) -> None:
    upload = await world.unfinished(2000, 500)
    await refuse(world, SizeExceeded, upload, 1600)
    answer = await send(world, upload, world.client.rng.randbytes(1400), headers={"Upload-Length": "2001"}, status=400)
    world.check(answer.offset is None, f"the refusal tells the offset {answer.offset}")
    content = world.client.rng.randbytes(1900)
    upload.attempts[-1].content = content[:1500]
    chunked = AppendRequest(500, Body(content, declared=False, piece_size=500))
    await refused(world, SizeExceeded, lambda service: service.append(upload.id, chunked))
    upload.known += content[:1500]
    upload.last_offset = 2000
    await world.client.look(upload)  # the bytes of the upload were kept, and no other ones
    await world.client.download(upload)
    await send(world, upload, b"", status=204)
    await refuse(world, SizeExceeded, upload, 5, declared=False)
    await send(world, upload, b"x", status=413)
    await refused(world, MaxSizeExceeded, lambda service: service.create(NewUpload(5001)))
    await refused(world, MaxSizeExceeded, lambda service: service.create(NewUpload(MAX_UPLOAD_SIZE + 1)))


@scenario(settings={"max_size": 5000})
async def a_length_that_comes_late_is_checked_then(world: DirectedWorld) -> None:
    upload = await create(world, None, planned=2000)
    await append(world, upload, 1000, arrived=False)
    await refuse(world, InvalidLength, upload, 0, length=999)
    await refuse(world, MaxSizeExceeded, upload, 10, length=5001)
    await refuse(world, MaxSizeExceeded, upload, 4500)
    content = world.client.rng.randbytes(4000 + 200)
    upload.attempts.append(Attempt(1000, content[:4000]))
    too_much = AppendRequest(1000, Body(content, declared=False))
    await refused(world, MaxSizeExceeded, lambda service: service.append(upload.id, too_much))
    upload.known += content[:4000]
    upload.last_offset = upload.length = upload.wanted_length = 5000
    await append(world, upload, 0, length=5000)
    await world.client.download(upload)


# Requests that cannot succeed, while another one holds the lock.


@scenario()
async def hopeless_requests_do_not_disturb_an_append(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 1000)
    sending = Sending(world, upload, 8000)
    sending.push(2000)
    await asyncio.sleep(3.0)
    for offset, size, kind in ((500, 10, OffsetMismatch), (9001, 10, OffsetMismatch), (4000, 6000, SizeExceeded)):
        request = AppendRequest(offset, Body(bytes(size)))
        await refused(world, kind, lambda service, request=request: service.append(upload.id, request))  # type: ignore[misc]
    await refused(
        world, InvalidLength, lambda service: service.append(upload.id, AppendRequest(4000, Body(b""), length=3))
    )
    waiting = AppendRequest(3000, Body(b"x"), waits=False)
    await refused(world, LockTimeout, lambda service: service.append(upload.id, waiting))
    await refused(world, WrongStatus, lambda service: service.complete(upload.id))
    sending.push(6000)
    await sending.answer(204)
    await world.client.download(upload)


@scenario()
async def a_recording_that_somebody_sends_is_not_completed(world: DirectedWorld) -> None:
    upload = await create(world, None, planned=5000)
    sending = Sending(world, upload, 3000)
    sending.push(1000)
    await asyncio.sleep(3.0)
    await refused(world, WrongStatus, lambda service: service.complete(upload.id))
    sending.push(2000)
    await sending.answer(204)
    upload.length = upload.wanted_length = 3000
    completed = await world.on(world.host, lambda service: service.complete(upload.id, context_of()))
    world.check(completed.length == 3000 and completed.is_complete, f"the recording is {completed}")
    upload.declared = True
    await world.client.look(upload)
    await world.client.download(upload)
    await refused(world, WrongStatus, lambda service: service.complete(upload.id))
    await refused(world, WrongStatus, lambda service: service.expire(upload.id))


@scenario(settings={"concatenation_unfinished": True})
async def a_final_upload_takes_no_bytes(world: DirectedWorld) -> None:
    part = await world.unfinished(500, 100, "partial")
    final = await world.client.join([part])
    await refuse(world, FinalUploadModified, final, 10)
    lock_holder = Sending(world, final, 10)
    await lock_holder.answer(403)
    await world.client.append(part, 400)
    final.join_parts()
    await world.client.look(final)
    await world.client.download(final)


# Bytes that the storage has lost.


@scenario()
async def an_upload_goes_back_to_the_bytes_that_its_storage_has(world: DirectedWorld) -> None:
    for size in (0, 200, 2000):  # an append without bytes, a small one, and one that completes it
        upload = await world.unfinished(3000, 1000)
        cut(world, upload, 600)
        answer = await send(world, upload, world.client.rng.randbytes(size), status=409)
        world.check(answer.offset in (None, 600), f"the refusal tells the offset {answer.offset}")
        await world.client.look(upload)
        world.check(upload.last_offset == 600, f"the offset is {upload.last_offset}")
        await world.client.append(upload, 2400)
        await world.client.download(upload)
    upload = await world.unfinished(3000, 1000)
    cut(world, upload, 300)
    await world.client.look(upload)
    world.check(upload.last_offset == 300, f"the offset is {upload.last_offset}")


@scenario(settings=ALWAYS)
async def an_upload_that_is_always_synced_goes_back_too(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 1000)
    cut(world, upload, 600)
    await send(world, upload, world.client.rng.randbytes(100), status=409)
    await world.client.look(upload)
    files = world.machine.files
    files.failing_writes = 3
    await send(world, upload, world.client.rng.randbytes(500), status=503)
    files.stop_failing()
    await world.client.look(upload)
    await world.client.append(upload, 3000 - upload.last_offset)
    await world.client.download(upload)


@scenario()
async def an_offset_of_lost_bytes_is_not_told_while_a_dead_holder_has_the_lock(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 3000)
    sending = Sending(world, upload, 6000)
    sending.push(100)
    await asyncio.sleep(5.0)
    cut(world, upload, 1000)
    looking = await world.client.look(upload, status=(200, 423))
    world.check(looking.status == 423 or looking.offset == 1000, f"HEAD answers {looking.status}, {looking.offset}")
    sending.exchange.hang_up()
    await asyncio.sleep(5.0)
    await world.client.look(upload)
    world.check(upload.last_offset == 1000, f"the offset is {upload.last_offset}")


# Syncs and writes that fail.


def fail_next_sync(world: DirectedWorld, size: int) -> None:
    """Have the next sync fail once an upload has so many bytes, which were not synced."""
    files = world.machine.files

    def look() -> None:
        found = [entry for entry in files.mounted.entries.values() if isinstance(entry, File)]
        if any(file.pending and len(file.data) == size for file in found):
            files.failing_syncs = 1
        else:
            files.moments.wait(CHANGE, 1, look)

    look()


def fail_write_after(world: DirectedWorld, changes: int) -> None:
    """Have the write fail that comes after so many changes: of the lock, and of a new record."""
    files = world.machine.files
    files.moments.wait(CHANGE, changes, lambda: setattr(files, "failing_writes", 1))


async def finish(world: DirectedWorld, upload: Expected) -> None:
    """Send what is missing of an upload, and download it."""
    await world.client.look(upload)
    await world.client.append(upload, upload.length - upload.last_offset)
    await world.client.download(upload)


async def lose_the_sync(world: DirectedWorld) -> None:
    """Complete a small upload in one request whose sync fails, and another one in the next request."""
    upload = await create(world, 500)
    fail_next_sync(world, 500)
    await refuse(world, OffsetMismatch, upload, 500, arrived=True)
    await finish(world, upload)
    for _ in range(100):  # until the storage counts as fast
        if world.service._appending._pace.is_fast:
            break
        await create(world, 30, world.client.rng.randbytes(30))
    fail_next_sync(world, 400)
    created = await create(world, 400, bytes(400))
    world.check(created.last_offset < 400, f"an upload is complete at {created.last_offset} although its sync failed")
    created.attempts.clear()
    await finish(world, created)
    other = await world.unfinished(3000, 1000)
    cut(world, other, 600)
    await refuse(world, OffsetMismatch, other, 100, arrived=True)
    await finish(world, other)


@scenario()
async def a_small_upload_whose_sync_fails_is_not_complete(world: DirectedWorld) -> None:
    await lose_the_sync(world)


@scenario("redis")
async def a_small_upload_to_a_shared_directory_whose_sync_fails_is_not_complete(world: DirectedWorld) -> None:
    await lose_the_sync(world)


@scenario(settings={"quota_uploads": 1, "durability": "never"})
async def a_small_upload_whose_record_is_refused_has_no_bytes(world: DirectedWorld) -> None:
    first = await create(world, 900)
    await refused(
        world,
        QuotaExceeded,
        lambda service: service.create_with(NewUpload(500), AppendRequest(0, Body(bytes(400), arrived=True))),
    )
    await append(world, first, 900)


@scenario(settings={"durability": "never"})
async def small_uploads_take_their_own_threads_while_the_storage_is_slow(world: DirectedWorld) -> None:
    uploads = [await create(world, 500) for _ in range(6)]
    world.machine.files.stalled_until = world.loop.now + 3.0
    await asyncio.gather(*(append(world, upload, 300) for upload in uploads))
    world.machine.files.hang_seconds = 2.0
    await asyncio.gather(*(append(world, upload, 200) for upload in uploads))
    for upload in uploads:
        await world.client.download(upload)


@scenario(settings={"durability": "never"})
async def first_bytes_that_cannot_be_stored_at_once_are_stored_later(world: DirectedWorld) -> None:
    fail_write_after(world, 2)
    created = await create(world, 400, world.client.rng.randbytes(300))
    world.machine.files.stop_failing()
    await finish(world, created)


@scenario()
async def a_small_upload_whose_write_fails_is_not_acknowledged(world: DirectedWorld) -> None:
    files = world.machine.files
    upload = await create(world, 500)
    for _ in range(2):
        fail_write_after(world, 1)
        record = await append(world, upload, 100)  # by the slow path
        world.check(record.offset == upload.last_offset, f"the record is at {record.offset}")
    fail_write_after(world, 1)
    created = await create(world, 400, world.client.rng.randbytes(300))
    files.stop_failing()
    await finish(world, created)
    await finish(world, upload)


# Ends.


@scenario(settings={"shutdown_grace": 2.0})
async def what_comes_after_the_end_of_a_server_is_refused(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 1000)
    sending = Sending(world, upload, 8000)
    sending.push(500)
    await asyncio.sleep(0.1)
    service = world.service
    await world.on(world.host, lambda service: service.drain())
    await sending.answer(503)
    await refuse(world, ServerShutdown, upload, 10)
    await refused(world, ServerShutdown, lambda service: service.check())
    await world.on(world.host, lambda service: service.close())
    await refused(world, ServerShutdown, lambda service: service.terminate(upload.id))
    await refused(world, ServerShutdown, lambda service: service.sweep(Upload(upload.id, 0.0)))
    service.open()
    await world.client.look(upload)
    await world.client.append(upload, 9000 - upload.last_offset)
    await world.client.download(upload)


@scenario()
async def two_requests_that_end_an_upload_end_it_once(world: DirectedWorld) -> None:
    upload = await world.unfinished(9000, 1000)
    sending = Sending(world, upload, 8000)
    sending.push(500)
    await asyncio.sleep(0.1)
    upload.may_be_gone = upload.is_ending = upload.given_up = True

    async def end(service: UploadService) -> object:
        return await asyncio.gather(service.terminate(upload.id), service.terminate(upload.id), return_exceptions=True)

    results = await world.on(world.host, end)
    world.check(None in results, f"nobody has ended the upload: {results}")
    others = [result for result in results if result is not None]
    world.check(all(isinstance(result, UploadNotFound) for result in others), f"the other is told {others}")
    await sending.answer(404)
    await gone(world, upload)
