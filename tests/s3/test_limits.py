"""Uploads that S3 has no room for: refused at once with the limit in the answer, or made to fit; never a dead end."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_server import FaultyProxy, s3_config, s3_server
from tests.support.s3_uploads import PART, Place, serving
from tests.support.services import Body, running_service
from tests.support.wire.messages import MEBI, Answer, creation_headers, payload
from tests.support.wire.requests import create, offset_of, patch, request, stalled_patch
from tusd_py.backends.s3.config import CAPABILITIES, S3Config, S3Dialect
from tusd_py.backends.s3.copy_plan import Slice, plan
from tusd_py.backends.s3.layout import size_of_part
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.errors import MaxSizeExceeded, StorageUnavailable
from tusd_py.core.upload import Upload, UploadPart
from tusd_py.uploads.validation import AppendRequest, NewUpload

MAX_METADATA = 2048  # bytes; of an object in AWS


class StrictS3(FaultyProxy):
    """A proxy that refuses objects with more metadata than AWS accepts."""

    def forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        described = {"content-type", "content-disposition"}
        metadata = {
            name: value
            for name, value in headers.items()
            if name.lower() in described or name.lower().startswith("x-amz-meta-")
        }
        if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA:
            error = b"<Error><Code>MetadataTooLarge</Code></Error>"
            return 400, {"Content-Type": "application/xml", "Content-Length": str(len(error))}, error
        return super().forward(method, target, headers, body)


@pytest.fixture
def strict() -> Iterator[FaultyProxy]:
    with StrictS3(s3_server()) as proxy:
        yield proxy


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_an_upload_whose_file_name_is_longer_than_s3_takes_completes(
    tmp_path: Path, strict: FaultyProxy, size: int
) -> None:
    place = Place(s3_server())
    name = base64.b64encode(("\U0001f600" * 255 + ".mp4").encode()).decode()
    with serving(tmp_path, place, strict.server.endpoint) as server:
        path = create(server.port, size, {"Upload-Metadata": f"filename {name}"})
        answer = patch(server.port, path, 0, b"x" * size)
        assert (answer.status, answer.offset) == (204, size), answer
        assert place.describe(place.key_of(path))["ContentDisposition"].endswith(".mp4")


# Lengths.


def limit_of(server: ServerProcess) -> int:
    return int(request(server.port, "OPTIONS", "/files").headers["tus-max-size"])


def refusal(server: ServerProcess, length: int) -> Answer:
    return request(server.port, "POST", "/files", creation_headers(length))


def test_a_length_that_does_not_fit_into_the_parts_is_refused_with_the_limit(tmp_path: Path) -> None:
    place = Place(s3_server())
    with serving(tmp_path, place) as server:
        limit = limit_of(server)
        assert limit == 9000 * 32 * MEBI
        refused = refusal(server, limit + 1)
        assert refused.status == 413
        assert str(limit) in refused.body.decode()
        assert "location" not in refused.headers
        path = create(server.port, limit)
        assert patch(server.port, path, 0, b"x" * 1000).offset == 1000


def test_the_limit_grows_with_the_memory_up_to_what_s3_takes(tmp_path: Path) -> None:
    place = Place(s3_server())
    with serving(tmp_path, place, s3_buffer_size="1GiB") as server:
        assert limit_of(server) == 5 << 40
    with serving(tmp_path, place, s3_buffer_size="1GiB", max_size="1MiB") as server:
        assert limit_of(server) == MEBI


def test_the_longest_upload_needs_no_more_memory_than_is_allowed(tmp_path: Path) -> None:
    """The parts of the upload are as large as the memory for them, beside which other uploads go on."""
    place = Place(s3_server())
    data = payload(48 * MEBI)
    with serving(tmp_path, place) as server:
        longest = create(server.port, limit_of(server))
        with stalled_patch(server.port, longest, data, len(data)):
            for number in range(3):
                other = create(server.port, 2 * PART, body=payload(2 * PART, number))
                place.assert_object(other, payload(2 * PART, number))
            assert offset_of(server.port, longest) == len(data)
            assert buffered(server) <= 32 * MEBI
    assert len(place.multiparts) == 1


def buffered(server: ServerProcess) -> int:
    lines = request(server.port, "GET", "/metrics").body.decode().splitlines()
    (held,) = [line for line in lines if line.startswith("tusd_s3_buffered_bytes")]
    return int(float(held.rpartition(" ")[2]))


def undeclared(data: bytes) -> Body:
    """Return a body of unknown size."""
    return Body(data, declared=False, piece_size=MEBI)


async def test_a_deferred_upload_that_reaches_the_limit_is_refused_with_its_bytes_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CAPABILITIES, "r2", replace(CAPABILITIES["r2"], max_parts=2))
    place = Place(replace(s3_server(), dialect="r2"))
    settings = {name: value for name, value in place.options().items() if name != "env"}
    limit = 2 * PART
    data = payload(limit + 10)
    async with running_service({"upload_dir": tmp_path / "records", **settings}) as service:
        upload = await service.create(NewUpload(None))
        with pytest.raises(MaxSizeExceeded, match=str(limit)):
            await service.append(upload.id, AppendRequest(0, undeclared(data)))
        assert (await service.inspect(upload.id)).offset == limit
        with pytest.raises(MaxSizeExceeded):
            await service.append(upload.id, AppendRequest(limit, undeclared(b""), length=limit + 1))
        assert (await service.append(upload.id, AppendRequest(limit, undeclared(b""), length=limit))).is_complete
    place.assert_object(upload.id, data[:limit])


async def test_a_part_that_was_begun_with_more_memory_is_refused_not_read(tmp_path: Path) -> None:
    config = s3_config(s3_server(), tmp_path, dialect="plain", buffer_size=PART)
    storage = S3Storage(config)
    await storage.open()
    upload = Upload("upload", 0.0, length=1 << 40, storage_state='{"key":"k","size":123000000,"mpu":"m","next":1}')
    writer = storage.writer(upload, 1)
    for _ in range(30):
        try:
            await writer.write([bytes(MEBI)])
        except StorageUnavailable:
            break
        assert storage.buffered_bytes <= PART
    await writer.close()
    await storage.delete(Upload("upload", 0.0, storage_state=writer.snapshot().storage_state.replace('"mpu":"m",', "")))
    await storage.close()


async def test_parts_get_smaller_with_the_memory_and_larger_again(tmp_path: Path) -> None:
    """An upload that was begun with more memory goes on with what there is, and is not bound to that."""
    upload = Upload("upload", 0.0, length=1 << 40)
    data = payload(6 * PART)
    for memory, sizes in ((2 * PART, [2 * PART]), (PART, [2 * PART, PART]), (2 * PART, [2 * PART, PART, 2 * PART])):
        storage = S3Storage(s3_config(s3_server(), tmp_path, buffer_size=memory))
        await storage.open()
        writer = storage.writer(upload, 1)
        end = sum(sizes)
        for start in range(upload.offset, end, MEBI):
            await writer.write([data[start : min(end, start + MEBI)]])
        await writer.flush(sync=True)
        done = writer.snapshot()
        assert done.offset == end
        upload = replace(upload, offset=end, storage_state=done.storage_state)
        assert [size_of_part(part) for part in done.new_parts] == sizes[-1:]
        await writer.close()
        if len(sizes) == 3:
            await storage.delete(upload)
        await storage.close()


@pytest.mark.parametrize("dialect", ["r2", "plain"])
def test_a_concatenation_that_goes_through_memory_is_bounded(dialect: S3Dialect) -> None:
    config = S3Config(bucket="bucket", dialect=dialect)
    limit = S3Storage(config).size_limits.final
    assert limit is not None
    pieces = plan(config, [Slice("one", 0, limit)], limit)
    assert max(piece.size for piece in pieces) <= config.memory
    with pytest.raises(MaxSizeExceeded):
        plan(config, [Slice("one", 0, 2 * limit)], 2 * limit)


async def stored_as_tail(tmp_path: Path, upload: Upload, data: bytes, memory: int) -> Upload:
    """Store all of `data` as one tail, with this limit of the memory; return the record."""
    config = s3_config(s3_server(), tmp_path, buffer_size=memory, part_size=memory)
    storage = S3Storage(config)
    await storage.open()
    writer = storage.writer(upload, 1)
    for start in range(0, len(data), MEBI):
        await writer.write([data[start : start + MEBI]])
    await writer.flush(sync=True)
    done = writer.snapshot()
    upload = replace(upload, offset=done.offset, storage_state=done.storage_state)
    assert upload.offset == len(data)
    assert not done.new_parts
    await writer.close()
    await storage.close()
    return upload


@pytest.mark.parametrize("rest", [0, 1000, 2 * PART + 1000])
async def test_an_upload_whose_tail_exceeds_the_memory_of_now_goes_on_in_smaller_parts(
    tmp_path: Path, rest: int
) -> None:
    data = payload(4 * PART + 12345 + rest)
    stored = len(data) - rest
    upload = await stored_as_tail(tmp_path, Upload("upload", 0.0), data[:stored], memory=8 * PART)
    storage = S3Storage(s3_config(s3_server(), tmp_path, buffer_size=PART))
    await storage.open()
    writer = storage.writer(replace(upload, length=len(data)), 2)
    parts: list[UploadPart] = []
    for start in range(stored, len(data), MEBI):
        await writer.flush([data[start : start + MEBI]], sync=True)
        assert storage.buffered_bytes <= PART
        done = writer.snapshot()
        upload = replace(upload, offset=done.offset, storage_state=done.storage_state)
        parts += done.new_parts
        writer.committed(done)
    whole = await writer.finish(sync=True)
    done = writer.snapshot()
    parts += done.new_parts
    await writer.close()
    upload = replace(upload, length=len(data), offset=done.offset, storage_state=done.storage_state)
    assert done.offset == len(data)
    assert not whole
    upload = replace(upload, storage_state=await storage.finish(upload, parts, sync=True))
    assert b"".join([bytes(piece) async for piece in storage.read(upload, 0, len(data))]) == data
    assert storage.buffered_bytes == 0
    await storage.delete(upload)
    await storage.close()


async def test_an_upload_that_goes_back_within_a_tail_larger_than_the_memory_keeps_its_bytes(tmp_path: Path) -> None:
    data = payload(3 * PART + 12345)
    upload = await stored_as_tail(tmp_path, Upload("upload", 0.0), data, memory=8 * PART)
    storage = S3Storage(s3_config(s3_server(), tmp_path, buffer_size=PART))
    await storage.open()
    upload = replace(upload, length=len(data) + 5)
    writer = storage.writer(upload, 2)
    await writer.flush([b"wrong"], sync=True)
    await writer.discard(len(data))
    assert writer.snapshot().offset == len(data)
    await writer.finish([b"right"], sync=True)
    done = writer.snapshot()
    await writer.close()
    upload = replace(upload, offset=done.offset, storage_state=done.storage_state)
    upload = replace(upload, storage_state=await storage.finish(upload, done.new_parts, sync=True))
    assert b"".join([bytes(piece) async for piece in storage.read(upload, 0, done.offset)]) == data + b"right"
    await storage.delete(upload)
    await storage.close()
