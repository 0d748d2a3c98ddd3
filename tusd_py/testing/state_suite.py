"""The contract suite of a state store (`tusd_py.contracts.state`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import LockLost, UploadExists
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.testing.due_suite import DueTests
from tusd_py.testing.listing_suite import ListingTests
from tusd_py.testing.part_list_suite import PartListTests
from tusd_py.testing.state_helpers import MAX_INTEGER, STORED, UPLOAD
from tusd_py.testing.support import Instances, line_of, other_process, pytest, pytest_asyncio, within

FULL = Upload(
    id="A-z_0" * 25,
    created_at=1_700_000_000.123456,
    length=1000,
    offset=999,
    status=Status.FINISHING,
    metadata="filename d29ybGQ=,is_confidential",
    concatenation=UploadKind.FINAL,
    concat_header="final;/files/a /files/b",
    partial_ids=("a", "b", "a"),
    expires_at=1_700_000_600.654321,
    completed_at=1_700_000_300.5,
    commit_requests_served=3,
    storage_state="100:7 200:9",
    location="2026/01/31",
    token=17,
    owner="ann",
    max_size=2000,
    given_expiry=1_700_000_600.654321,
    uncounted=True,
    quota_bytes=1 << 40,
    quota_uploads=100,
    reserved_until=1_700_000_900.123456,
    conditions="sha-256=" + "0f" * 32 + " type=image/*",
    client="2001:db8::1",
    updated_at=1_700_000_450.25,
)

RECORDS: dict[str, Upload] = {
    "smallest": UPLOAD,
    "full": FULL,
    "zeros": replace(UPLOAD, created_at=0.0, length=0, expires_at=0.0, completed_at=0.0),
    "empty texts": replace(UPLOAD, metadata="", concat_header=""),
    "unicode": replace(UPLOAD, metadata="ключ 值,🗂 a", concat_header="final;/файлы/é"),
    "latin-1": replace(UPLOAD, metadata="".join(map(chr, range(256))), concat_header="\xff\x80 ' \" ; -- %s ?"),
    "long": replace(UPLOAD, metadata="m" * (1 << 20), partial_ids=tuple("p" * 120 + f"{n:08}" for n in range(1000))),
    "largest": replace(
        UPLOAD, length=MAX_INTEGER, offset=MAX_INTEGER, commit_requests_served=MAX_INTEGER, token=MAX_INTEGER
    ),
    **{status: replace(UPLOAD, status=status) for status in Status},
    **{f"concatenation {kind}": replace(UPLOAD, concatenation=kind) for kind in UploadKind},
}


CLOCK_ERROR = 1.0  # seconds


async def assert_update_is_refused(state: StateStore, before: Upload, token: int) -> None:
    expected = await state.get(before.id)
    with pytest.raises(LockLost):
        await state.update(before, replace(before, offset=77, metadata="changed"), token)
    assert await state.get(before.id) == expected


async def assert_changed_between(state: StateStore, earliest: float, latest: float) -> None:
    """Check the stamp of `UPLOAD`; the clock of a store on another machine may have been set meanwhile."""
    found = await state.get(UPLOAD.id)
    assert found is not None
    assert found.updated_at is not None
    assert earliest - CLOCK_ERROR <= found.updated_at <= latest + CLOCK_ERROR
    assert found.changed_at == found.updated_at


class StateStoreSuite(ListingTests, PartListTests, DueTests):
    """The duties of a state store.

    Subclass it and make the store::

        class TestFileState(StateStoreSuite):
            def make(self, place: Path) -> StateStore:
                return FileState(place / "records")
    """

    pytestmark = pytest.mark.asyncio
    outlives_process: ClassVar[bool] = True  # False for a store in the memory of one process

    def make(self, place: Path) -> StateStore:
        """Return a store that is not open yet. All stores of one place have the same records.

        Args:
            place: a directory of the test; its path will do as a unique name where there are no directories.
        """
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def states(self, tmp_path: Path) -> AsyncIterator[Instances[StateStore]]:
        """Several stores of one place."""
        instances = Instances(self.make, tmp_path)
        yield instances
        await instances.close_all()

    @pytest_asyncio.fixture
    async def state(self, states: Instances[StateStore]) -> StateStore:
        """One open store."""
        return await states.open()

    @pytest_asyncio.fixture
    async def other_state(self, states: Instances[StateStore], state: StateStore) -> StateStore:
        """The same records, seen from another process."""
        return await states.open()

    @pytest.mark.parametrize("upload", RECORDS.values(), ids=RECORDS)
    @pytest.mark.parametrize("durable", [False, True])
    async def test_a_created_record_is_read_as_it_was(
        self, state: StateStore, other_state: StateStore, upload: Upload, durable: bool
    ) -> None:
        await state.create(upload, durable=durable)
        assert await state.get(upload.id) == upload
        assert await other_state.get(upload.id) == upload

    @pytest.mark.parametrize("upload", RECORDS.values(), ids=RECORDS)
    @pytest.mark.parametrize("durable", [False, True])
    async def test_an_updated_record_is_read_as_it_was(
        self, state: StateStore, other_state: StateStore, upload: Upload, durable: bool
    ) -> None:
        before = Upload(id=upload.id, created_at=1.0)
        await state.create(before)
        stored = await state.update(before, upload, MAX_INTEGER, durable=durable)
        assert stored == replace(upload, token=MAX_INTEGER)
        assert await state.get(upload.id) == stored
        assert await other_state.get(upload.id) == stored

    async def test_values_come_back_with_their_types(self, state: StateStore) -> None:
        await state.create(FULL)
        found = await state.get(FULL.id)
        assert found is not None
        for name in FULL.__slots__:
            assert type(getattr(found, name)) is type(getattr(FULL, name)), name

    async def test_a_new_record_tells_when_it_was_created(self, state: StateStore, other_state: StateStore) -> None:
        earliest = state.clock.wall()
        await state.create(UPLOAD)
        await assert_changed_between(other_state, earliest, state.clock.wall())

    async def test_a_copied_record_keeps_the_time_of_its_last_change(self, state: StateStore) -> None:
        await state.create(FULL)
        found = await state.get(FULL.id)
        assert found is not None
        assert found.updated_at == FULL.updated_at

    async def test_a_changed_record_tells_when_it_was_changed(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(replace(UPLOAD, updated_at=1.0))
        earliest = state.clock.wall()
        stored = await state.update(UPLOAD, UPLOAD.at(10), 5)
        await assert_changed_between(other_state, earliest, state.clock.wall())
        found = await other_state.get(UPLOAD.id)
        assert found is not None
        assert found.updated_at == stored.updated_at

    async def test_an_unknown_upload_is_none(self, state: StateStore) -> None:
        await state.create(UPLOAD)
        assert await state.get("another") is None
        assert await state.get("UPLOAD") is None
        assert await state.get("") is None

    async def test_records_outlive_the_store(self, states: Instances[StateStore], state: StateStore) -> None:
        await state.create(FULL)
        await states.close(state)
        assert await (await states.open()).get(FULL.id) == FULL

    # Creating.

    async def test_creating_a_known_id_is_refused_and_changes_nothing(
        self, state: StateStore, other_state: StateStore
    ) -> None:
        await state.create(STORED)
        for store in (state, other_state):
            with pytest.raises(UploadExists):
                await store.create(replace(UPLOAD, metadata="another", token=99))
        assert await state.get(UPLOAD.id) == STORED

    async def test_one_of_many_creations_of_an_id_wins(self, state: StateStore, other_state: StateStore) -> None:
        uploads = [replace(UPLOAD, metadata=str(number)) for number in range(20)]
        stores = [state, other_state] * 10
        results = await asyncio.gather(
            *(store.create(upload) for store, upload in zip(stores, uploads, strict=True)), return_exceptions=True
        )
        winners = [upload for upload, result in zip(uploads, results, strict=True) if result is None]
        assert len(winners) == 1
        assert sum(isinstance(result, UploadExists) for result in results) == 19
        assert await state.get(UPLOAD.id) == winners[0]

    async def test_a_refused_creation_does_not_undo_its_neighbours(self, state: StateStore) -> None:
        await state.create(UPLOAD)
        others = [replace(UPLOAD, id=f"other-{number}") for number in range(10)]
        results = await asyncio.gather(
            *(state.create(upload) for upload in [*others[:5], UPLOAD, *others[5:]]), return_exceptions=True
        )
        assert [type(result) for result in results if result is not None] == [UploadExists]
        assert [await state.get(upload.id) for upload in others] == others

    # Updating.

    @pytest.mark.parametrize("token", [STORED.token, STORED.token + 1, MAX_INTEGER])
    async def test_an_update_carries_the_token_of_its_lock(self, state: StateStore, token: int) -> None:
        await state.create(STORED)
        after = replace(STORED, offset=50, expires_at=7.0, token=1)
        stored = await state.update(STORED, after, token)
        assert stored == replace(after, token=token)
        assert await state.get(STORED.id) == stored

    @pytest.mark.parametrize("token", [STORED.token - 1, 0])
    async def test_an_older_token_has_lost_the_lock(self, state: StateStore, token: int) -> None:
        await state.create(STORED)
        await assert_update_is_refused(state, STORED, token)

    async def test_a_holder_is_fenced_off_by_what_the_next_one_did(
        self, state: StateStore, other_state: StateStore
    ) -> None:
        await state.create(STORED)
        await other_state.update(STORED, STORED, 7)  # the same offset, but a newer lock
        await assert_update_is_refused(state, STORED, 6)

    @pytest.mark.parametrize(
        "change", [{"offset": 11}, {"offset": 9}, {"status": Status.FINISHING}, {"status": Status.EXPIRED}]
    )
    async def test_a_record_that_is_no_longer_as_it_was_read_is_not_changed(
        self, state: StateStore, other_state: StateStore, change: dict[str, Any]
    ) -> None:
        await state.create(STORED)
        await other_state.update(STORED, replace(STORED, **change), STORED.token)
        await assert_update_is_refused(state, STORED, STORED.token)
        await assert_update_is_refused(state, STORED, MAX_INTEGER)

    async def test_a_record_that_is_gone_is_not_made_again(self, state: StateStore) -> None:
        await assert_update_is_refused(state, STORED, MAX_INTEGER)
        await state.create(STORED)
        await state.delete(STORED.id, STORED.token)
        await assert_update_is_refused(state, STORED, MAX_INTEGER)

    async def test_one_of_many_updates_of_the_same_record_wins(
        self, state: StateStore, other_state: StateStore
    ) -> None:
        await state.create(STORED)
        stores = [state, other_state] * 15
        results = await asyncio.gather(
            *(store.update(STORED, STORED.at(20 + number), 6) for number, store in enumerate(stores)),
            return_exceptions=True,
        )
        winners = [result for result in results if isinstance(result, Upload)]
        assert len(winners) == 1
        assert sum(isinstance(result, LockLost) for result in results) == len(stores) - 1
        assert await state.get(STORED.id) == winners[0]

    async def test_many_updates_of_different_uploads_at_once(self, state: StateStore, other_state: StateStore) -> None:
        uploads = [replace(UPLOAD, id=f"upload-{number}") for number in range(100)]

        async def live(store: StateStore, upload: Upload) -> Upload:
            await store.create(upload)
            for offset in range(1, 6):
                upload = await store.update(upload, upload.at(offset), offset, durable=offset == 5)
            return upload

        stores = [state, other_state] * 50
        lived = await asyncio.gather(*map(live, stores, uploads))
        assert lived == [replace(upload, offset=5, token=5) for upload in uploads]
        assert [await other_state.get(upload.id) for upload in uploads] == lived

    async def test_a_refused_update_does_not_undo_its_neighbours(self, state: StateStore) -> None:
        uploads = [replace(STORED, id=f"upload-{number}") for number in range(10)]
        await asyncio.gather(*map(state.create, uploads))
        tokens = [4 if number % 2 else 6 for number in range(10)]
        results = await asyncio.gather(
            *(state.update(upload, upload.at(11), token) for upload, token in zip(uploads, tokens, strict=True)),
            return_exceptions=True,
        )
        assert [isinstance(result, LockLost) for result in results] == [token == 4 for token in tokens]
        found = [await state.get(upload.id) for upload in uploads]
        assert [upload.offset for upload in found if upload] == [10 if token == 4 else 11 for token in tokens]

    async def test_every_instance_sees_the_other_ones_commits_at_once(
        self, state: StateStore, other_state: StateStore
    ) -> None:
        current = STORED
        await state.create(current)
        for offset in range(11, 41):
            writer, reader = (state, other_state) if offset % 2 else (other_state, state)
            current = await writer.update(current, current.at(offset), offset)
            assert await reader.get(current.id) == current
        await other_state.delete(current.id, 100)
        assert await state.get(current.id) is None

    # Deleting.

    async def test_a_deleted_record_is_gone_and_its_id_free(self, state: StateStore, other_state: StateStore) -> None:
        await state.create(STORED)
        await state.create(replace(STORED, id="neighbour"))
        await state.delete(STORED.id, STORED.token)
        assert await state.get(STORED.id) is None
        assert await other_state.get(STORED.id) is None
        assert await state.get("neighbour") is not None
        await other_state.create(UPLOAD)
        assert await state.get(UPLOAD.id) == UPLOAD

    async def test_deleting_what_is_not_there_is_fine(self, state: StateStore) -> None:
        await state.delete(STORED.id, 1)
        await state.create(STORED)
        await state.delete(STORED.id, MAX_INTEGER)
        await state.delete(STORED.id, 1)

    async def test_a_holder_that_lost_its_lock_does_not_delete(self, state: StateStore) -> None:
        await state.create(STORED)
        with pytest.raises(LockLost):
            await state.delete(STORED.id, STORED.token - 1)
        assert await state.get(STORED.id) == STORED

    # Everything.

    @pytest.mark.parametrize("count", [0, 1, 1203])
    async def test_all_records_are_listed_once(self, state: StateStore, other_state: StateStore, count: int) -> None:
        uploads = {f"upload-{number}": replace(FULL, id=f"upload-{number}") for number in range(count)}
        records = list(uploads.values())
        for start in range(0, count, 100):  # all at once may take longer than a call of the store may
            await asyncio.gather(*map(state.create, records[start : start + 100]))
        listed = [upload async for upload in other_state.all()]
        assert len(listed) == count
        assert {upload.id: upload for upload in listed} == uploads

    # Trouble.

    async def test_many_processes_open_a_new_store_at_once(self, states: Instances[StateStore]) -> None:
        stores = await asyncio.gather(*(states.open() for _ in range(8)))
        await asyncio.gather(*(store.create(replace(UPLOAD, id=str(number))) for number, store in enumerate(stores)))
        assert all([await stores[0].get(str(number)) for number in range(8)])

    async def test_a_cancelled_request_leaves_the_store_in_order(self, state: StateStore) -> None:
        await state.create(STORED)
        updating = asyncio.ensure_future(state.update(STORED, STORED.at(11), 6))
        await asyncio.sleep(0)
        updating.cancel()
        await asyncio.wait([updating])

        async def go_on() -> Upload:
            while True:
                current = await state.get(STORED.id)
                assert current is not None
                assert current.offset in (10, 11)  # it was made, or it was not, or it still will be
                with contextlib.suppress(LockLost):
                    return await state.update(current, current.at(12), 7)

        stored = await within(go_on())
        assert await state.get(STORED.id) == stored

    async def test_a_record_that_cannot_be_stored_does_not_stop_the_store(self, state: StateStore) -> None:
        for impossible in (replace(UPLOAD, id="huge", length=1 << 80), replace(UPLOAD, id="torn", metadata="\ud800")):
            try:
                await within(state.create(impossible))
            except (ValueError, OverflowError):
                assert await state.get(impossible.id) is None
            else:  # possible here
                assert await state.get(impossible.id) == impossible
        await within(state.create(UPLOAD))
        assert await within(state.get(UPLOAD.id)) == UPLOAD

    async def test_what_was_acknowledged_outlives_a_killed_process(
        self, states: Instances[StateStore], tmp_path: Path
    ) -> None:
        if not self.outlives_process:
            pytest.skip("the store is lost with its process")
        with other_process("create", type(self), str(tmp_path)) as process:
            acknowledged = [await line_of(process) for _ in range(50)]
            process.kill()
            while line := await line_of(process):
                acknowledged.append(line)
        assert acknowledged[0] == "upload-0"
        state = await states.open()
        assert all([await state.get(upload_id) for upload_id in acknowledged])
        await state.create(UPLOAD)

    async def test_metadata_is_changed_only_by_who_knows_it(self, state: StateStore, other_state: StateStore) -> None:
        assert await state.read_metadata("name") is None
        assert not await state.write_metadata("name", "two", before="one")
        assert await state.write_metadata("name", "one", before=None)
        assert await other_state.read_metadata("name") == "one"
        assert not await other_state.write_metadata("name", "two", before=None)
        assert not await other_state.write_metadata("name", "two", before="three")
        assert await other_state.write_metadata("name", "two", before="one")
        assert await state.read_metadata("name") == "two"
        assert await state.read_metadata("other") is None

    async def test_of_several_who_set_metadata_first_one_succeeds(self, states: Instances[StateStore]) -> None:
        stores = [await states.open() for _ in range(4)]
        won = await asyncio.gather(
            *(store.write_metadata("name", f"{n}", before=None) for n, store in enumerate(stores))
        )
        assert won.count(True) == 1
        assert await stores[0].read_metadata("name") == f"{won.index(True)}"

    async def test_metadata_is_no_record(self, state: StateStore) -> None:
        await state.write_metadata("name", "value", before=None)
        assert [upload async for upload in state.all()] == []

    async def test_ping_of_an_open_store_succeeds_and_leaves_no_record(self, state: StateStore) -> None:
        await within(state.ping())
        assert [upload async for upload in state.all()] == []

    async def test_the_clock_of_a_store_tells_the_time(self, state: StateStore) -> None:
        await state.refresh_clock()
        assert abs(state.clock.wall() - time.time()) < 30
