"""The cost of a page of records (`StateStore.list`), and stores whose records were made before there were pages."""

from __future__ import annotations

import time
from pathlib import Path

from tests.contracts.parts import within
from tests.support.timing import scaled
from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import MAX_SCANNED, UploadFilter
from tusd_py.testing.listing_suite import ids, upload


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
