"""Concatenations in S3 beside other requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.contracts.parts import within
from tests.contracts.s3_storage import DATA, PART, Opener, opened, proxy, send_all, server
from tests.support.s3_server import Fault, FaultyProxy, HeldRequests, Request, S3Server
from tusd_py.backends.s3.storage import S3Storage
from tusd_py.core.errors import ServerShutdown
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import TOKEN, UPLOAD, content, final_of

__all__ = ["opened", "proxy", "server"]


def is_copy(request: Request) -> bool:
    return "/final-" in request.path and request.operation in ("UploadPart", "PutObject")


@pytest.mark.parametrize("dialect", ["aws", "plain"])
@pytest.mark.parametrize("sources", [1, 2])
async def test_uploads_do_not_wait_for_copies_that_hang(
    opened: Opener, proxy: FaultyProxy, dialect: str, sources: int
) -> None:
    storage: S3Storage = await opened(proxy.server, dialect=dialect)
    stored: list[Upload] = [
        await send_all(storage, replace(UPLOAD, id=f"p{number}"), DATA[: PART + number]) for number in range(sources)
    ]
    proxy.faults = held = HeldRequests(is_copy, Fault.NONE)
    finals = [replace(final_of(stored * 2), id=f"final-{number}") for number in range(8)]
    copies = [asyncio.ensure_future(storage.concatenate(final, stored * 2, sync=True)) for final in finals]
    await asyncio.to_thread(held.wait)
    try:
        await asyncio.sleep(0.3)  # a chance to take every thread
        other = replace(UPLOAD, id="other", length=2 * PART)
        complete = await within(send_all(storage, other, DATA[: 2 * PART]))
        assert await within(storage.stored_size(complete)) == 2 * PART
        writer = storage.writer(replace(UPLOAD, id="small"), TOKEN)
        await within(writer.flush([b"a few bytes"], sync=True))
        await writer.close()
        assert not any(copy.done() for copy in copies)
    finally:
        held.release()
    layouts = await asyncio.gather(*copies)
    made = replace(finals[7], storage_state=layouts[7])
    assert await content(storage, made) == b"".join(DATA[: part.offset] for part in stored) * 2


async def test_an_interrupted_concatenation_leaves_nothing_and_can_be_repeated(
    opened: Opener, proxy: FaultyProxy, server: S3Server
) -> None:
    storage: S3Storage = await opened(proxy.server)
    stored: list[Upload] = [await send_all(storage, replace(UPLOAD, id="p0"), DATA[:PART])]
    final = replace(final_of(stored * 10), id="final-0")
    proxy.faults = held = HeldRequests(is_copy, Fault.NONE)
    copy = asyncio.ensure_future(storage.concatenate(final, stored * 10, sync=True))
    await asyncio.to_thread(held.wait)
    storage.interrupt()
    held.release()
    with pytest.raises(ServerShutdown):
        await within(copy)
    assert server.multiparts(storage.config.prefix) == []
    again: S3Storage = await opened(server)
    made = replace(final, storage_state=await within(again.concatenate(final, stored * 10, sync=True)))
    assert await content(again, made) == DATA[:PART] * 10
