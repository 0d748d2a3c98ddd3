"""The contract suite of a state store that enforces quotas (`tusd_py.contracts.state.SupportsQuotas`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tusd_py.contracts.outbox import StateStoreWithOutbox
from tusd_py.contracts.state import StateStore, SupportsQuotas
from tusd_py.core.errors import LockLost, QuotaExceeded, UploadExists
from tusd_py.core.outbox import EventType, OutboxEvent, new_event_id
from tusd_py.core.quotas import MAX_COUNTED, Usage, counted_bytes, is_open
from tusd_py.core.upload import Status, Upload, UploadKind, UploadPart
from tusd_py.testing.support import Instances, pytest, pytest_asyncio

QUOTA = 100  # bytes
ENDS = (Status.TERMINATED, Status.EXPIRED)


class QuotaStore(SupportsQuotas, StateStore, Protocol):
    """A state store that enforces quotas."""


def upload(upload_id: str, length: int | None, **values: Any) -> Upload:
    """Return the record of an upload of ann, whose uploads may have `QUOTA` bytes together."""
    given: dict[str, Any] = {"owner": "ann", "quota_bytes": QUOTA, "deferred": length is None} | values
    return Upload(id=upload_id, created_at=1_700_000_000.125, length=length, **given)


def partial(upload_id: str, length: int, **values: Any) -> Upload:
    """Return the record of a complete partial upload."""
    given = {"offset": length, "status": Status.COMPLETE, "concatenation": UploadKind.PARTIAL} | values
    return upload(upload_id, length, **given)


def final(upload_id: str, length: int | None, *partial_ids: str, **values: Any) -> Upload:
    """Return the record of a final upload that is being made."""
    given = {"status": Status.FINISHING, "concatenation": UploadKind.FINAL, "partial_ids": partial_ids} | values
    return upload(upload_id, length, **(given | {"deferred": False}))


def completed(record: Upload, length: int) -> Upload:
    """Return the record of a complete upload."""
    return replace(record, length=length, offset=length, status=Status.COMPLETE)


async def assert_exact(state: QuotaStore, *owners: str) -> None:
    """Assert that what is counted of each owner is the sum over its records."""
    records = [record async for record in state.all()]
    for owner in owners or ("ann",):
        own = [record for record in records if record.owner == owner]
        expected = Usage(sum(map(counted_bytes, own)), sum(map(is_open, own)))
        assert await state.usage_of(owner) == expected, owner


class QuotaSuite:
    """The duties of a state store that enforces quotas.

    Subclass it and make the store, see `StateStoreSuite`::

        class TestFileState(QuotaSuite):
            def make(self, place: Path) -> QuotaStore:
                return FileState(place / "records")
    """

    pytestmark = pytest.mark.asyncio

    def make(self, place: Path) -> QuotaStore:
        """Return a store that is not open yet. All stores of one place have the same records."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def states(self, tmp_path: Path) -> AsyncIterator[Instances[QuotaStore]]:
        """Several stores of one place."""
        instances = Instances(self.make, tmp_path)
        yield instances
        await instances.close_all()

    @pytest_asyncio.fixture
    async def state(self, states: Instances[QuotaStore]) -> QuotaStore:
        """One open store."""
        return await states.open()

    @pytest_asyncio.fixture
    async def other_state(self, states: Instances[QuotaStore], state: QuotaStore) -> QuotaStore:
        """The same records, seen from another process."""
        return await states.open()

    async def test_ability_is_recognised(self, tmp_path: Path) -> None:
        state = self.make(tmp_path)
        assert isinstance(state, SupportsQuotas)
        assert state.enforces_quotas

    async def test_declared_lengths_fill_the_quota_to_the_last_byte(
        self, state: QuotaStore, other_state: QuotaStore
    ) -> None:
        await state.create(upload("a", 60))
        await other_state.create(upload("b", 40))
        with pytest.raises(QuotaExceeded):
            await state.create(upload("c", 1))
        assert await state.get("c") is None
        assert await state.usage_of("ann") == await other_state.usage_of("ann") == Usage(100, 2)

    async def test_empty_upload_fits_into_a_full_quota(self, state: QuotaStore) -> None:
        await state.create(upload("a", 100))
        await state.create(upload("b", 0, status=Status.FINISHING))
        await assert_exact(state)

    async def test_upload_of_unknown_length_needs_room_for_a_byte(self, state: QuotaStore) -> None:
        await state.create(upload("a", 99))
        await state.create(upload("b", None))
        await state.create(upload("c", 1))
        with pytest.raises(QuotaExceeded):
            await state.create(upload("d", None))
        await assert_exact(state)

    @pytest.mark.parametrize("stranger", ["bob", "", "b ann", "n ann", "ann ", "Ann", "é", "a\nb", "ann 1"])
    async def test_each_owner_has_a_quota_of_its_own(self, state: QuotaStore, stranger: str) -> None:
        await state.create(upload("a", 100))
        await state.create(upload("b", 100, owner=stranger))
        for number, owner in enumerate(("ann", stranger)):
            with pytest.raises(QuotaExceeded):
                await state.create(upload(f"more-{number}", 1, owner=owner))
        await state.delete("b", 1)
        assert await state.usage_of(stranger) == Usage()
        assert await state.usage_of("ann") == Usage(100, 1)

    async def test_refused_record_can_be_created_after_room_was_made(self, state: QuotaStore) -> None:
        await state.create(upload("a", 100))
        with pytest.raises(QuotaExceeded):
            await state.create(upload("b", 50))
        await state.delete("a", 1)
        await state.create(upload("b", 50))
        await assert_exact(state)

    async def test_existing_record_is_told_or_the_quota_but_nothing_changes(self, state: QuotaStore) -> None:
        await state.create(upload("a", 60))
        with pytest.raises((UploadExists, QuotaExceeded)):
            await state.create(upload("a", 60))
        with pytest.raises(UploadExists):
            await state.create(upload("a", 40))
        assert await state.usage_of("ann") == Usage(60, 1)

    async def test_records_without_a_quota_are_counted_but_never_refused(self, state: QuotaStore) -> None:
        await state.create(upload("a", 100))
        await state.create(upload("b", 1000, quota_bytes=None))
        assert await state.usage_of("ann") == Usage(1100, 2)

    async def test_records_from_before_any_quota_are_counted(
        self, states: Instances[QuotaStore], state: QuotaStore
    ) -> None:
        for number in range(450):
            await state.create(upload(f"{number}", 1, quota_bytes=None))
        await state.create(upload("other", 7, quota_bytes=None, owner="bob"))
        await state.create(upload("gone", 7, quota_bytes=None, status=Status.TERMINATED))
        other = await states.open()
        with pytest.raises(QuotaExceeded):
            await other.create(upload("new", 51, quota_bytes=500))
        await state.create(upload("new", 50, quota_bytes=500))
        await assert_exact(other, "ann", "bob", "")

    async def test_number_of_unfinished_uploads_is_limited(self, state: QuotaStore) -> None:
        limits = {"quota_bytes": None, "quota_uploads": 2}
        first = upload("a", 5, **limits)
        await state.create(first)
        await state.create(upload("b", None, **limits))
        with pytest.raises(QuotaExceeded):
            await state.create(upload("c", 0, status=Status.FINISHING, **limits))
        await state.create(final("final", 5, "x", **limits))
        await state.update(first, completed(first, 5), 1)
        await state.create(upload("c", 5, **limits))
        assert await state.usage_of("ann") == Usage(10, 2)

    @pytest.mark.parametrize("status", ENDS)
    async def test_ended_upload_releases_all(self, state: QuotaStore, status: Status) -> None:
        record = upload("a", 100, offset=30)
        await state.create(record)
        ended = await state.update(record, replace(record, status=status), 1)
        assert await state.usage_of("ann") == Usage()
        await state.create(upload("b", 100))
        await state.delete(ended.id, 2)
        assert await state.usage_of("ann") == Usage(100, 1)

    async def test_removed_record_releases_once(self, state: QuotaStore) -> None:
        await state.create(upload("a", 40, token=5))
        await state.create(upload("b", 40))
        with pytest.raises(LockLost):
            await state.delete("a", 4)
        await assert_exact(state)
        await state.delete("a", 5)
        await state.delete("a", 6)
        await state.delete("never", 6)
        assert await state.usage_of("ann") == Usage(40, 1)

    async def test_upload_of_unknown_length_grows_up_to_the_quota(self, state: QuotaStore) -> None:
        await state.create(upload("a", 60))
        before = upload("b", None)
        await state.create(before)
        full = await state.update(before, before.at(40), 1, parts=[UploadPart(1, 40, "etag")])
        with pytest.raises(QuotaExceeded):
            await state.update(full, full.at(41), 1, parts=[UploadPart(2, 41, "etag")])
        assert await state.get("b") == full
        assert len(await state.parts("b")) == 1
        assert await state.usage_of("ann") == Usage(100, 2)
        back = await state.update(full, full.at(10), 1)
        assert await state.usage_of("ann") == Usage(70, 2)
        await state.update(back, back.at(40), 1)
        await assert_exact(state)

    async def test_declared_length_is_reserved_or_refused(self, state: QuotaStore) -> None:
        await state.create(upload("a", 60))
        before = upload("b", None)
        await state.create(before)
        with pytest.raises(QuotaExceeded):
            await state.update(before, replace(before, length=41), 1)
        assert await state.get("b") == before
        await state.update(before, replace(before, length=40), 1)
        with pytest.raises(QuotaExceeded):
            await state.create(upload("c", 1))
        await assert_exact(state)

    async def test_bytes_of_known_length_count_once(self, state: QuotaStore) -> None:
        await state.create(upload("a", 60))
        record = upload("b", 40)
        await state.create(record)
        for offset in (10, 39, 40):
            record = await state.update(record, record.at(offset), 1)
            assert await state.usage_of("ann") == Usage(100, 2)
        await state.update(record, completed(record, 40), 1)
        assert await state.usage_of("ann") == Usage(100, 1)

    async def test_final_upload_takes_the_place_of_its_partial_ones(self, state: QuotaStore) -> None:
        await state.create(partial("a", 60))
        await state.create(partial("b", 40))
        record = final("f", 100, "a", "b", "unknown")
        await state.create(record)
        assert await state.usage_of("ann") == Usage(100, 0)
        done = await state.update(record, completed(record, 100), 1)
        assert await state.usage_of("ann") == Usage(100, 0)
        for upload_id in ("a", "b"):
            found = await state.get(upload_id)
            assert found is not None
            assert found.uncounted
        await state.delete("a", 1)
        assert await state.usage_of("ann") == Usage(100, 0)
        await state.delete("b", 1)
        await state.update(done, replace(done, status=Status.TERMINATED), 2)
        assert await state.usage_of("ann") == Usage(0, 0)

    @pytest.mark.parametrize("status", ENDS)
    async def test_partial_uploads_count_again_when_their_final_one_ends(
        self, state: QuotaStore, status: Status
    ) -> None:
        for upload_id, length, owner in (("a", 60, "ann"), ("b", 20, "ann"), ("foreign", 10, "bob")):
            await state.create(partial(upload_id, length, owner=owner))
        record = final("f", 90, "a", "b", "a", "foreign", "unknown")
        await state.create(record)
        done = await state.update(record, completed(record, 90), 1)
        await state.delete("b", 1)
        assert await state.usage_of("bob") == Usage(0, 0)
        ended = await state.update(done, replace(done, status=status), 2)
        found = await state.get("a")
        assert found is not None
        assert not found.uncounted
        await assert_exact(state, "ann", "bob")
        assert await state.usage_of("ann") == Usage(60, 0)
        with pytest.raises(QuotaExceeded):
            await state.create(upload("new", 41))
        await state.delete(ended.id, 2)
        await state.delete("a", 1)
        assert await state.usage_of("ann") == Usage(0, 0)

    async def test_partial_uploads_that_count_no_more_expire(self, state: QuotaStore) -> None:
        expiries = {"never": None, "early": 50.0, "late": 5000.0, "again": 5000.0}
        for upload_id, expires_at in expiries.items():
            await state.create(partial(upload_id, 10, expires_at=expires_at))
        first = final("f1", 10, "again", quota_bytes=None)
        await state.create(first)
        await state.update(first, completed(first, 10), 1)
        again = await state.get("again")
        assert again is not None
        assert again.expires_at == 5000.0
        second = final("f2", 50, *expiries, "never", "unknown", quota_bytes=None)
        await state.create(second)
        await state.update(second, completed(second, 50), 1, partials_until=100.0)
        found = {record.id: record.expires_at for record in await state.due(100.0, 10)}
        assert found == {"never": 100.0, "early": 50.0, "late": 100.0, "again": 100.0}

    async def test_partial_uploads_of_two_final_ones_count_again_when_one_ends(self, state: QuotaStore) -> None:
        await state.create(partial("a", 30))
        done = []
        for upload_id in ("f1", "f2"):
            record = final(upload_id, 30, "a")
            await state.create(record)
            done.append(await state.update(record, completed(record, 30), 1))
        await state.update(done[0], replace(done[0], status=Status.TERMINATED), 2)
        assert await state.usage_of("ann") == Usage(60, 0)
        await assert_exact(state)

    async def test_partial_upload_does_not_count_again_for_who_read_it_before(self, state: QuotaStore) -> None:
        before = partial("a", 60)
        await state.create(before)
        record = final("f", 60, "a")
        await state.create(record)
        await state.update(record, completed(record, 60), 1)
        await state.update(before, replace(before, expires_at=5.0), 1)
        assert await state.usage_of("ann") == Usage(60, 0)

    async def test_upload_that_is_kept_uncounted_releases_all(self, state: QuotaStore) -> None:
        record = upload("a", None, quota_uploads=1)
        await state.create(record)
        record = await state.update(record, record.at(60), 1)
        await state.update(record, replace(record, uncounted=True), 1)
        assert await state.usage_of("ann") == Usage(0, 0)
        await state.create(upload("b", 100, quota_uploads=1))
        await state.delete("a", 1)
        assert await state.usage_of("ann") == Usage(100, 1)

    async def test_upload_that_was_kept_uncounted_counts_once_it_is_complete(self, state: QuotaStore) -> None:
        record = upload("a", 60)
        await state.create(record)
        kept = await state.update(record, replace(record, uncounted=True), 1)
        assert await state.usage_of("ann") == Usage(0, 0)
        restored = await state.update(kept, replace(completed(kept, 60), uncounted=False), 1)
        assert not restored.uncounted
        assert await state.get("a") == restored
        assert await state.usage_of("ann") == Usage(60, 0)

    async def test_final_upload_grows_by_what_its_own_partial_ones_lack(self, state: QuotaStore) -> None:
        await state.create(partial("a", 30))
        await state.create(partial("foreign", 50, owner="bob"))
        for number, parts, length in ((1, ("a", "a", "a", "a"), 120), (2, ("a", "foreign", "foreign"), 130)):
            record = final(f"f{number}", None, *parts)
            await state.create(record)
            with pytest.raises(QuotaExceeded):
                await state.update(record, completed(record, length), 1)
            assert await state.get(record.id) == record
            await assert_exact(state, "ann", "bob")
        record = final("f3", None, "a", "a", "a")
        await state.create(record)
        await state.update(record, completed(record, 90), 1)
        assert await state.usage_of("ann") == Usage(90, 0)
        again = final("f4", 30, "a")
        await state.create(again)
        with pytest.raises(QuotaExceeded):
            await state.update(again, completed(again, 30), 1)

    async def test_final_upload_of_own_partial_ones_is_not_refused_over_the_quota(self, state: QuotaStore) -> None:
        await state.create(partial("a", 60))
        await state.create(upload("other", 100, quota_bytes=None))
        record = final("f", 60, "a")
        await state.create(record)
        await state.update(record, completed(record, 60), 1)
        assert await state.usage_of("ann") == Usage(160, 1)

    async def test_huge_lengths_are_counted_up_to_a_limit(self, state: QuotaStore) -> None:
        for number in range(3):
            await state.create(upload(f"{number}", (1 << 63) - 1, quota_bytes=None))
        assert await state.usage_of("ann") == Usage(3 * MAX_COUNTED, 3)
        await state.delete("0", 1)
        await assert_exact(state)
        with pytest.raises(QuotaExceeded):
            await state.create(upload("large", (1 << 63) - 1))

    async def test_lost_lock_and_wrong_offset_count_nothing(self, state: QuotaStore) -> None:
        record = upload("a", None, token=5)
        await state.create(record)
        for before, token in ((record, 4), (record.at(1), 6)):
            with pytest.raises(LockLost):
                await state.update(before, before.at(50), token)
        assert await state.usage_of("ann") == Usage(0, 1)

    async def test_copied_records_are_counted_and_not_refused(
        self, states: Instances[QuotaStore], state: QuotaStore
    ) -> None:
        copier = await states.open()
        copier.enforces_quotas = False
        await copier.create(upload("a", 80, quota_uploads=1))
        await copier.create(upload("b", 80, quota_uploads=1))
        assert await state.usage_of("ann") == Usage(160, 2)
        with pytest.raises(QuotaExceeded):
            await state.create(upload("c", 1))

    async def test_creations_at_the_same_time_never_exceed_a_quota(
        self, state: QuotaStore, other_state: QuotaStore
    ) -> None:
        async def create(number: int) -> bool:
            try:
                await (state, other_state)[number % 2].create(upload(f"{number}", 7, quota_uploads=10))
            except QuotaExceeded:
                return False
            return True

        created = await asyncio.gather(*map(create, range(50)))
        assert sum(created) == 10
        assert await state.usage_of("ann") == Usage(70, 10)
        await assert_exact(other_state)

    async def test_uploads_that_grow_at_the_same_time_never_exceed_a_quota(
        self, state: QuotaStore, other_state: QuotaStore
    ) -> None:
        records = [upload(f"{number}", None) for number in range(20)]
        for record in records:
            await state.create(record)

        async def grow(number: int, record: Upload) -> int:
            try:
                for offset in range(3, 30, 3):
                    record = await (state, other_state)[(number + offset) % 2].update(record, record.at(offset), 1)
            except QuotaExceeded:
                pass
            return record.offset

        grown = await asyncio.gather(*(grow(number, record) for number, record in enumerate(records)))
        assert sum(grown) == 99
        await assert_exact(state)

    async def test_quota_holds_for_changes_with_events(self, state: QuotaStore) -> None:
        if not hasattr(state, "outbox"):
            pytest.skip("this store keeps no events")
        store: StateStoreWithOutbox = state  # type: ignore[assignment]

        def event(upload_id: str) -> list[OutboxEvent]:
            event_id = new_event_id(1_700_000_100.5)
            return [OutboxEvent(event_id, upload_id, EventType.CREATED, 1, 1_700_000_100.5, "{}", ("sink",))]

        await store.create(upload("a", 60), events=event("a"))
        with pytest.raises(QuotaExceeded):
            await store.create(upload("b", 41), events=event("b"))
        growing = upload("c", None)
        await store.create(growing, events=event("c"))
        with pytest.raises(QuotaExceeded):
            await store.update(growing, growing.at(41), 1, events=event("c"))
        await store.update(growing, growing.at(40), 1, events=event("c"))
        assert await state.usage_of("ann") == Usage(100, 2)
        due = await store.outbox.due_deliveries("sink", 1_700_000_200.0, 10)
        assert sorted(delivery.event.upload_id for delivery in due) == ["a", "c"]
