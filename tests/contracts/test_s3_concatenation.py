"""Final uploads in S3 made of their parts."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from tests.contracts.s3_storage import (  # noqa: F401 (fixtures)
    DATA,
    PART,
    QUICK,
    Calls,
    Opener,
    calls,
    once,
    opened,
    proxy,
    send_all,
    server,
    storage,
)
from tests.support.s3_server import (
    Fault,
    FaultyProxy,
    Request,
    S3Server,
)
from tusd_py.backends.s3.object_keys import object_key
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.errors import StorageUnavailable
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.testing.storage_helpers import (
    UPLOAD,
    content,
    final_of,
    partials,
)


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
