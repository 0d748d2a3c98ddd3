"""The contract suite of a storage (`tusd_py.contracts.storage`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from tusd_py.contracts.storage import Buffer, Storage
from tusd_py.core.errors import StorageBehind, StoredElsewhere, UploadNotFound
from tusd_py.testing.concatenation_suite import ConcatenationTests
from tusd_py.testing.reading_suite import ReadingTests
from tusd_py.testing.snapshot_suite import SnapshotTests
from tusd_py.testing.storage_helpers import (
    LARGE,
    TOKEN,
    UPLOAD,
    WAYS_TO_WRITE,
    Gate,
    Write,
    append,
    assert_takes_no_more,
    assert_waits,
    committed,
    content,
    finish,
    store,
)
from tusd_py.testing.support import Instances, pytest, pytest_asyncio, within


class StorageSuite(ConcatenationTests, ReadingTests, SnapshotTests):
    """The duties of a storage.

    Subclass it and make the storage::

        class TestFolderStorage(StorageSuite):
            def make(self, place: Path) -> Storage:
                return FolderStorage(place / "uploads")
    """

    pytestmark = pytest.mark.asyncio

    def make(self, place: Path) -> Storage:
        """Return a storage that is not open yet. All storages of one place have the same bytes.

        Args:
            place: a directory of the test; its path will do as a unique name where there are no directories.
        """
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def storages(self, tmp_path: Path) -> AsyncIterator[Instances[Storage]]:
        """Several storages of one place."""
        instances = Instances(self.make, tmp_path)
        yield instances
        await instances.close_all()

    @pytest_asyncio.fixture
    async def storage(self, storages: Instances[Storage]) -> Storage:
        """One open storage."""
        return await storages.open()

    @pytest_asyncio.fixture
    async def gate(self) -> AsyncIterator[Gate]:
        """A closed gate, opened after the test."""
        gate = Gate()
        yield gate
        gate.opened.set()

    # Writing.

    @pytest.mark.parametrize("sync", [False, True])
    async def test_what_was_written_is_read(self, storage: Storage, sync: bool) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        assert writer.snapshot().offset == 0
        await writer.write([b"one ", b"two "])
        await writer.flush(sync=sync)
        assert writer.snapshot().offset == 8
        await writer.write([b"three"])
        await writer.write([b" four"])
        await writer.flush([b" five", b" six"], sync=sync)
        assert writer.snapshot().offset == 27
        await writer.flush([], sync=sync)
        assert writer.snapshot().offset == 27
        upload = committed(UPLOAD, writer)
        await writer.close()
        assert upload.offset == 27
        assert await storage.stored_size(upload) == 27
        assert await content(storage, await finish(storage, upload)) == b"one two three four five six"

    @pytest.mark.parametrize("sync", [False, True])
    async def test_nothing_written_is_nothing_stored(self, storage: Storage, sync: bool) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.flush(sync=sync)
        assert writer.snapshot().offset == 0
        upload = committed(UPLOAD, writer)
        await writer.close()
        assert await storage.stored_size(upload) == 0

    @pytest.mark.parametrize("sync", [False, True])
    @pytest.mark.parametrize(
        ("before", "written", "last"),
        [
            pytest.param([], [], [b"all ", b"of it"], id="all at once"),
            pytest.param([], [b"almost all"], [b" of it"], id="the rest"),
            pytest.param([], [b"all ", b"of it"], [], id="nothing more"),
            pytest.param([b"half"], [], [b" and half"], id="of a second request"),
            pytest.param([b"half"], [b" and", b" half"], [], id="nothing more of a second request"),
            pytest.param([b"all of it"], [], [], id="nothing at all"),
            pytest.param([], [], [], id="no bytes"),
            pytest.param([], [LARGE], [LARGE, LARGE], id="large"),
        ],
    )
    async def test_the_last_bytes_of_an_upload(
        self,
        storages: Instances[Storage],
        storage: Storage,
        before: list[bytes],
        written: list[bytes],
        last: list[bytes],
        sync: bool,
    ) -> None:
        expected = b"".join([*before, *written, *last])
        upload = await append(storage, UPLOAD, before)
        await append(storage, upload, [b"never committed"])
        writer = storage.writer(upload, TOKEN)
        if written:
            await writer.write(written)
        whole = await writer.finish(last, sync=sync)
        assert writer.snapshot().offset == len(expected)
        upload = complete = committed(upload, writer)
        await writer.close()
        reader = await storages.open()
        if not whole:
            complete = await finish(reader, upload, sync=sync)
        assert await reader.stored_size(complete) == len(expected)
        assert await content(reader, complete) == expected
        complete = await finish(reader, upload, sync=sync)  # as after a crash before this was recorded
        assert await content(storage, complete) == expected

    async def test_uploads_go_on_where_they_were(self, storages: Instances[Storage], storage: Storage) -> None:
        upload = await append(storage, UPLOAD, [b"one "])
        upload = await append(await storages.open(), upload, [b"two "])
        upload = await append(storage, upload)
        upload = await append(storage, upload, [b"three"])
        assert upload.offset == 13
        assert await content(await storages.open(), await finish(storage, upload)) == b"one two three"

    @pytest.mark.parametrize("kept", [0, 1, 4, 9, 10])
    async def test_a_new_writer_drops_what_was_not_committed(self, storage: Storage, kept: int) -> None:
        data = b"0123456789"
        upload = await append(storage, UPLOAD, [data[:kept]])
        await append(storage, upload, [data[kept:]])
        upload = await append(storage, upload, [b"new"])
        assert upload.offset == kept + 3
        assert await storage.stored_size(upload) == kept + 3
        assert await content(storage, await finish(storage, upload)) == b"0123456789"[:kept] + b"new"

    @WAYS_TO_WRITE
    @pytest.mark.parametrize("stored", [1, 3, 9])
    async def test_fewer_bytes_than_were_committed_are_noticed(
        self, storage: Storage, stored: int, write: Write
    ) -> None:
        upload = await append(storage, UPLOAD, [b"x" * stored])
        writer = storage.writer(upload.at(10), TOKEN)
        with pytest.raises(StorageBehind) as raised:
            await write(writer)
        await writer.close()
        assert raised.value.stored == stored
        assert await storage.stored_size(upload.at(10)) == stored
        upload = await append(storage, upload, [b"more"])
        assert await storage.stored_size(upload) == stored + 4

    @pytest.mark.parametrize(
        "block",
        [
            pytest.param([], id="none"),
            pytest.param([b""], id="empty"),
            pytest.param([b"", b"a", b"", b"", b"b", b""], id="some empty"),
            pytest.param([bytearray(b"ab"), memoryview(b"cdef")[1:3], b"g", memoryview(bytearray(b"h"))], id="kinds"),
            pytest.param([b"%d," % number for number in range(5000)], id="many"),
            pytest.param([LARGE, b"between", memoryview(LARGE)[12345:]], id="large"),
        ],
    )
    async def test_blocks_of_every_shape(self, storage: Storage, block: list[Buffer]) -> None:
        upload = await append(storage, UPLOAD, [b"before "], block, [b" after"])
        expected = b"before " + b"".join(block) + b" after"
        assert upload.offset == len(expected)
        assert await content(storage, await finish(storage, upload)) == expected

    async def test_many_uploads_at_once(self, storage: Storage) -> None:
        async def upload(number: int) -> bytes:
            upload = replace(UPLOAD, id=f"upload-{number}")
            for part in range(4):
                upload = await append(storage, upload, [b"%d." % number] * (part + 1), [b"%d" % part])
            return await content(storage, await finish(storage, upload))

        contents = await asyncio.gather(*map(upload, range(20)))
        for number, found in enumerate(contents):
            name = b"%d." % number
            assert found == name + b"0" + name * 2 + b"1" + name * 3 + b"2" + name * 4 + b"3"

    # Flow control and order.

    async def test_one_block_is_stored_while_the_next_one_waits(self, storage: Storage, gate: Gate) -> None:
        writer = storage.writer(UPLOAD, TOKEN, gate)
        await within(writer.write([b"one"]))
        writing = asyncio.ensure_future(writer.write([b"two"]))
        await assert_waits(writing)
        assert writer.snapshot().offset == 0
        gate.opened.set()
        await within(writing)
        assert gate.passed >= 3
        await within(writer.flush(sync=False))
        assert writer.snapshot().offset == 6
        await writer.close()

    async def test_a_slow_upload_does_not_hold_up_the_others(self, storage: Storage, gate: Gate) -> None:
        slow = storage.writer(replace(UPLOAD, id="slow"), TOKEN, gate)
        await slow.write([b"slow"])
        assert await content(storage, await store(storage, "quick", b"quick")) == b"quick"
        gate.opened.set()
        await slow.close()

    async def test_closing_without_steps_under_way_succeeds(self, storages: Instances[Storage]) -> None:
        storage = await storages.open()
        await append(storage, UPLOAD, [b"stored"])
        assert await storage.close(timeout=10) is True

    @WAYS_TO_WRITE
    async def test_nothing_is_written_any_more_after_closing(self, storage: Storage, gate: Gate, write: Write) -> None:
        """A request that is cancelled releases its lock after this: nothing may be written any more then."""
        writer = storage.writer(UPLOAD, TOKEN, gate)
        waiting = asyncio.ensure_future(write(writer))
        await assert_waits(waiting)
        waiting.cancel()
        await asyncio.wait((waiting,))
        closing = asyncio.ensure_future(writer.close())
        await assert_waits(closing)
        gate.opened.set()
        await within(closing)
        assert gate.passed == 4
        upload = await append(storage, UPLOAD, [b"next"])  # whoever has the lock now
        assert await content(storage, await finish(storage, upload)) == b"next"

    async def test_the_observer_sees_every_byte_in_order_outside_the_event_loop(self, storage: Storage) -> None:
        seen: list[bytes] = []
        threads: set[int] = set()

        def observe(data: Buffer) -> None:
            seen.append(bytes(data))
            threads.add(threading.get_ident())

        writer = storage.writer(UPLOAD, TOKEN, observe)
        expected = b""
        for number in range(20):
            block: list[Buffer] = [b"%d " % number, bytearray(b"x" * number), memoryview(b"yz")]
            await writer.write(block)
            expected += b"".join(block)
            if number % 7 == 0:
                await writer.flush(sync=False)
                assert b"".join(seen) == expected
        await writer.flush(sync=True)
        await writer.close()
        assert b"".join(seen) == expected
        assert threading.get_ident() not in threads

    async def test_the_observer_sees_only_what_is_new(self, storage: Storage) -> None:
        upload = await append(storage, UPLOAD, [b"0123"])
        await append(storage, upload, [b"456789"])
        seen: list[bytes] = []
        writer = storage.writer(upload, TOKEN, lambda data: seen.append(bytes(data)))
        await writer.write([b"new"])
        await writer.flush(sync=False)
        await writer.close()
        assert seen == [b"new"]

    # Discarding.

    @pytest.mark.parametrize("offset", [4, 5, 11, 12])
    @pytest.mark.parametrize("flushed", [False, True])
    async def test_discarding(self, storage: Storage, offset: int, flushed: bool) -> None:
        upload = await append(storage, UPLOAD, [b"kept"])
        writer = storage.writer(upload, TOKEN)
        await writer.write([b"more"])
        await writer.write([b"more"])
        if flushed:
            await writer.flush(sync=False)
        await writer.discard(offset)
        assert writer.snapshot().offset <= offset
        await writer.flush(sync=True)
        assert writer.snapshot().offset == offset
        assert await storage.stored_size(committed(upload, writer)) == offset
        await writer.flush([b"!"], sync=True)
        assert writer.snapshot().offset == offset + 1
        upload = committed(upload, writer)
        await writer.close()
        complete = await finish(storage, upload)
        assert await content(storage, complete) == b"keptmoremore"[:offset] + b"!"

    async def test_discarding_where_nothing_was_written(self, storage: Storage) -> None:
        writer = storage.writer(UPLOAD, TOKEN)
        await writer.discard(0)
        await writer.flush(sync=False)
        assert writer.snapshot().offset == 0
        await writer.close()
        assert await storage.stored_size(UPLOAD) == 0

    # After an error.

    @WAYS_TO_WRITE
    async def test_after_an_error_no_more_bytes_are_taken(self, storage: Storage, write: Write) -> None:
        upload = await append(storage, UPLOAD, [b"abc"])
        writer = storage.writer(upload.at(10), TOKEN)
        with pytest.raises(StorageBehind):
            await write(writer)
        await assert_takes_no_more(writer)
        await writer.close()
        assert await storage.stored_size(upload) == 3

    # Completing.

    @pytest.mark.parametrize("sync", [False, True])
    async def test_completing_may_be_repeated(self, storages: Instances[Storage], storage: Storage, sync: bool) -> None:
        upload = await append(storage, UPLOAD, [b"content"])
        for instance in (storage, storage, await storages.open()):
            complete = await finish(instance, upload, sync=sync)
            assert await content(storage, complete) == b"content"
            assert await storage.stored_size(complete) == 7

    @pytest.mark.parametrize("sync", [False, True])
    async def test_an_upload_of_no_bytes_is_complete_too(self, storage: Storage, sync: bool) -> None:
        upload = await finish(storage, UPLOAD, sync=sync)
        assert await content(storage, upload) == b""
        assert await storage.stored_size(upload) == 0

    async def test_completing_drops_what_was_not_committed(self, storage: Storage) -> None:
        upload = await append(storage, UPLOAD, [b"0123"])
        await append(storage, upload, [b"456789"])
        complete = await finish(storage, upload)
        assert await content(storage, complete, 0, 4) == b"0123"
        assert await storage.stored_size(complete) == 4

    @pytest.mark.parametrize("stored", [1, 3])
    async def test_an_upload_with_bytes_missing_is_not_complete(self, storage: Storage, stored: int) -> None:
        upload = await append(storage, UPLOAD, [b"x" * stored])
        for _ in range(2):
            with pytest.raises(StorageBehind) as raised:
                await finish(storage, upload.at(10))
            assert raised.value.stored == stored
        upload = await append(storage, upload, [b"y" * (10 - stored)])
        assert await content(storage, await finish(storage, upload)) == b"x" * stored + b"y" * (10 - stored)

    async def test_what_another_storage_has_is_not_missed(self, storage: Storage) -> None:
        """An operator who starts the server once with other settings does not put every offset back."""
        own = (await append(storage, UPLOAD, [b"content"])).storage_state
        foreign = replace(UPLOAD.at(7), storage_state="" if own.startswith("{") else '{"key":"upload"}')
        with pytest.raises(StoredElsewhere):
            await storage.stored_size(foreign)
        with pytest.raises(StoredElsewhere):
            await storage.finish(foreign, sync=False)
        with pytest.raises(StoredElsewhere):
            storage.writer(foreign, TOKEN)

    # Deleting.

    async def test_deleted_bytes_are_gone(self, storages: Instances[Storage], storage: Storage) -> None:
        complete = await store(storage, "complete", b"content")
        unfinished = await append(storage, UPLOAD, [b"half"])
        neighbour = await store(storage, "neighbour", b"stays")
        for upload in (complete, unfinished):
            await storage.delete(upload)
            assert await storage.stored_size(upload) == 0
            await storage.delete(upload)
            await (await storages.open()).delete(upload)
        with pytest.raises(UploadNotFound):
            await content(storage, complete)
        assert await content(storage, neighbour) == b"stays"

    async def test_nothing_to_delete_is_fine(self, storage: Storage) -> None:
        await storage.delete(UPLOAD)
        await storage.delete(UPLOAD.at(10))

    async def test_a_deleted_upload_may_start_again(self, storage: Storage) -> None:
        await storage.delete(await append(storage, UPLOAD, [b"before"]))
        upload = await append(storage, UPLOAD, [b"new"])
        assert await content(storage, await finish(storage, upload)) == b"new"
