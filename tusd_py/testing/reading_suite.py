"""The part of the storage suite about reading."""

from __future__ import annotations

import asyncio

from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import UploadNotFound
from tusd_py.testing.storage_helpers import (
    LARGE,
    UPLOAD,
    content,
    store,
)
from tusd_py.testing.support import pytest


class ReadingTests:
    """The duties of a storage from which complete uploads are read."""

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, 0),
            (0, 1),
            (0, len(LARGE)),
            (1, len(LARGE) - 1),
            (12345, 12345),
            (12345, 67890),
            ((1 << 20) - 1, (1 << 20) + 1),
            (1 << 20, 3 << 20),
            (len(LARGE) - 1, len(LARGE)),
            (len(LARGE), len(LARGE)),
        ],
    )
    async def test_reading_ranges(self, storage: Storage, start: int, end: int) -> None:
        upload = await store(storage, "large", LARGE)
        pieces = [bytes(data) async for data in storage.read(upload, start, end)]
        assert b"".join(pieces) == LARGE[start:end]
        assert all(pieces)

    async def test_no_piece_that_is_read_is_larger_than_allowed(self, storage: Storage) -> None:
        upload = await store(storage, "large", LARGE)
        pieces = [bytes(data) async for data in storage.read(upload, 0, upload.offset, lambda most: min(most, 100_000))]
        assert b"".join(pieces) == LARGE
        assert max(map(len, pieces)) == 100_000

    async def test_many_readers_at_once(self, storage: Storage) -> None:
        upload = await store(storage, "large", LARGE)
        contents = await asyncio.gather(*(content(storage, upload, start) for start in range(0, 2400, 200)))
        assert contents == [LARGE[start:] for start in range(0, 2400, 200)]

    async def test_a_reader_that_goes_away(self, storage: Storage) -> None:
        upload = await store(storage, "large", LARGE)
        for _ in range(20):
            reading = storage.read(upload, 0, upload.offset)
            assert LARGE.startswith(bytes(await anext(reading)))
            await reading.aclose()  # type: ignore[attr-defined]
        assert await content(storage, upload) == LARGE

    async def test_what_is_not_there_cannot_be_read(self, storage: Storage) -> None:
        with pytest.raises(UploadNotFound):
            await content(storage, UPLOAD.at(10))
