"""The part of the state store suite about `StateStore.list`."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import UploadFilter
from tusd_py.core.upload import Status, Upload
from tusd_py.testing.support import pytest


def upload(number: int, **changes: object) -> Upload:
    """Return a record with a number in its id."""
    return replace(Upload(f"id-{number:05}", created_at=1000.0 + number, length=5), **changes)  # type: ignore[arg-type]


async def ids(state: StateStore, limit: int, condition: UploadFilter | None = None) -> list[str]:
    """Return the ids of all pages."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await state.list(after=after, limit=limit, condition=condition or UploadFilter())
        assert len(page.uploads) <= limit
        found += [one.id for one in page.uploads]
        after = page.after
    return found


class ListingTests:
    """The duties of a state store that lists its records in pages."""

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
    async def test_pages_hold_every_record_once_in_the_order_of_ids(self, state: StateStore, limit: int) -> None:
        for number in (3, 1, 6, 2, 5, 7, 4):
            await state.create(upload(number))
        assert await ids(state, limit) == [upload(number).id for number in range(1, 8)]

    async def test_an_empty_store_has_one_empty_page(self, state: StateStore) -> None:
        page = await state.list()
        assert (page.uploads, page.after) == ((), None)

    async def test_ids_with_every_letter_are_listed_in_the_order_of_their_bytes(self, state: StateStore) -> None:
        names = ["-a", "--", "0", "Z", "_", "a", "z-", "z_"]
        for name in reversed(names):
            await state.create(Upload(name, created_at=1.0))
        assert await ids(state, 3) == sorted(names)

    async def test_a_page_holds_the_records_as_they_are_now(self, state: StateStore) -> None:
        before = upload(1)
        await state.create(before)
        after = await state.update(before, before.at(3), 5)
        assert (await state.list()).uploads == (after,)

    async def test_filters_hold_together(self, state: StateStore) -> None:
        await state.create(upload(1, owner="ada"))
        await state.create(upload(2, owner="ada", status=Status.COMPLETE, offset=5))
        await state.create(upload(3, owner="bob", status=Status.COMPLETE, offset=5))
        await state.create(upload(4))
        assert await ids(state, 10, UploadFilter(owner="ada")) == ["id-00001", "id-00002"]
        assert await ids(state, 10, UploadFilter(owner="")) == ["id-00004"]
        assert await ids(state, 10, UploadFilter(status=Status.COMPLETE)) == ["id-00002", "id-00003"]
        assert await ids(state, 10, UploadFilter(status=Status.COMPLETE, owner="ada")) == ["id-00002"]
        assert await ids(state, 10, UploadFilter(created_after=1001.0, created_before=1004.0)) == [
            "id-00002",
            "id-00003",
        ]

    async def test_records_removed_and_created_between_pages_disturb_no_other(self, state: StateStore) -> None:
        for number in range(1, 9):
            await state.create(upload(number))
        page = await state.list(limit=3)
        assert page.after is not None
        await state.delete("id-00003", 1)  # the cursor itself
        await state.delete("id-00005", 1)
        await state.create(upload(9))
        await state.create(Upload("id-00000", created_at=1.0))  # before the cursor
        rest = await state.list(after=page.after, limit=100)
        assert [one.id for one in rest.uploads] == ["id-00004", "id-00006", "id-00007", "id-00008", "id-00009"]
        assert rest.after is None

    async def test_owners_survive_a_change_of_the_record(self, state: StateStore, other_state: StateStore) -> None:
        before = upload(1, owner="auth0|ada lovelace")
        await state.create(before)
        await state.update(before, before.at(3), 5)
        found = await other_state.get(before.id)
        assert found is not None
        assert found.owner == "auth0|ada lovelace"
