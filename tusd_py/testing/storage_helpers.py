"""Uploads in a storage, without a state store: helpers of the storage suite."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace

from tusd_py.contracts.storage import Buffer, Storage, Writer, WriterSnapshot
from tusd_py.core.errors import UploadError
from tusd_py.core.upload import Status, Upload, UploadKind, UploadPart
from tusd_py.testing.support import TIMEOUT, pytest, within


@dataclass(frozen=True, slots=True)
class Record(Upload):
    """An upload with its part list, as a state store keeps them."""

    part_list: tuple[UploadPart, ...] = ()

    def at(self, offset: int) -> Record:
        """Return the upload at another offset, with its part list."""
        return replace(self, offset=offset, synced=min(self.synced, offset))


UPLOAD = Record(id="upload", created_at=1_700_000_000.0)

TOKEN = 1  # of every lock

LARGE = random.Random(1).randbytes((5 << 20) + 12345)


def record_of(upload: Upload) -> Record:
    return upload if isinstance(upload, Record) else Record(**{f.name: getattr(upload, f.name) for f in fields(Upload)})


def committed(upload: Upload, writer: Writer) -> Record:
    """Commit what the writer has stored; return the upload as it is then."""
    snapshot = writer.snapshot()
    record = described(upload, snapshot)
    writer.committed(snapshot)
    return record


def described(upload: Upload, snapshot: WriterSnapshot) -> Record:
    """Return the upload as it is once a snapshot is committed."""
    record = record_of(upload)
    parts = {part.number: part for part in (*record.part_list, *snapshot.new_parts)}
    return replace(
        record,
        offset=snapshot.offset,
        synced=snapshot.synced,
        storage_state=snapshot.storage_state,
        part_list=tuple(parts[number] for number in sorted(parts)),
        token=TOKEN,
    )


async def append(storage: Storage, upload: Upload, *blocks: Sequence[Buffer], sync: bool = False) -> Record:
    """Append the bytes of one request; return the upload as committed."""
    writer = storage.writer(upload, TOKEN)
    try:
        for block in blocks:
            await writer.write(block)
        await within(writer.flush(sync=sync))
        record = committed(upload, writer)
    finally:
        await writer.close()
    assert record.offset == upload.offset + sum(len(buffer) for block in blocks for buffer in block)
    return record


async def finish(storage: Storage, upload: Upload, *, sync: bool = True) -> Record:
    record = record_of(upload)
    storage_state = await storage.finish(record, record.part_list, sync=sync)
    return replace(record, length=upload.offset, status=Status.COMPLETE, storage_state=storage_state, part_list=())


async def store(storage: Storage, upload_id: str, data: bytes) -> Record:
    """Return a complete upload of this data."""
    return await finish(storage, await append(storage, replace(UPLOAD, id=upload_id), [data]))


async def content(storage: Storage, upload: Upload, start: int = 0, end: int | None = None) -> bytes:
    end = upload.offset if end is None else end
    return b"".join([bytes(data) async for data in storage.read(upload, start, end)])


async def assert_takes_no_more(writer: Writer) -> None:
    for _ in range(2):
        with pytest.raises(UploadError):
            await writer.write([b"more"])
        with pytest.raises(UploadError):
            await writer.flush(sync=False)
        with pytest.raises(UploadError):
            await writer.flush([b"more"], sync=True)
        with pytest.raises(UploadError):
            await writer.finish([b"more"], sync=True)


async def partials(storage: Storage, *contents: bytes) -> list[Upload]:
    return [
        replace(await store(storage, f"partial-{number}", data), concatenation=UploadKind.PARTIAL)
        for number, data in enumerate(contents)
    ]


def final_of(parts: Sequence[Upload]) -> Upload:
    length = sum(part.offset for part in parts)
    return Upload(
        id="final",
        created_at=UPLOAD.created_at + 86400 * 40,
        length=length,
        offset=length,
        status=Status.FINISHING,
        concatenation=UploadKind.FINAL,
        partial_ids=tuple(part.id for part in parts),
    )


async def write_and_flush(writer: Writer) -> None:
    await writer.write([b"more"])
    await writer.flush(sync=False)


async def flush(writer: Writer) -> None:
    await writer.flush([b"more"], sync=True)


async def finish_writing(writer: Writer) -> None:
    await writer.finish([b"more"], sync=True)


Write = Callable[[Writer], Awaitable[None]]

WAYS_TO_WRITE = pytest.mark.parametrize("write", [write_and_flush, flush, finish_writing])


class Gate:
    """An observer that blocks the storage until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.passed = 0  # bytes

    def __call__(self, data: Buffer) -> None:
        assert self.opened.wait(TIMEOUT)
        self.passed += len(data)


async def assert_waits(work: asyncio.Future[None]) -> None:
    done, _ = await asyncio.wait((work,), timeout=0.2)
    assert not done
