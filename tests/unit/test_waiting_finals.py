"""Final uploads that wait, for a part or for the storage: what that costs, and who wakes them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.contracts.storage import SupportsConcatenation
from tusd_py.core.errors import StorageFull, UploadNotFound
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

TIMEOUT = 30.0  # seconds
Process: TypeAlias = Callable[[], AbstractAsyncContextManager[UploadService]]


@pytest.fixture(params=["sqlite", "redis"])
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Process:
    """A function that starts one process on the records and files of this test."""
    values: dict[str, Any] = {"upload_dir": tmp_path / "uploads", "concatenation_unfinished": True}
    if request.param == "redis":
        values |= {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    return lambda: running_service(values)


@pytest.fixture
async def service(process: Process) -> AsyncIterator[UploadService]:
    async with process() as service:
        yield service


async def part(service: UploadService, length: int = 5) -> Upload:
    return await service.create(NewUpload(length, None, UploadKind.PARTIAL, "partial"))


async def final(service: UploadService, *parts: Upload, metadata: str | None = None) -> Upload:
    ids = tuple(part.id for part in parts)
    return await service.concatenate(NewUpload(None, metadata, UploadKind.FINAL, "final;", ids))


async def fill(service: UploadService, part: Upload, data: bytes = b"hello") -> None:
    await service.append(part.id, AppendRequest(0, Body(data)))


async def add_waiting(service: UploadService, count: int) -> None:
    """Final uploads that wait for a part of their own, or for one of another."""
    waiting = await final(service, await part(service))
    for first in range(0, count, 100):
        await asyncio.gather(
            *(
                service.state.create(replace(waiting, id=f"waiting-{number}", partial_ids=(f"part-{number}",)))
                for number in range(first, first + 100)
            ),
            *(service.state.add_waiting(f"part-{number}", f"waiting-{number}") for number in range(first, first + 100)),
        )


class Reads:
    """A counter of the records that are read."""

    def __init__(self, service: UploadService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        get, due = service.state.get, service.state.due

        async def counted_get(upload_id: str) -> Upload | None:
            self.count += 1
            return await get(upload_id)

        async def counted_due(*arguments: Any, **options: Any) -> Any:
            found = await due(*arguments, **options)
            self.count += len(found)
            return found

        monkeypatch.setattr(service.state, "get", counted_get)
        monkeypatch.setattr(service.state, "due", counted_due)


async def completed(service: UploadService, upload: Upload) -> Upload:
    """Wait until the upload is complete; return its record. A HEAD would complete it."""
    record = await recorded(service, upload, lambda record: record is None or record.is_complete)
    assert record is not None
    return record


async def removed(service: UploadService, upload: Upload) -> None:
    await recorded(service, upload, lambda record: record is None)


async def recorded(service: UploadService, upload: Upload, condition: Callable[[Upload | None], bool]) -> Upload | None:
    """Wait until the record fulfils the condition; return it."""
    deadline = time.monotonic() + TIMEOUT
    while not condition(record := await service.state.get(upload.id)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return record


async def make_due(service: UploadService, upload: Upload) -> Upload:
    """Make an upload due: its time to be looked at has come."""
    record = await service.state.get(upload.id)
    assert record is not None
    return await service.state.update(record, replace(record, expires_at=1.0), record.token)


async def test_sweep_does_not_look_at_finals_that_wait(service: UploadService, monkeypatch: pytest.MonkeyPatch) -> None:
    await add_waiting(service, 2000)
    await Sweeper(service).sweep()
    reads = Reads(service, monkeypatch)
    await Sweeper(service).sweep()
    assert reads.count < 20


async def test_the_end_of_a_part_looks_only_at_finals_that_wait_for_it(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_waiting(service, 2000)
    await Sweeper(service).sweep()
    one, other = await part(service), await part(service)
    waiting = await final(service, one, other)
    reads = Reads(service, monkeypatch)
    await fill(service, one)
    await fill(service, other)
    assert (await completed(service, waiting)).offset == 10
    assert reads.count < 60


async def test_sweep_of_many_uploads_that_cannot_be_removed_is_linear(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1000
    stuck = replace(await part(service), expires_at=1.0)
    for first in range(0, count, 100):
        await asyncio.gather(
            *(service.state.create(replace(stuck, id=f"stuck-{first + number}")) for number in range(100))
        )

    async def fail(upload: Upload, patience: float | None) -> bool:
        raise StorageFull

    monkeypatch.setattr(service, "sweep", fail)
    reads = Reads(service, monkeypatch)
    assert (await Sweeper(service).sweep()).total == 0
    assert count <= reads.count <= 3 * count


async def test_a_final_is_made_when_the_last_of_its_parts_is_finished(service: UploadService) -> None:
    parts = [await part(service) for _ in range(5)]
    waiting = await final(service, *parts)
    for one in reversed(parts):
        assert not (await service.inspect(waiting.id)).is_complete
        await fill(service, one)
    complete = await completed(service, waiting)
    assert (complete.length, complete.expires_at) == (25, None)


async def test_many_finals_of_one_part_are_all_made(service: UploadService) -> None:
    one = await part(service)
    waiting = [await final(service, one, metadata=f"number {number}") for number in range(250)]
    await fill(service, one)
    for upload in waiting:
        assert (await completed(service, upload)).offset == 5
    deadline = time.monotonic() + TIMEOUT
    while await service.state.waiting_for(one.id, 10):  # the notes go after the last of them
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["terminated", "expired"])
async def test_a_final_goes_away_with_its_part(service: UploadService, end: str) -> None:
    one, other = await part(service), await part(service)
    waiting = await final(service, one, other)
    if end == "terminated":
        await service.terminate(one.id)
    else:
        await service.sweep(await make_due(service, one))
    await removed(service, waiting)


async def test_a_part_that_is_finished_while_the_final_is_made_is_not_missed(
    service: UploadService, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final upload has seen it unfinished, but is not noted yet."""
    async with process() as elsewhere:
        one = await part(service)
        add = service.state.add_waiting

        async def finish_first(partial_id: str, final_id: str) -> None:
            await fill(elsewhere, one)
            await add(partial_id, final_id)

        monkeypatch.setattr(service.state, "add_waiting", finish_first)
        assert (await final(service, one)).is_complete


async def test_a_part_that_is_finished_just_after_the_note_wakes_the_final(
    service: UploadService, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process() as elsewhere:
        one = await part(service)
        add = service.state.add_waiting
        filled: list[asyncio.Future[None]] = []

        async def finish_after(partial_id: str, final_id: str) -> None:
            await add(partial_id, final_id)
            if not filled:
                filled.append(asyncio.ensure_future(fill(elsewhere, one)))
                await completed(service, one)

        monkeypatch.setattr(service.state, "add_waiting", finish_after)
        waiting = await final(service, one)
        await filled[0]
        assert (await completed(service, waiting)).offset == 5


async def test_a_lost_note_delays_the_final_until_it_is_looked_at(service: UploadService) -> None:
    one = await part(service)
    waiting = await final(service, one)
    await service.state.remove_waiting(one.id, [waiting.id])
    await fill(service, one)
    record = await service.state.get(waiting.id)
    assert record is not None
    assert record.status is Status.FINISHING
    now = service.clock.wall()
    assert record.expires_at is not None
    assert now < record.expires_at < now + 3700
    await make_due(service, waiting)
    assert (await Sweeper(service).sweep()).total == 1
    assert (await completed(service, waiting)).offset == 5


async def test_a_final_waits_the_longer_the_older_it_is(service: UploadService) -> None:
    waiting = await final(service, await part(service))
    for age, delay in ((10, 60), (600, 600), (10_000, 3600)):
        record = await make_due(service, waiting)
        aged = replace(record, created_at=service.clock.wall() - age)
        await service.state.update(record, aged, record.token)
        assert (await Sweeper(service).sweep()).total == 0
        looked_at = await service.state.get(waiting.id)
        assert looked_at is not None
        assert looked_at.expires_at == pytest.approx(service.clock.wall() + delay, abs=TIMEOUT)
        assert looked_at.announced_expiry is None


class Room:
    """Free space of a pretended file system; counts the copies that were begun."""

    def __init__(self, service: UploadService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        self.tries = 0
        monkeypatch.setattr(
            os, "statvfs", lambda path: SimpleNamespace(f_blocks=1 << 30, f_bavail=self.free, f_frsize=1)
        )
        storage = service.storage
        assert isinstance(storage, SupportsConcatenation)
        concatenate = storage.concatenate

        async def counted(*arguments: Any, **options: Any) -> str:
            self.tries += 1
            return await concatenate(*arguments, **options)

        monkeypatch.setattr(storage, "concatenate", counted)


async def test_a_final_without_room_is_tried_again_later_and_by_its_client(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await part(service)
    await fill(service, one)
    with monkeypatch.context() as patch:
        room = Room(service, patch)
        with pytest.raises(StorageFull):
            await final(service, one)
        assert room.tries == 1
        for _ in range(3):
            assert (await Sweeper(service).sweep()).total == 0
        assert room.tries == 1  # the sweeper does not try again at once
        with pytest.raises(StorageFull):
            await final(service, one)
        assert room.tries == 2
    made = await final(service, one)
    assert (made.is_complete, made.offset) == (True, 5)


async def test_a_final_without_room_is_made_by_the_sweeper_when_there_is(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await part(service)
    await fill(service, one)
    with monkeypatch.context() as patch:
        Room(service, patch)
        with pytest.raises(StorageFull):
            await final(service, one)
    unmade = next(iter([upload async for upload in service.state.all() if upload.is_final]))
    await make_due(service, unmade)
    assert (await Sweeper(service).sweep()).total == 1
    assert (await service.inspect(unmade.id)).is_complete


async def test_a_final_without_room_goes_away_with_its_parts(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await part(service)
    await fill(service, one)
    Room(service, monkeypatch)
    with pytest.raises(StorageFull):
        await final(service, one)
    unmade = next(iter([upload async for upload in service.state.all() if upload.is_final]))
    await service.terminate(one.id)
    await make_due(service, unmade)
    with pytest.raises(UploadNotFound):
        await service.sweep(unmade)
    assert await service.state.get(unmade.id) is None
