"""Pages of records (`StateStore.list`)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import within
from tests.support.timing import scaled
from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import MAX_SCANNED, UploadFilter
from tusd_py.core.upload import Status, Upload


def upload(number: int, **changes: object) -> Upload:
    return replace(Upload(f"id-{number:05}", created_at=1000.0 + number, length=5), **changes)  # type: ignore[arg-type]


async def ids(state: StateStore, limit: int, condition: UploadFilter | None = None) -> list[str]:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await state.list(after=after, limit=limit, condition=condition or UploadFilter())
        assert len(page.uploads) <= limit
        found += [one.id for one in page.uploads]
        after = page.after
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
async def test_pages_hold_every_record_once_in_the_order_of_ids(state: StateStore, limit: int) -> None:
    for number in (3, 1, 6, 2, 5, 7, 4):
        await state.create(upload(number))
    assert await ids(state, limit) == [upload(number).id for number in range(1, 8)]


async def test_an_empty_store_has_one_empty_page(state: StateStore) -> None:
    page = await state.list()
    assert (page.uploads, page.after) == ((), None)


async def test_ids_with_every_letter_are_listed_in_the_order_of_their_bytes(state: StateStore) -> None:
    names = ["-a", "--", "0", "Z", "_", "a", "z-", "z_"]
    for name in reversed(names):
        await state.create(Upload(name, created_at=1.0))
    assert await ids(state, 3) == sorted(names)


async def test_a_page_holds_the_records_as_they_are_now(state: StateStore) -> None:
    before = upload(1)
    await state.create(before)
    after = await state.update(before, before.at(3), 5)
    assert (await state.list()).uploads == (after,)


async def test_filters_hold_together(state: StateStore) -> None:
    await state.create(upload(1, owner="ada"))
    await state.create(upload(2, owner="ada", status=Status.COMPLETE, offset=5))
    await state.create(upload(3, owner="bob", status=Status.COMPLETE, offset=5))
    await state.create(upload(4))
    assert await ids(state, 10, UploadFilter(owner="ada")) == ["id-00001", "id-00002"]
    assert await ids(state, 10, UploadFilter(owner="")) == ["id-00004"]
    assert await ids(state, 10, UploadFilter(status=Status.COMPLETE)) == ["id-00002", "id-00003"]
    assert await ids(state, 10, UploadFilter(status=Status.COMPLETE, owner="ada")) == ["id-00002"]
    assert await ids(state, 10, UploadFilter(created_after=1001.0, created_before=1004.0)) == ["id-00002", "id-00003"]


async def test_records_removed_and_created_between_pages_disturb_no_other(state: StateStore) -> None:
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


async def test_owners_survive_a_change_of_the_record(state: StateStore, other_state: StateStore) -> None:
    before = upload(1, owner="auth0|ada lovelace")
    await state.create(before)
    await state.update(before, before.at(3), 5)
    found = await other_state.get(before.id)
    assert found is not None
    assert found.owner == "auth0|ada lovelace"


async def test_a_page_costs_the_same_however_many_records_there_are(state: StateStore) -> None:
    for number in range(3 * MAX_SCANNED):
        await state.create(upload(number))
    started = time.monotonic()
    page = await within(state.list(after="id-01500", limit=50))
    assert [one.id for one in page.uploads] == [upload(number).id for number in range(1501, 1551)]
    rare = await within(state.list(condition=UploadFilter(owner="nobody"), limit=50))
    assert rare.uploads == ()
    assert rare.after == upload(MAX_SCANNED - 1).id
    assert time.monotonic() - started < scaled(2.0)


async def test_records_of_a_store_that_knew_no_index_are_listed(state: StateStore, tmp_path: Path) -> None:
    for number in range(1, 4):
        await state.create(upload(number))
    redis = getattr(state, "_redis", None)
    if redis is not None:
        await redis.command("DEL", f"{tmp_path}:ids")
    assert await ids(state, 2) == [upload(number).id for number in range(1, 4)]
