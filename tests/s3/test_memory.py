"""The bound for parts in memory: what the silent hold makes room for others, and no upload may need more than it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place, serving
from tests.support.timing import wait_until
from tests.support.wire.messages import MEBI, payload
from tests.support.wire.requests import create, start_patch
from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.s3.config import S3Config
from tusd_py.backends.s3.layout import Layout, Tail
from tusd_py.backends.s3.memory_limiter import MAX_SPILLS, MemoryLimiter
from tusd_py.backends.s3.open_part import OpenPart
from tusd_py.backends.s3.pace import Pace
from tusd_py.backends.s3.part_sizes import PartSizes
from tusd_py.backends.s3.stored_bytes import StoredBytes
from tusd_py.core.upload import Upload

TOTAL = 32 * MEBI
PART = 8 * MEBI
SILENT_UPLOADS = 40
SOON = 20.0  # seconds, on a machine that does other things, too; it was a second for each silent upload


@dataclass
class FakeUpload:
    """An upload whose part is filling up; a spill ends when the test says so."""

    memory: MemoryLimiter
    held: int
    silent: bool = True
    expected: int = 0
    spills: list[FakeUpload] = field(default_factory=list)
    spilling: asyncio.Future[None] | None = field(default=None, init=False)

    @property
    def spillable(self) -> int:
        return 0 if self.spilling else self.held

    def spill(self) -> asyncio.Future[None]:
        self.spilling = asyncio.get_running_loop().create_future()
        self.spills.append(self)
        return self.spilling

    def spilled(self) -> None:
        assert self.spilling is not None
        self.spilling.set_result(None)
        held, self.held, self.spilling = self.held, 0, None
        self.memory.release(held)


def filled(count: int, size: int, **options: bool) -> tuple[MemoryLimiter, list[FakeUpload]]:
    """Return a limiter whose memory `count` uploads hold completely, and a list of those that were asked to spill."""
    memory = MemoryLimiter(count * size)
    spills: list[FakeUpload] = []
    for _ in range(count):
        upload = FakeUpload(memory, size, spills=spills, **options)
        assert memory.try_reserve(size)
        memory.register(upload)
    return memory, spills


async def test_admission_with_silent_uploads_makes_them_spill_at_once() -> None:
    memory, spills = filled(16, 2 * MEBI)
    honest = FakeUpload(memory, 0, silent=False)
    admitting = asyncio.create_task(memory.admit(honest, PART))
    async with asyncio.timeout(5):
        while len(spills) < MAX_SPILLS:
            await asyncio.wait((admitting,), timeout=0.01)
        for upload in list(spills):
            upload.spilled()
        await admitting


async def test_taking_with_silent_uploads_makes_them_spill_although_a_part_is_in_flight() -> None:
    memory, spills = filled(16, 2 * MEBI)
    with memory.releasing():  # a part, on a slow way
        taking = asyncio.create_task(memory.reserve(MEBI))
        await asyncio.sleep(0)
        assert len(spills) == MAX_SPILLS
        spills[0].spilled()
        async with asyncio.timeout(5):
            await taking


async def test_admission_with_busy_uploads_makes_nobody_spill() -> None:
    memory, spills = filled(16, 2 * MEBI, silent=False)
    with memory.releasing():
        admitting = asyncio.create_task(memory.admit(FakeUpload(memory, 0), PART))
        await asyncio.sleep(0.2)
        assert spills == []
        admitting.cancel()
        await asyncio.wait((admitting,))


async def test_admission_behind_many_who_hold_a_little_makes_them_spill() -> None:
    """Each may hold a quarter of a mebibyte before it is admitted."""
    memory, spills = filled(120, 256 << 10, silent=False)
    waiting = [asyncio.create_task(memory.admit(upload, PART)) for upload in list(memory._uploads.values())]
    with memory.releasing():
        await asyncio.sleep(0.2)
    assert len(spills) >= MAX_SPILLS
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


class SlowTails:
    """A bucket in which a tail is stored when the test says so."""

    wants_crc = False

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.stored = asyncio.Event()

    async def run_copy(self, copy: Any) -> Any:
        return copy()

    async def put_tail(self, upload: Upload, start: int, pieces: Any) -> Tail:
        self.started.set()
        await self.stored.wait()
        return Tail("tail", start, start + sum(map(len, pieces)))


async def test_a_part_that_began_to_wait_while_a_tail_was_stored_gets_the_memory_of_the_tail() -> None:
    memory, bucket, upload = MemoryLimiter(10), SlowTails(), Upload("upload", 0.0)
    stored = StoredBytes(S3Config(bucket="bucket"), upload, Layout(), PartSizes(100), 1)
    part = OpenPart(cast(Any, bucket), memory, upload, stored, SerialTask(), None)
    part.open()
    await part.fill([memoryview(bytes(8))])
    storing = asyncio.create_task(part.store_tail())
    await bucket.started.wait()
    waiting = asyncio.create_task(memory.reserve(5))
    await asyncio.sleep(0)

    bucket.stored.set()
    await storing

    async with asyncio.timeout(SOON):
        await waiting


def test_a_client_between_two_blocks_is_not_silent_before_its_usual_pause_is_over() -> None:
    pace = Pace(0.0)
    for number in range(10):
        pace.bytes_came(number * 0.09)
        pace.bytes_taken(number * 0.09)
    assert not pace.is_silent(0.81 + 0.2)
    assert pace.is_silent(0.81 + 0.5)


def test_a_client_whose_bytes_are_being_taken_is_not_silent() -> None:
    pace = Pace(0.0)
    pace.bytes_came(0.0)
    assert not pace.is_silent(100.0)
    pace.bytes_taken(100.0)
    assert not pace.is_silent(100.05)
    assert pace.is_silent(101.0)


def test_uploads_that_fall_silent_do_not_stop_another_one(tmp_path: Path) -> None:
    place = Place(s3_server())
    data = payload(2 * PART + 1000)
    with serving(tmp_path, place, s3_part_size="8MiB") as server, ExitStack() as stack:
        silent = []
        for _ in range(SILENT_UPLOADS):
            path = create(server.port, len(data))
            silent.append(stack.enter_context(start_patch(server.port, path, 0, len(data))))
            silent[-1].socket.settimeout(2 * SOON)
            silent[-1].socket.setblocking(False)
        sent = [0] * SILENT_UPLOADS
        path = create(server.port, len(data))
        with start_patch(server.port, path, 0, len(data)) as honest:
            honest.socket.settimeout(SOON)

            def send_more() -> bool:
                for number, connection in enumerate(silent):
                    try:
                        sent[number] += connection.socket.send(data[sent[number] : 3 * MEBI])
                    except BlockingIOError:
                        continue
                return sum(sent) > SILENT_UPLOADS * MEBI

            wait_until(send_more, "the silent ones have sent much")
            honest.send(data)
            assert honest.answer(SOON).offset == len(data)
        place.assert_object(path, data)
