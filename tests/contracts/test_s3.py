"""Particulars of uploads in S3, and failures on the way there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.contracts.parts import TIMEOUT, within
from tests.support.s3_server import (
    TRANSIENT_FAULTS,
    Fault,
    Faults,
    FaultyProxy,
    HeldRequests,
    Request,
    S3Server,
    moto,
    random_faults,
    rclone,
    s3_config,
    s3_server,
)
from tests.support.upload_records import FixedRecords
from tusd_py.asyncutil.ttl_set import TTLSet
from tusd_py.backends.s3.bucket import EXISTENCE_CACHE_TTL
from tusd_py.backends.s3.config import MAX_PART, MIB, MIN_PART, S3Config
from tusd_py.backends.s3.copy_plan import Slice, plan_copies, plan_equal
from tusd_py.backends.s3.layout import Tail, checksum_of, contiguous, entry, parse, size_of_part
from tusd_py.backends.s3.object_keys import content_disposition, content_type, key_pattern, object_key, properties
from tusd_py.backends.s3.part_sizes import PartSizes, choose_sizes, skipped_numbers
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation, NoInstrumentation
from tusd_py.contracts.storage import Buffer, SupportsDownloadRedirect, SupportsOrphanCleanup, Writer
from tusd_py.core.errors import StorageBehind, StorageUnavailable, UploadError, UploadNotFound
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.testing.storage_helpers import (
    TOKEN,
    UPLOAD,
    Record,
    append,
    committed,
    content,
    final_of,
    finish,
    partials,
)

PART = MIN_PART
DATA = random.Random(5).randbytes(4 * PART + 12345)
QUICK: dict[str, Any] = {"attempts": 1}  # what fails, fails at once


class Calls(Counter[str], NoInstrumentation):
    """A counter of requests by operation."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def s3_request_finished(self, operation: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        with self._lock:
            self[operation] += 1
            self.outcomes[operation, outcome] += 1


@pytest.fixture
def server() -> S3Server:
    return s3_server()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server) as proxy:
        yield proxy


@pytest.fixture
def calls() -> Calls:
    return Calls()


Opener = Callable[..., Any]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """A function that opens storages on the place of the test."""
    storages: list[S3Storage] = []

    async def open_storage(server: S3Server, calls: Instrumentation = NO_INSTRUMENTATION, **changes: Any) -> S3Storage:
        storage = S3Storage(s3_config(server, tmp_path, **changes), calls)
        storages.append(storage)
        await storage.open()
        return storage

    yield open_storage
    for storage in storages:
        await storage.close()


@pytest.fixture
async def storage(opened: Opener, server: S3Server, calls: Calls) -> S3Storage:
    storage: S3Storage = await opened(server, calls)
    calls.clear()
    return storage


def blocks_of(data: bytes, size: int = 1 << 20) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def write_all(writer: Writer, data: bytes) -> None:
    for block in blocks_of(data):
        await writer.write([block])
    await writer.flush(sync=True)


async def send(storage: S3Storage, upload: Upload, data: bytes, **options: Any) -> Record:
    """Append `data` in one request, which may fail; return the record as committed after it."""
    writer = storage.writer(upload, TOKEN, **options)
    try:
        await write_all(writer, data)
    except UploadError:
        pass
    finally:
        record = committed(upload, writer)
        await writer.close()
    return record


async def send_all(storage: S3Storage, upload: Upload, data: bytes) -> Record:
    """Append the last bytes of an upload; return its record when it is complete."""
    writer = storage.writer(upload, TOKEN)
    try:
        for block in blocks_of(data):
            await writer.write([block])
        whole = await writer.finish(sync=True)
        record = committed(upload, writer)
    finally:
        await writer.close()
    return record if whole else await finish(storage, record)


# Sizes and numbers.


@pytest.mark.parametrize("length", [None, 0, 1, PART, 10_000 * PART, 80 << 30, 1 << 40, 4 << 40])
@pytest.mark.parametrize("max_parts", [1000, 10_000])
def test_every_length_fits_into_the_parts(length: int | None, max_parts: int) -> None:
    sizes = choose_sizes(length, PART, max_parts, equal=False)
    assert sizes.capacity_from(1) >= (5 << 40 if length is None and max_parts == 10_000 else length or 0)
    for number in (1, 2, max_parts // 2, max_parts):
        assert PART <= sizes.size(number) <= MAX_PART
        assert sizes.size(number) >= sizes.size(max(1, number - 1))


def test_equal_parts_stay_equal() -> None:
    sizes = choose_sizes(None, PART, 10_000, equal=True)
    assert {sizes.size(number) for number in range(1, 10_001)} == {PART}


def test_small_uploads_have_parts_of_the_configured_size() -> None:
    assert choose_sizes(5 << 30, 8 << 20, 10_000, equal=False) == PartSizes(8 << 20)
    assert choose_sizes(None, 8 << 20, 10_000, equal=False).size(900) == 8 << 20


@pytest.mark.parametrize(("number", "remaining"), [(1, 5 << 30), (9000, 900 * PART), (9990, 9 * PART), (10_000, 1)])
def test_skipping_numbers_leaves_room_for_the_rest(number: int, remaining: int) -> None:
    sizes = PartSizes(PART)
    count = skipped_numbers(sizes, number, remaining)
    assert 0 <= count <= 256
    assert sizes.capacity_from(number + count) >= remaining


def test_the_part_list_counts_only_what_follows_without_a_gap() -> None:
    parts = [entry(number, start, start + 10, "etag", "") for number, start in [(1, 0), (2, 10), (3, 20), (4, 30)]]
    assert contiguous(parts, 40) == parts
    assert contiguous(parts, 30) == parts[:3]
    assert contiguous([parts[0], *parts[2:]], 40) == parts[:1]
    again = [entry(7, 10, 20, "new", ""), entry(9, 20, 35, "new", "")]
    assert contiguous([*parts, *again], 100) == [parts[0], *again]


def test_plans_hold_every_byte_once() -> None:
    chance = random.Random(3)
    for _ in range(200):
        sizes = [chance.choice([1, 100, PART - 1, PART, PART + 1, 3 * PART, 40 * PART]) for _ in range(9)]
        sources = [Slice(str(number), 0, size) for number, size in enumerate(sizes)]
        for pieces in (plan_copies(sources, 10 * PART), plan_equal(sources, PART)):
            joined: dict[str, int] = {}
            for piece in pieces:
                assert piece.size >= PART or piece is pieces[-1]
                for part in piece.slices:
                    assert joined.get(part.key, 0) == part.start
                    joined[part.key] = part.end
            assert list(joined.items()) == [(source.key, source.end) for source in sources]
        downloaded = [piece.size for piece in plan_copies(sources, 10 * PART) if not piece.can_be_copied]
        assert all(size <= PART for size in downloaded)


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


# Layouts and objects.


def test_only_harmless_characters_of_metadata_come_into_keys() -> None:
    config = S3Config(bucket="bucket", prefix="a/", key_template="{prefix}{metadata.folder}/{id}/{metadata.filename}")
    # folder: ../../etc, filename: <x> "y"/ü ü.txt
    upload = replace(UPLOAD, metadata="folder Li4vLi4vZXRj,filename PHg+ICJ5Ii/DvCDDvC50eHQ=")
    key = object_key(config, upload)
    assert key == "a/etc/upload/_.txt"
    fixed, pattern = key_pattern(config)
    match = pattern.fullmatch(key)
    assert fixed == "a/"
    assert match is not None
    assert match["id"] == "upload"
    assert object_key(config, UPLOAD) == "a/_/upload/_"


def encoded(**values: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in values.items())


@pytest.mark.parametrize("name", ["\U0001f600" * 255, "\u00fc" * 3000, "a" * 3000, "\U0001f600" * 300 + ".mp4"])
def test_properties_of_an_object_with_a_long_file_name_fit_into_what_s3_takes(name: str) -> None:
    upload = replace(UPLOAD, metadata=encoded(filename=name, filetype=f"{'a' * 63}/{'b' * 63}"))
    disposition = content_disposition(upload)
    given = properties(S3Config(bucket="bucket"), upload, f"{1 << 62}-{'a' * 16}")
    headers = [given["ContentType"], disposition, *(f"{key}{value}" for key, value in given["Metadata"].items())]
    assert sum(map(len, headers)) <= 2048
    assert name[:10] in unquote(disposition)
    assert disposition.endswith(".mp4") == name.endswith(".mp4")


def test_a_key_with_many_long_values_fits_into_what_s3_takes() -> None:
    key = "{prefix}" + "".join(f"{{metadata.v{number}}}/" for number in range(20)) + "{id}"
    config = S3Config(bucket="bucket", prefix="p" * 100, key_template=key)
    values = {f"v{number}": "x" * 500 for number in range(20)}
    longest = object_key(config, replace(UPLOAD, id="i" * 128, metadata=encoded(**values)))
    assert len(longest) <= 1024
    with pytest.raises(ValueError, match="too long"):
        S3Config(bucket="bucket", prefix="p" * 900, key_template=key)


@pytest.mark.parametrize("key", ["", "{prefix}", "{id}{id}", "{id}{other}", "{id}{", "{metadata.}{id}"])
def test_keys_that_cannot_work(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        S3Config(bucket="bucket", key_template=key)


@pytest.mark.parametrize(
    "changes",
    [{"dialect": "other"}, {"part_size": 1 << 20}, {"part_size": 6 << 30}, {"concurrency": 0}, {"endpoint": "host"}],
)
def test_configurations_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"\b{next(iter(changes))}\b"):
        S3Config(**({"bucket": "bucket"} | changes))


def test_storage_without_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="no name"):
        S3Storage(S3Config())


def test_type_and_name_of_the_object() -> None:
    upload = replace(UPLOAD, metadata="filetype aW1hZ2UvcG5n,filename w7wiLnBuZw==")
    assert content_type(upload) == "image/png"
    assert content_disposition(upload) == "attachment; filename=\"__.png\"; filename*=UTF-8''%C3%BC%22.png"
    bad = replace(UPLOAD, metadata="filetype dGV4dC9odG1sDQpYOiB5,filename Li4vYQ0KYg==,broken %%%")
    assert content_type(bad) == "application/octet-stream"
    assert content_disposition(bad) == 'attachment; filename=".._a__b"'
    assert content_disposition(UPLOAD) == "attachment"


async def test_properties_of_the_object(opened: Opener, server: S3Server) -> None:
    storage = await opened(server, tags=("kind=test",), key_template="{prefix}finished/{id}")
    metadata = "filetype aW1hZ2UvcG5n,filename YS5wbmc="
    for data in (b"small", DATA):
        complete = await send_all(storage, replace(UPLOAD, metadata=metadata), data)
        client = server.client()
        key = f"{storage.config.prefix}finished/upload"
        found = await asyncio.to_thread(client.head_object, Bucket=server.bucket, Key=key)
        assert found["ContentLength"] == len(data)
        assert found["ContentType"] == "image/png"
        assert found["ContentDisposition"] == 'attachment; filename="a.png"'
        assert set(found["Metadata"]) == {"tusd-py-upload", "tusd-py-put"}
        assert UPLOAD.id not in str(list(found["Metadata"].values()))
        tags = await asyncio.to_thread(client.get_object_tagging, Bucket=server.bucket, Key=key)
        assert tags["TagSet"] == [{"Key": "kind", "Value": "test"}]
        assert await content(storage, complete) == data
        client.close()


async def test_redirects(opened: Opener, server: S3Server) -> None:
    import urllib.request

    storage: S3Storage = await opened(server, download="redirect")
    redirects: object = storage
    assert isinstance(redirects, SupportsDownloadRedirect)
    upload = await send_all(storage, UPLOAD, b"content")
    url = await storage.download_url(upload, 'attachment; filename="x"', "text/plain")
    assert url is not None

    def fetch() -> tuple[bytes, str, str]:
        with urllib.request.urlopen(url) as answer:
            return answer.read(), answer.headers["Content-Type"], answer.headers["Content-Disposition"]

    assert await asyncio.to_thread(fetch) == (b"content", "text/plain", 'attachment; filename="x"')
    proxied = await opened(server)
    assert await proxied.download_url(upload, "attachment", "text/plain") is None


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


# Faults.


def once(operation: str, fault: Fault, *, part: int = 0, after: int = 0) -> Faults:
    """Return faults with `fault` for one request, after so many of the kind."""
    seen = 0
    lock = threading.Lock()

    def choose(request: Request) -> Fault:
        nonlocal seen
        with lock:
            if request.operation != operation or (part and request.part != part):
                return Fault.NONE
            seen += 1
            return fault if seen == after + 1 else Fault.NONE

    return choose


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
    proxy.faults = once(operation, fault)
    upload = await send(writing, replace(UPLOAD, length=len(DATA)), DATA[: 2 * PART + 100])
    assert upload.offset == 2 * PART + 100
    upload = await send_all(finishing, upload, DATA[upload.offset :])
    assert await content(writing, upload) == DATA


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


# The janitor.


async def test_the_janitor_removes_what_no_record_names(storage: S3Storage, server: S3Server) -> None:
    has_janitor: object = storage
    assert isinstance(has_janitor, SupportsOrphanCleanup)
    kept = await send(storage, replace(UPLOAD, id="kept"), DATA[: PART + 1])
    forgotten = "f" * 32
    await send(storage, replace(UPLOAD, id=forgotten), DATA[: PART + 1])
    finished = await send_all(storage, replace(UPLOAD, id="finished"), b"finished")
    prefix = storage.config.prefix
    records = FixedRecords(kept, finished)
    assert await storage.clean(records, older_than=3600) == []
    before = server.keys(prefix), server.multiparts(prefix)
    found = await storage.clean(records, older_than=-60, dry_run=True)
    assert sorted((finding.kind, finding.upload_id) for finding in found) == [
        ("multipart upload", forgotten),
        ("tail", forgotten),
    ]
    assert (server.keys(prefix), server.multiparts(prefix)) == before
    assert await storage.clean(records, older_than=-60) == found
    assert await storage.clean(records, older_than=-60) == []
    assert await storage.stored_size(kept) == kept.offset
    assert server.multiparts(prefix) == [parse(kept.storage_state).multipart]
    assert await content(storage, await finish(storage, kept)) == DATA[: PART + 1]
    assert await content(storage, finished) == b"finished"


NAMED = "{prefix}{id}-{metadata.filename}"
HOLIDAY = "filename aG9saWRheS12aWRlby0yMDI2Lm1wNA=="  # holiday-video-2026.mp4


@pytest.mark.parametrize("key", [NAMED, "{prefix}{metadata.filename}-{id}", "{prefix}{id}{metadata.filename}"])
async def test_clean_with_metadata_beside_the_id_keeps_the_living_multipart(
    opened: Opener, server: S3Server, key: str
) -> None:
    storage = await opened(server, key_template=key)
    upload = await send(storage, replace(UPLOAD, id="a" * 32, metadata=HOLIDAY), DATA[: PART + 1])
    assert await storage.clean(FixedRecords(upload), older_than=-60) == []
    assert await content(storage, await finish(storage, upload)) == DATA[: PART + 1]


@pytest.mark.parametrize("key", [NAMED, "{prefix}{metadata.filename}-{id}"])
async def test_clean_finds_a_multipart_that_the_record_of_its_key_does_not_name(
    opened: Opener, server: S3Server, key: str
) -> None:
    storage = await opened(server, key_template=key)
    created = replace(UPLOAD, id="a" * 32, metadata=HOLIDAY)
    await send(storage, created, DATA[:PART])  # and the server dies before it commits that
    records = FixedRecords(created, replace(UPLOAD, id="b" * 32))
    records.in_use.add(created.id)
    assert await storage.clean(records, older_than=-60) == []
    records.in_use.clear()
    (orphan,) = await storage.clean(records, older_than=-60)
    assert (orphan.kind, orphan.upload_id) == ("multipart upload", created.id)
    assert server.multiparts(storage.config.prefix) == []


class CommittedMeanwhile(FixedRecords):
    """The writer commits between the first look and the second one."""

    def __init__(self, before: Upload, after: Upload) -> None:
        super().__init__(before)
        self.after = after

    @contextlib.asynccontextmanager
    async def locked(self, upload_id: str) -> AsyncIterator[Upload | None]:
        yield self.after


async def test_clean_keeps_what_is_committed_after_the_first_look(storage: S3Storage) -> None:
    upload = await send(storage, UPLOAD, DATA[: PART + 1])
    assert await storage.clean(CommittedMeanwhile(UPLOAD, upload), older_than=-60) == []
    assert await content(storage, await finish(storage, upload)) == DATA[: PART + 1]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("{prefix}{metadata.filename}-{id}", "uploads-"),  # a prefix that begins as ours does, or a name of a file
        ("{prefix}{id}", "uploads/"),
        ("{prefix}{id}/{metadata.filename}", "uploads/"),
        ("{prefix}{id}{metadata.filename}", "backup-"),
    ],
)
async def test_clean_leaves_multiparts_of_others_alone(opened: Opener, server: S3Server, key: str, other: str) -> None:
    storage = await opened(server, key_template=key)
    name = f"{storage.config.prefix}{other}{'c' * 32}"
    with contextlib.closing(server.client()) as client:
        client.create_multipart_upload(Bucket=server.bucket, Key=name)
    records = FixedRecords(replace(UPLOAD, id="a" * 32))
    assert await storage.clean(records, older_than=-60) == []
    assert len(server.multiparts(storage.config.prefix)) == 1


async def test_clean_with_a_key_without_the_prefix_leaves_multiparts_of_others_alone(
    opened: Opener, server: S3Server, tmp_path: Path
) -> None:
    """The prefixes keep the tails of two servers apart, but not the objects."""
    key = f"{tmp_path.name}-{{id}}"
    one, two = [await opened(server, key_template=key, prefix=f"{tmp_path.name}/{name}/") for name in ("one", "two")]
    upload = await send(one, replace(UPLOAD, id="a" * 32), DATA[: PART + 1])
    assert await two.clean(FixedRecords(replace(UPLOAD, id="b" * 32)), older_than=-60) == []
    assert await content(one, await finish(one, upload)) == DATA[: PART + 1]


async def test_clean_leaves_an_upload_of_tusd_alone(storage: S3Storage, server: S3Server) -> None:
    name = f"{storage.config.prefix}{'c' * 32}"
    with contextlib.closing(server.client()) as client:
        client.create_multipart_upload(Bucket=server.bucket, Key=name)
        client.put_object(Bucket=server.bucket, Key=f"{name}.info", Body=b"{}")
    assert await storage.clean(FixedRecords(UPLOAD), older_than=-60) == []
    assert len(server.multiparts(storage.config.prefix)) == 1


async def test_clean_judges_ages_by_the_clock_of_s3(
    storage: S3Storage, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(storage, replace(UPLOAD, id="a" * 32), DATA[: PART + 1])
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 2 * 86400)
    assert await storage.clean(FixedRecords(UPLOAD), older_than=86400) == []


# Concatenation.


async def test_parts_are_copied_without_their_bytes_coming_here(storage: S3Storage, calls: Calls) -> None:
    stored = [
        replace(await send_all(storage, replace(UPLOAD, id=f"p{number}"), data), concatenation=UploadKind.PARTIAL)
        for number, data in enumerate([DATA[: PART + 1], b"middle", DATA[PART + 1 : 3 * PART]])
    ]
    calls.clear()
    final = final_of(stored)
    final = replace(final, storage_state=await storage.concatenate(final, stored, sync=True))
    assert calls == {
        "create_multipart_upload": 1,
        "upload_part_copy": 2,
        "get_object": 2,  # what is too small, and as much of the next as makes a part of it
        "upload_part": 1,
        "complete_multipart_upload": 1,
        "head_object": 1,
    }
    assert await content(storage, final) == DATA[: PART + 1] + b"middle" + DATA[PART + 1 : 3 * PART]


async def test_a_single_source_is_copied(storage: S3Storage, calls: Calls) -> None:
    parts = await partials(storage, b"content", b"")
    calls.clear()
    final = final_of(parts)
    final = replace(final, storage_state=await storage.concatenate(final, parts, sync=True))
    assert calls == {"copy_object": 1}
    assert await content(storage, final) == b"content"


@pytest.mark.parametrize("dialect", ["r2", "plain"])
async def test_concatenating_without_copies_of_any_size(opened: Opener, server: S3Server, dialect: str) -> None:
    storage = await opened(server, dialect=dialect)
    stored: list[Upload] = [
        await send_all(storage, replace(UPLOAD, id=f"p{number}"), data)
        for number, data in enumerate([DATA[: 2 * PART + 1], b"middle", DATA[: PART + 7]])
    ]
    final = final_of(stored)
    final = replace(final, storage_state=await storage.concatenate(final, stored, sync=True))
    assert await content(storage, final) == DATA[: 2 * PART + 1] + b"middle" + DATA[: PART + 7]


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
async def test_a_concatenation_that_fails_leaves_nothing(
    opened: Opener, proxy: FaultyProxy, server: S3Server, operation: str
) -> None:
    storage = await opened(proxy.server, **QUICK)
    stored: list[Upload] = [
        await send_all(storage, replace(UPLOAD, id=f"p{number}"), DATA[: PART + number]) for number in range(2)
    ]
    final = final_of(stored)
    proxy.faults = once(operation, Fault.ERROR)
    with pytest.raises(StorageUnavailable):
        await storage.concatenate(final, stored, sync=True)
    assert server.multiparts(storage.config.prefix) == []
    final = replace(final, storage_state=await storage.concatenate(final, stored, sync=True))
    assert await content(storage, final) == DATA[:PART] + DATA[: PART + 1]


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.UNKNOWN])
async def test_a_concatenation_whose_end_was_not_heard_of(opened: Opener, proxy: FaultyProxy, fault: Fault) -> None:
    """The request is repeated; some servers do not know the multipart upload any more."""
    storage = await opened(proxy.server)
    stored: list[Upload] = [
        await send_all(storage, replace(UPLOAD, id=f"p{number}"), DATA[: PART + number]) for number in range(2)
    ]
    final = final_of(stored)
    answers = iter([Fault.LOST, fault])
    proxy.faults = lambda request: next(answers) if request.operation == "CompleteMultipartUpload" else Fault.NONE
    final = replace(final, storage_state=await storage.concatenate(final, stored, sync=True))
    assert await content(storage, final) == DATA[:PART] + DATA[: PART + 1]


async def test_a_concatenation_that_somebody_aborts_can_be_repeated(
    opened: Opener, proxy: FaultyProxy, server: S3Server
) -> None:
    storage = await opened(proxy.server)
    stored: list[Upload] = [
        await send_all(storage, replace(UPLOAD, id=f"p{number}"), DATA[: PART + number]) for number in range(2)
    ]
    final = final_of(stored)

    def abort(request: Request) -> Fault:
        if request.operation == "CompleteMultipartUpload":
            with contextlib.closing(server.client()) as client:
                for upload_id in server.multiparts(storage.config.prefix):
                    client.abort_multipart_upload(
                        Bucket=server.bucket, Key=object_key(storage.config, final), UploadId=upload_id
                    )
        return Fault.NONE

    proxy.faults = abort
    with pytest.raises(StorageUnavailable):
        await storage.concatenate(final, stored, sync=True)
    proxy.faults = lambda request: Fault.NONE
    final = replace(final, storage_state=await storage.concatenate(final, stored, sync=True))
    assert await content(storage, final) == DATA[:PART] + DATA[: PART + 1]


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
