"""The part of the storage suite about the snapshots of a writer, and the order of commits."""

from __future__ import annotations

from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import StorageBehind
from tusd_py.core.upload import Upload
from tusd_py.testing.storage_helpers import (
    LARGE,
    TOKEN,
    UPLOAD,
    WAYS_TO_WRITE,
    Write,
    append,
    committed,
    content,
    described,
    finish,
)
from tusd_py.testing.support import Instances, pytest


class SnapshotTests:
    """The duties of a writer whose snapshots are committed."""

    @pytest.mark.parametrize("sync", [False, True])
    async def test_a_snapshot_claims_no_sync_that_was_not_made(self, storage: Storage, sync: bool) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.flush([b"first"], sync=sync)
        first = writer.snapshot()
        await writer.flush([b"second"], sync=False)
        second = writer.snapshot()
        await writer.close()
        assert first.offset == 5
        assert first.synced in ((0, 5) if sync else (0,))
        assert second.offset == 11
        assert second.synced == first.synced

    async def test_a_snapshot_changes_nothing_by_being_taken(self, storage: Storage) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.flush([LARGE, b"end"], sync=True)
        first, second = writer.snapshot(), writer.snapshot()
        await writer.close()
        assert first == second

    async def test_a_snapshot_whose_commit_was_not_reported_is_kept(
        self, storages: Instances[Storage], storage: Storage
    ) -> None:
        """The change of the record succeeded, but its answer was lost or its caller cancelled."""
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.flush([LARGE, b"end"], sync=True)
        upload = described(UPLOAD, writer.snapshot())
        await writer.close()
        assert await storage.stored_size(upload) == len(LARGE) + 3
        assert await content(storage, await finish(await storages.open(), upload)) == LARGE + b"end"

    async def test_bytes_of_a_snapshot_that_was_not_committed_are_in_the_next_one(
        self, storages: Instances[Storage], storage: Storage
    ) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.flush([LARGE], sync=True)
        writer.snapshot()
        await writer.flush([b"end"], sync=True)
        upload = committed(UPLOAD, writer)
        await writer.close()
        assert await content(storage, await finish(await storages.open(), upload)) == LARGE + b"end"

    async def test_snapshots_committed_one_after_another_describe_all_bytes(
        self, storages: Instances[Storage], storage: Storage
    ) -> None:
        upload: Upload = UPLOAD
        writer = storage.writer(upload, TOKEN)
        for block in (LARGE, b"between", LARGE, b"end"):
            await writer.flush([block], sync=True)
            upload = committed(upload, writer)
        await writer.close()
        assert upload.offset == 2 * len(LARGE) + 10
        assert (
            await content(storage, await finish(await storages.open(), upload)) == LARGE + b"between" + LARGE + b"end"
        )

    @WAYS_TO_WRITE
    async def test_the_snapshot_after_an_error_has_the_bytes_from_before_it(
        self, storage: Storage, write: Write
    ) -> None:
        upload = await append(storage, UPLOAD, [b"abc"])
        writer = storage.writer(upload.at(10), TOKEN)
        with pytest.raises(StorageBehind):
            await write(writer)
        assert writer.snapshot().offset == 10
        await writer.close()
