"""A disk that hangs: nobody takes over what may still be written, and readers are answered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.preload import PreloadedFaults
from tests.faults.stalls import OSFaults
from tests.support.harness import ServerProcess
from tests.support.services import Body, running_service
from tests.support.timing import scaled
from tests.support.wire.messages import KIBI, payload
from tests.support.wire.requests import assert_content, create, head, patch, start_patch
from tusd_py.contracts.storage import SupportsCompletionRecords
from tusd_py.core.errors import LockTimeout, UploadNotFound
from tusd_py.core.upload import Status
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

GRACE = 2.0
HEAD_LIMIT = 2.0  # seconds, as promised
NOTES = "*.json"


@pytest.mark.parametrize("call", ["pwritev", "ftruncate"])
def test_an_upload_stays_locked_until_the_process_with_the_hanging_write_is_dead(
    tmp_path: Path, preload_library: Path, call: str
) -> None:
    faults = PreloadedFaults(tmp_path / "faults", preload_library)
    old_data, data = payload(300 * KIBI, 1), payload(300 * KIBI, 2)
    uploads = tmp_path / "uploads"
    with (
        ServerProcess(uploads, env=faults.env, shutdown_grace=f"{GRACE}s") as old,
        ServerProcess(uploads, lock_timeout="500ms") as other,
    ):
        path = create(other.port, len(data))
        assert patch(other.port, path, 0, data[:1000]).status == 204
        if call == "ftruncate":  # bytes that were never committed, which the next writer cuts off
            with (uploads / path.rpartition("/")[2]).open("ab") as file:
                file.write(b"garbage")
        stall = faults.stall(call, f"*{path.rpartition('/')[2]}")
        connection = start_patch(old.port, path, 1000, len(data) - 1000)
        connection.send(old_data[1000:])
        stall.wait()
        old.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + scaled(GRACE + 10)
        while old.process.poll() is None:
            answer = patch(other.port, path, 1000, data[1000:])
            if old.process.poll() is None:
                assert answer.status == 423, answer
            assert time.monotonic() < deadline, "the process with the hanging write does not end"
        old.wait(10)
        connection.close()
        offset = head(other.port, path).offset
        if offset < len(data):
            assert patch(other.port, path, offset, data[offset:]).status == 204
        faults.clear()
        assert_content(other.port, path, data)


def test_patches_whose_bytes_hang_at_the_end_of_the_grace_are_told_to_come_back(
    tmp_path: Path, preload_library: Path
) -> None:
    faults = PreloadedFaults(tmp_path / "faults", preload_library)
    with ServerProcess(tmp_path / "uploads", env=faults.env, shutdown_grace=f"{GRACE}s") as server:
        paths = [create(server.port, 4) for _ in range(3)]
        stalls = [faults.stall("fsync", f"*{path.rpartition('/')[2]}") for path in paths]
        patches = [start_patch(server.port, path, 0, 4) for path in paths]
        for connection in patches:
            connection.send(b"data")
        for stall in stalls:
            stall.wait()
        os.kill(server.pid, signal.SIGTERM)
        for connection in patches:
            answer = connection.answer_or_closed()
            assert answer is None or (answer.status, answer.headers["connection"]) == (503, "close"), answer
            connection.close()
        server.wait(scaled(GRACE + 10))


@pytest.fixture
async def service(tmp_path: Path, os_faults: OSFaults) -> AsyncIterator[UploadService]:
    async with running_service({"upload_dir": tmp_path / "uploads", "sweep_interval": 0}) as service:
        yield service
        os_faults.clear()


def notes_of(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "uploads" / ".tusd-py" / "finished").rglob(NOTES))


async def test_a_reader_of_a_finished_upload_does_not_wait_for_a_disk_that_hangs(
    service: UploadService, os_faults: OSFaults, tmp_path: Path
) -> None:
    upload = await service.create(NewUpload(4))
    await service.append(upload.id, AppendRequest(0, Body(b"data")))
    stall = os_faults.stall("open", NOTES)
    for _ in range(20):  # more than there are threads
        async with asyncio.timeout(scaled(HEAD_LIMIT)):
            assert (await service.inspect(upload.id)).is_complete
    stall.lift()
    assert len(notes_of(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["unknown", "of an earlier version"])
async def test_a_reader_whose_upload_has_to_be_looked_for_is_told_to_ask_later_while_the_disk_hangs(
    service: UploadService, os_faults: OSFaults, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    upload = await service.create(NewUpload(4))
    if kind == "of an earlier version":
        upload = await service.state.update(upload, replace(upload, location=""), upload.token)
    stall = asyncio.Event()

    async def hang(*arguments: object) -> None:
        await stall.wait()

    monkeypatch.setattr(service.storage, "load_completion_record", hang)
    monkeypatch.setattr(service.storage, "located", hang)
    started = time.monotonic()
    with pytest.raises(LockTimeout):
        async with asyncio.timeout(scaled(10)):
            await service.inspect("a" * 32 if kind == "unknown" else upload.id)
    assert time.monotonic() - started < scaled(HEAD_LIMIT)
    stall.set()


async def test_a_reader_of_an_upload_whose_completion_hangs_is_told_to_ask_later(
    service: UploadService, os_faults: OSFaults
) -> None:
    upload = await service.create(NewUpload(None))
    upload = await service.append(upload.id, AppendRequest(0, Body(b"data")))
    finishing = replace(upload, length=4, status=Status.FINISHING)
    await service.state.update(upload, finishing, upload.token)
    stall = os_faults.stall("fsync,fdatasync", "*/uploads/*")
    started = time.monotonic()
    with pytest.raises(LockTimeout):
        await service.inspect(upload.id)
    assert time.monotonic() - started < scaled(HEAD_LIMIT)
    stall.lift()
    async with asyncio.timeout(scaled(10)):
        while True:
            with contextlib.suppress(LockTimeout):
                assert (await service.inspect(upload.id)).is_complete
                break


async def test_a_reader_that_asks_while_an_upload_is_removed_leaves_no_note_of_it(
    service: UploadService, os_faults: OSFaults, tmp_path: Path
) -> None:
    """An empty one, for whose bytes there need not even be a file."""
    upload = await service.create(NewUpload(0))
    (note,) = notes_of(tmp_path)
    note.unlink()  # as after a crash between the record and the note
    stall = os_faults.stall("open", NOTES, times=1)
    reader = asyncio.create_task(service.inspect(upload.id))
    await asyncio.to_thread(stall.wait)
    await service.terminate(upload.id)
    stall.lift()
    assert (await reader).is_complete
    assert isinstance(service.storage, SupportsCompletionRecords)
    assert await service.storage.load_completion_record(upload.id) is None
    with pytest.raises(UploadNotFound):
        await service.get(upload.id)
    await service.drain()
    assert notes_of(tmp_path) == []


async def test_a_reader_has_the_note_made_that_a_crash_prevented(service: UploadService, tmp_path: Path) -> None:
    upload = await service.create(NewUpload(4))
    await service.append(upload.id, AppendRequest(0, Body(b"data")))
    (note,) = notes_of(tmp_path)
    note.unlink()
    await service.inspect(upload.id)
    await service.drain()
    assert notes_of(tmp_path) == [note]
