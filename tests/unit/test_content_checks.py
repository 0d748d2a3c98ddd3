"""The digests of whole uploads: computed as the bytes arrive, and read from the storage only where that cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.clamd import Clamd
from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tests.support.timing import TIMEOUT
from tusd_py.core.buffers import Buffer
from tusd_py.core.conditions import Conditions
from tusd_py.core.errors import (
    ChecksumMismatch,
    ClientDisconnected,
    DigestMismatch,
    QuotaExceeded,
    ScanUnavailable,
    ServerShutdown,
    TypeNotAllowed,
    UploadNotFound,
)
from tusd_py.core.file_types import HEAD_SIZE
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.uploads.checksum import AnnouncedChecksum
from tusd_py.uploads.expiration import SweepResult
from tusd_py.uploads.seen_bytes import SeenBytes, SeenUploads
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.turns import SMALL, Turns
from tusd_py.uploads.validation import AppendRequest, NewUpload

DATA = bytes(range(256)) * 1024
STEP = len(DATA) // 4
PNG = b"\x89PNG\r\n\x1a\n"


def digests(data: bytes = DATA) -> Conditions:
    return Conditions(
        (("sha-256", hashlib.sha256(data).hexdigest()), ("sha-512", hashlib.sha512(data).hexdigest())),
    )


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    options = {"upload_dir": tmp_path / "uploads", "sweep_interval": 0, "lock_timeout": 1.0}
    if request.param == "sqlite":
        return options
    return {**options, "redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}


@pytest.fixture
async def service(settings: dict[str, Any]) -> AsyncIterator[UploadService]:
    async with running_service(settings) as service:
        yield service


@pytest.fixture
def reads(service: UploadService, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are read from the storage."""
    return note_reads(service, monkeypatch)


def note_reads(service: UploadService, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    noted: list[tuple[int, int]] = []
    read = service.storage.read

    def noted_read(upload: Upload, start: int, end: int, *arguments: Any) -> Any:
        noted.append((start, end))
        return read(upload, start, end, *arguments)

    monkeypatch.setattr(service.storage, "read", noted_read)
    return noted


async def create(service: UploadService, conditions: Conditions, length: int | None = len(DATA)) -> str:
    return (await service.create(NewUpload(length, conditions=conditions))).id


async def append(service: UploadService, upload_id: str, offset: int, data: bytes, **request: Any) -> Upload:
    length = request.pop("length", None)
    verification = request.pop("verification", None)
    body = Body(data, **request)
    return await service.append(upload_id, AppendRequest(offset, body, length, verification))


async def assert_removed(service: UploadService, upload_id: str) -> None:
    with pytest.raises(UploadNotFound):
        await service.get(upload_id)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("body", [{"arrived": True}, {"piece_size": 10_000}], ids=["whole", "pieces"])
async def test_bytes_that_arrive_in_order_are_not_read_again(
    service: UploadService, reads: list[tuple[int, int]], steps: int, body: dict[str, Any]
) -> None:
    for wrong in (False, True):
        upload_id = await create(service, digests(DATA[::-1] if wrong else DATA))
        size = len(DATA) // steps
        for offset in range(0, len(DATA) - size, size):
            assert (await append(service, upload_id, offset, DATA[offset : offset + size], **body)).offset
        last = append(service, upload_id, len(DATA) - size, DATA[-size:], **body)
        if wrong:
            with pytest.raises(DigestMismatch):
                await last
            await assert_removed(service, upload_id)
        else:
            assert (await last).is_complete
    assert reads == []


async def test_small_uploads_are_checked_too(service: UploadService, reads: list[tuple[int, int]]) -> None:
    for size in (0, 1, 13):
        right, wrong = digests(DATA[:size]), digests(DATA[: size + 1])
        request = AppendRequest(0, Body(DATA[:size], arrived=bool(size)))
        assert (await service.create_with(NewUpload(size, conditions=right), request)).is_complete
        request = AppendRequest(0, Body(DATA[:size], arrived=bool(size)))
        with pytest.raises(DigestMismatch):
            await service.create_with(NewUpload(size, conditions=wrong), request)
    assert reads == []


async def test_bytes_kept_of_a_broken_request_are_not_read_again(
    service: UploadService, reads: list[tuple[int, int]]
) -> None:
    upload_id = await create(service, digests())
    with pytest.raises(ClientDisconnected):
        await append(service, upload_id, 0, DATA[:STEP], breaks_off=True, declared=False)
    assert (await append(service, upload_id, STEP, DATA[STEP:])).is_complete
    assert reads == []


async def test_bytes_dropped_for_their_checksum_do_not_count(
    service: UploadService, reads: list[tuple[int, int]]
) -> None:
    upload_id = await create(service, digests())
    await append(service, upload_id, 0, DATA[:STEP])
    wrong = AnnouncedChecksum("sha1", bytes(20))
    with pytest.raises(ChecksumMismatch):
        await append(service, upload_id, STEP, DATA[:STEP], verification=wrong)
    right = AnnouncedChecksum("sha256", hashlib.sha256(DATA[STEP:]).digest())
    assert (await append(service, upload_id, STEP, DATA[STEP:], verification=right)).is_complete
    assert reads == []


async def test_deferred_length(service: UploadService, reads: list[tuple[int, int]]) -> None:
    upload_id = await create(service, digests(), None)
    await append(service, upload_id, 0, DATA[:STEP])
    await append(service, upload_id, STEP, DATA[STEP:])
    assert (await append(service, upload_id, len(DATA), b"", length=len(DATA))).is_complete
    assert reads == []


async def test_bytes_before_an_append_beyond_the_quota_are_not_read_again(
    service: UploadService, reads: list[tuple[int, int]]
) -> None:
    new = NewUpload(None, conditions=digests(), quota_bytes=len(DATA))
    upload_id = (await service.create(new)).id
    await append(service, upload_id, 0, DATA[:STEP])
    for length, data in ((None, bytes(len(DATA))), (len(DATA) + 1, b"")):
        with pytest.raises(QuotaExceeded):
            await append(service, upload_id, STEP, data, length=length)
    assert (await append(service, upload_id, STEP, DATA[STEP:], length=len(DATA))).is_complete
    assert reads == []


@pytest.mark.parametrize("wrong", [False, True])
async def test_bytes_that_another_process_took_are_read_once(
    settings: dict[str, Any], wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process appends every second piece, and has seen nothing of the others."""
    async with running_service(settings) as first, running_service(settings) as second:
        noted = note_reads(first, monkeypatch), note_reads(second, monkeypatch)
        upload_id = await create(first, digests(DATA[::-1] if wrong else DATA))
        for number, service in enumerate((first, second, first)):
            await append(service, upload_id, number * STEP, DATA[number * STEP : (number + 1) * STEP])
        if wrong:
            with pytest.raises(DigestMismatch):
                await append(second, upload_id, 3 * STEP, DATA[3 * STEP :])
            await assert_removed(first, upload_id)
        else:
            assert (await append(second, upload_id, 3 * STEP, DATA[3 * STEP :])).is_complete
        assert noted == ([], [(0, len(DATA))])


async def test_bytes_that_another_process_replaced_do_not_count(settings: dict[str, Any]) -> None:
    """One process sees bytes that the storage loses, and others take their place at the same offset."""
    async with running_service(settings) as first, running_service(settings) as second:
        upload_id = await create(first, digests())
        await append(first, upload_id, 0, DATA[:STEP])
        path = Path(settings["upload_dir"]) / upload_id
        path.write_bytes(b"")
        assert (await second.inspect(upload_id)).offset == 0
        await append(second, upload_id, 0, bytes(STEP))
        with pytest.raises(DigestMismatch):
            await append(first, upload_id, STEP, DATA[STEP:])


async def test_forgotten_uploads_are_read(
    service: UploadService, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._checks, "_seen", SeenUploads(1))
    first, second = [await create(service, digests()) for _ in range(2)]
    for upload_id in (first, second):
        await append(service, upload_id, 0, DATA[:STEP])
    for upload_id in (second, first):
        assert (await append(service, upload_id, STEP, DATA[STEP:])).is_complete
    assert reads == [(0, len(DATA))]


async def test_reading_is_interrupted_and_done_again(
    service: UploadService, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._checks, "_seen", SeenUploads(0))
    upload_id = await create(service, digests())
    await append(service, upload_id, 0, DATA[:STEP])
    service.interrupt_hooks()
    with pytest.raises(ServerShutdown):
        await append(service, upload_id, STEP, DATA[STEP:])
    assert (await service.get(upload_id)).status is Status.FINISHING
    service._checks.resume()
    assert (await service.inspect(upload_id)).is_complete
    assert len(reads) == 2


@pytest.mark.parametrize("seen", [True, False])
async def test_upload_whose_scan_fails_is_not_read_again_for_its_digest(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    with Clamd() as clamd:
        clamd.answer = ""
        async with running_service({**settings, "clamd": clamd.address}) as service:
            upload_id = await create(service, digests())
            await append(service, upload_id, 0, DATA[:STEP])
            if not seen:
                service._checks._seen.forget(upload_id)
            noted = note_reads(service, monkeypatch)
            for last in (DATA[STEP:], b"", b""):
                with pytest.raises(ScanUnavailable):
                    await append(service, upload_id, len(DATA) - len(last), last)
            clamd.answer = None
            assert (await append(service, upload_id, len(DATA), b"")).is_complete
            reads_by_scans = 4
            assert noted == [(0, len(DATA))] * (reads_by_scans + (not seen))
            assert len(service._checks._seen._kept) == 0


async def test_a_head_that_finds_a_wrong_digest_removes_the_upload(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._checks, "_seen", SeenUploads(0))
    upload_id = await create(service, digests(DATA[::-1]))
    await append(service, upload_id, 0, DATA[:STEP])
    service.interrupt_hooks()
    with pytest.raises(ServerShutdown):
        await append(service, upload_id, STEP, DATA[STEP:])
    service._checks.resume()
    with pytest.raises(DigestMismatch):
        await service.inspect(upload_id)
    await assert_removed(service, upload_id)


@pytest.mark.parametrize("how", ["inspect", "append", "sweep"])
async def test_complete_upload_is_not_checked_again_by_an_older_record(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with Clamd() as clamd:
        async with running_service({**settings, "clamd": clamd.address, "allowed_types": "image/*"}) as service:
            data = PNG + DATA
            upload_id = await create(service, digests(data), len(data))
            complete = await append(service, upload_id, 0, data)
            assert complete.is_complete
            older = replace(complete, status=Status.FINISHING, completed_at=None)
            older = await service.state.update(complete, older, complete.token)
            clamd.answer = "stream: Late.Signature FOUND"
            monkeypatch.setattr(service._checks, "_allowed", ("text/plain",))
            noted = note_reads(service, monkeypatch)
            if how == "inspect":
                await service.inspect(upload_id)
            elif how == "append":
                await append(service, upload_id, len(data), b"")
            else:
                assert await service.sweep(older) is SweepResult.COMPLETED
            assert (await service.get(upload_id)).is_complete
            assert (clamd.scanned, noted) == ([len(data)], [])


async def test_final_upload_is_read_from_its_parts_and_a_wrong_one_leaves_them(
    service: UploadService, reads: list[tuple[int, int]]
) -> None:
    ids = []
    for half in (DATA[: 2 * STEP], DATA[2 * STEP :]):
        part = NewUpload(len(half), concatenation=UploadKind.PARTIAL, conditions=digests(half))
        ids.append((await service.create_with(part, AppendRequest(0, Body(half)))).id)
    assert reads == []

    def final(conditions: Conditions) -> NewUpload:
        return NewUpload(None, concatenation=UploadKind.FINAL, partial_ids=tuple(ids), conditions=conditions)

    with pytest.raises(DigestMismatch):
        await service.concatenate(final(digests(DATA[::-1])))
    made = await service.concatenate(final(digests()))
    assert (made.is_complete, made.length) == (True, len(DATA))
    assert b"".join([bytes(piece) async for piece in service.downloads.read(made, 0, len(DATA))]) == DATA
    assert (await service.concatenate(final(digests()))).id == made.id
    for upload_id in ids:
        assert (await service.get(upload_id)).is_complete


async def test_completions_read_beside_each_other_and_all_succeed(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read begins only when another one has begun too."""
    read, begun, two_have_begun = service.storage.read, 0, asyncio.Event()

    async def read_beside_another(*arguments: Any) -> AsyncIterator[Buffer]:
        nonlocal begun
        begun += 1
        if begun == 2:
            two_have_begun.set()
        async with asyncio.timeout(TIMEOUT):
            await two_have_begun.wait()
        async for piece in read(*arguments):
            yield piece

    monkeypatch.setattr(service._checks, "_seen", SeenUploads(0))
    monkeypatch.setattr(service.storage, "read", read_beside_another)
    ids = [await create(service, digests()) for _ in range(8)]
    for upload_id in ids:
        await append(service, upload_id, 0, DATA[:STEP])
    appends = [append(service, upload_id, STEP, DATA[STEP:]) for upload_id in ids]
    assert all(upload.is_complete for upload in await asyncio.gather(*appends))


async def test_owner_reads_one_upload_at_a_time_and_keeps_no_other_waiting() -> None:
    turns, going_on, running = Turns(2), asyncio.Event(), list[str]()

    async def read(upload: Upload) -> None:
        async with turns.of(upload):
            running.append(upload.id)
            await going_on.wait()

    uploads = [Upload(name, 1.0, 1, owner=name[0]) for name in ("a1", "a2", "a3", "b1")]
    readers = [asyncio.create_task(read(upload)) for upload in uploads]
    for _ in range(20):
        await asyncio.sleep(0)
    assert running == ["a1", "b1"]
    going_on.set()
    await asyncio.gather(*readers)
    assert sorted(running) == ["a1", "a2", "a3", "b1"]
    assert len(turns._of_owner) == 0


async def test_uploads_without_an_owner_leave_a_turn_to_owners() -> None:
    turns, nobodys = Turns(3), Upload("a", 1.0, 1)
    async with turns.of(nobodys), turns.of(nobodys):
        waiting = asyncio.create_task(turns.of(nobodys).__aenter__())
        async with asyncio.timeout(TIMEOUT), turns.of(replace(nobodys, owner="ann")):
            assert not waiting.done()
        waiting.cancel()


async def test_small_uploads_do_not_wait_for_large_ones() -> None:
    turns = Turns(1)
    large = Upload("a", 1.0, SMALL + 1)
    for owner in ("", "ann"):
        async with (
            turns.of(replace(large, owner=owner)),
            asyncio.timeout(TIMEOUT),
            turns.of(replace(large, length=SMALL)),
        ):
            pass


async def test_every_owner_has_its_turn_among_uploads_of_others() -> None:
    """The owner that comes last waits for what is running, and for one upload of each other owner at most."""
    turns, order = Turns(1), list[str]()

    async def read(upload: Upload) -> None:
        async with turns.of(upload):
            order.append(upload.id)
            await asyncio.sleep(0)

    names = [*(f"a{number}" for number in range(10)), *(f"b{number}" for number in range(10)), "c0"]
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(read(Upload(name, 1.0, 1, owner=name[0])))
    assert sorted(order) == sorted(names)
    assert order.index("c0") <= 2


async def test_sweep_removes_what_has_expired_while_an_upload_is_read(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._checks, "_seen", SeenUploads(0))
    read_id = await create(service, digests())
    await append(service, read_id, 0, DATA[:STEP])
    service.interrupt_hooks()
    with pytest.raises(ServerShutdown):
        await append(service, read_id, STEP, DATA[STEP:])
    service._checks.resume()
    expired = await service.create(NewUpload(5))
    await service.state.update(expired, replace(expired, expires_at=1.0), expired.token)
    async with service._checks._readers.of(upload_at(0)), service._checks._readers.of(upload_at(0)):
        summary = await Sweeper(service).sweep(patience=0.01)
        assert (summary.removed, summary.completed) == (1, 0)
        assert (await Sweeper(service).sweep(patience=0.01)).total == 0
    await service._work.settle()
    assert (await service.get(read_id)).is_complete


async def test_first_bytes_are_read_while_whole_uploads_are(service: UploadService) -> None:
    part = NewUpload(len(PNG), concatenation=UploadKind.PARTIAL)
    part_id = (await service.create_with(part, AppendRequest(0, Body(PNG)))).id
    final = NewUpload(
        None, concatenation=UploadKind.FINAL, partial_ids=(part_id,), conditions=Conditions(types=("image/png",))
    )
    turns = service._checks._readers
    async with contextlib.AsyncExitStack() as stack:
        for owner in "abc":
            await stack.enter_async_context(turns.of(replace(upload_at(0), owner=owner)))
        assert turns._small.locked()
        async with asyncio.timeout(60):
            assert (await service.concatenate(final)).is_complete


# Types.


@pytest.mark.parametrize("steps", [(), (3,), (3, 10), (HEAD_SIZE - 1,), (HEAD_SIZE,), (HEAD_SIZE + 1,)], ids=str)
@pytest.mark.parametrize("data", [PNG + DATA, DATA], ids=["allowed", "refused"])
async def test_type_is_judged_when_its_bytes_have_come_however_they_come(
    service: UploadService, steps: tuple[int, ...], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = note_reads(service, monkeypatch)
    upload_id = await create(service, Conditions(types=("image/*",)), None)
    bounds = [0, *steps, HEAD_SIZE + 5, len(data)]
    allowed, offset = data is not DATA, 0
    for start, end in itertools.pairwise(bounds):
        offset = start
        if not allowed and end >= HEAD_SIZE:
            break
        await append(service, upload_id, start, data[start:end])
    if allowed:
        assert (await append(service, upload_id, len(data), b"", length=len(data))).is_complete
    else:
        with pytest.raises(TypeNotAllowed, match="application/octet-stream"):
            await append(service, upload_id, offset, data[offset:])
        await assert_removed(service, upload_id)
    assert noted == []


async def test_type_of_bytes_that_another_process_took_is_judged_at_the_end(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(settings) as first, running_service(settings) as second:
        noted = note_reads(second, monkeypatch)
        for data in (PNG + DATA, DATA):
            upload_id = await create(first, Conditions(types=("image/png",)), len(data))
            await append(first, upload_id, 0, data[:5])
            last = append(second, upload_id, 5, data[5:])
            if data is DATA:
                with pytest.raises(TypeNotAllowed):
                    await last
                await assert_removed(first, upload_id)
            else:
                assert (await last).is_complete
        assert noted == [(0, HEAD_SIZE)] * 2


async def test_final_upload_is_judged_by_its_first_bytes_and_its_parts_are_not(service: UploadService) -> None:
    ids = []
    for piece in (PNG[:3], PNG[3:] + DATA):
        part = NewUpload(len(piece), concatenation=UploadKind.PARTIAL, conditions=Conditions(types=("image/png",)))
        ids.append((await service.create_with(part, AppendRequest(0, Body(piece)))).id)
    for parts, allowed in ((ids, True), (ids[::-1], False)):
        final = NewUpload(
            None,
            concatenation=UploadKind.FINAL,
            partial_ids=tuple(parts),
            conditions=Conditions(types=("image/png",)),
        )
        if allowed:
            assert (await service.concatenate(final)).is_complete
        else:
            with pytest.raises(TypeNotAllowed):
                await service.concatenate(final)


# The memory.


def upload_at(offset: int, token: int = 7) -> Upload:
    return Upload("a", 1.0, 100, offset=offset, token=token)


def seen_bytes(size: int) -> SeenBytes:
    seen = SeenBytes(["sha256"])
    seen.update(bytes(size))
    return seen


@pytest.mark.parametrize(("offset", "token"), [(10, 8), (9, 7), (11, 7), (0, 7)])
def test_seen_bytes_of_another_state_are_forgotten(offset: int, token: int) -> None:
    seen = SeenUploads()
    seen.keep(upload_at(10), seen_bytes(10))
    assert seen.take(upload_at(offset, token)) is None
    assert seen.take(upload_at(10)) is None


def test_seen_bytes_of_the_same_state_are_taken_once() -> None:
    seen, expected = SeenUploads(), seen_bytes(10)
    seen.keep(upload_at(10), expected)
    assert seen.take(upload_at(10)) is expected
    assert seen.take(upload_at(10)) is None


def test_copy_of_seen_bytes_is_independent() -> None:
    seen = seen_bytes(10)
    copy = seen.copy()
    seen.update(b"more")
    assert (copy.size, copy.head, copy.digest("sha256")) == (10, bytes(10), hashlib.sha256(bytes(10)).hexdigest())
    assert seen.digest("sha256") == hashlib.sha256(bytes(10) + b"more").hexdigest()
    assert seen.digest("sha512") is None
