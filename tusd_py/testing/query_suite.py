"""The contract suite of questions of administrators (`tusd_py.contracts.queries`), for every state store."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import UploadFilter
from tusd_py.core.metadata import encode_metadata
from tusd_py.core.queries import ORDERS, Position, Share, UploadQuery, decode_cursor, encode_cursor, rank
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.testing.support import Instances, pytest, pytest_asyncio
from tusd_py.uploads.queries import RecordQueries


def upload(number: int, **changes: Any) -> Upload:
    """Return a record with a number in its id, created that many seconds after another moment."""
    return replace(Upload(f"id-{number:05}", created_at=1_700_000_000.5 + number, length=100), **changes)


def varied(count: int) -> list[Upload]:
    """Return records that differ in every field that a list can be ordered by, with many equal values."""
    choose = random.Random(17).choice
    return [
        upload(
            number,
            created_at=choose([1_700_000_000.0, 1_700_000_000.25, 1_700_000_001.0, 1_600_000_000.0]),
            status=choose(list(Status)),
            offset=choose([0, 1, 50, 1 << 40]),
            length=choose([None, 0, 100, 1 << 41]),
            owner=choose(["", "ann", "bob", "Ännchen ☃"]),
            concatenation=choose(list(UploadKind)),
            updated_at=choose([1_700_000_002.0, 1_700_000_003.0]),
            completed_at=choose([None, 1_700_000_005.0, 1_700_000_006.5]),
            expires_at=choose([None, 1_700_000_007.0, 1_700_000_008.5]),
            client=choose(["", "192.0.2.1", "2001:db8::1"]),
            metadata=choose([None, encode_metadata({"filename": choose(["a.txt", "B.txt", "☃"]), "type": "a/b"})]),
        )
        for number in range(count)
    ]


class QuerySuite:
    """The duties of a state store towards administrators, with the ability of queries or without.

    Subclass it and make the store, see `StateStoreSuite`::

        class TestFileState(QuerySuite):
            def make(self, place: Path) -> StateStore:
                return FileState(place / "records")
    """

    pytestmark = pytest.mark.asyncio

    def make(self, place: Path) -> StateStore:
        """Return a store that is not open yet. All stores of one place have the same records."""
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
    async def queries(self, states: Instances[StateStore], state: StateStore) -> RecordQueries:
        """The queries of the same records, in another process than `state`."""
        queries = RecordQueries(await states.open())
        await queries.prepare()
        return queries

    async def test_new_uploads_come_first(self, state: StateStore, queries: RecordQueries) -> None:
        for number in (3, 1, 2):
            await state.create(upload(number))
        assert ids((await queries.find(UploadQuery())).uploads) == ["id-00003", "id-00002", "id-00001"]
        page = await queries.find(UploadQuery(limit=2))
        assert ids(page.uploads) == ["id-00003", "id-00002"]
        assert page.next == Position(1_700_000_002.5, "id-00002")

    async def test_no_records_are_an_empty_page(self, queries: RecordQueries) -> None:
        for order in ORDERS:
            page = await queries.find(UploadQuery(order=order))
            assert (page.uploads, page.next) == ((), None)
        assert await everything(queries, UploadQuery(), "text") == []

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("order", ORDERS)
    async def test_pages_hold_every_record_once_in_their_order(
        self, state: StateStore, queries: RecordQueries, order: str, descending: bool
    ) -> None:
        records = varied(40)
        for record in records:
            await state.create(record)

        def place(record: Upload) -> tuple[bool, Any, str]:
            return rank(Position(ORDERS[order](record), record.id))

        expected = ids(sorted(records, key=place, reverse=descending))
        for limit in (1, 7, 39, 40, 100):
            query = UploadQuery(order=order, descending=descending, limit=limit)
            assert ids(await everything(queries, query)) == expected

    @pytest.mark.parametrize("order", ["created_at", "offset", "filename"])
    async def test_conditions_hold_together_in_every_order(
        self, state: StateStore, queries: RecordQueries, order: str
    ) -> None:
        records = varied(60)
        for record in records:
            await state.create(record)
        conditions = [
            *(UploadFilter(status=status) for status in Status),
            *(UploadFilter(owner=owner) for owner in ("", "ann", "nobody", "Ännchen ☃")),
            *(UploadFilter(status=status, owner="bob") for status in Status),
            UploadFilter(created_after=1_700_000_000.0),
            UploadFilter(created_before=1_700_000_000.25),
            UploadFilter(created_after=1_600_000_000.0, created_before=1_700_000_001.0, owner="ann"),
            UploadFilter(created_after=1_700_000_001.0, created_before=1_600_000_000.0),
        ]
        for condition in conditions:
            for descending in (False, True):
                query = UploadQuery(condition, order, descending, limit=3)
                found = await everything(queries, query)
                assert sorted(ids(found)) == ids(filter(condition.matches, records)), condition

    async def test_page_holds_the_records_as_they_are_now(self, state: StateStore, queries: RecordQueries) -> None:
        before = upload(1, owner="ann", client="192.0.2.1")
        await state.create(before)
        after = await state.update(before, replace(before, offset=100, status=Status.COMPLETE), 3)
        assert (await queries.find(UploadQuery(UploadFilter(status=Status.ACTIVE)))).uploads == ()
        for condition in (UploadFilter(), UploadFilter(owner="ann"), UploadFilter(status=Status.COMPLETE)):
            (found,) = (await queries.find(UploadQuery(condition))).uploads
            assert found == after
            assert found.updated_at == after.updated_at

    @pytest.mark.parametrize("order", ["created_at", "id", "owner"])
    async def test_records_that_come_and_go_between_pages_disturb_no_other(
        self, state: StateStore, queries: RecordQueries, order: str
    ) -> None:
        for number in range(1, 10):
            await state.create(upload(number, owner="ann"))
        query = UploadQuery(order=order, limit=3)
        page = await queries.find(query)
        assert ids(page.uploads) == ["id-00009", "id-00008", "id-00007"]
        await state.delete("id-00007", 1)  # where the page ended
        await state.delete("id-00005", 1)
        await state.create(upload(10, owner="ann"))  # on the page before
        changed = upload(4, owner="ann")
        await state.update(changed, replace(changed, offset=100, status=Status.COMPLETE), 1)
        found = await everything(queries, replace(query, after=page.next))
        assert ids(found) == ["id-00006", "id-00004", "id-00003", "id-00002", "id-00001"]
        assert found[1].is_complete

    async def test_id_that_is_used_again_is_listed_once_at_its_new_place(
        self, state: StateStore, queries: RecordQueries
    ) -> None:
        for number in (1, 2, 3):
            await state.create(upload(number, owner="ann"))
        await state.delete("id-00001", 1)
        await state.create(upload(1, created_at=1_700_000_100.0, owner="bob"))
        assert ids(await everything(queries, UploadQuery(limit=1))) == ["id-00001", "id-00003", "id-00002"]
        assert ids(await everything(queries, UploadQuery(UploadFilter(owner="ann")))) == ["id-00003", "id-00002"]
        assert ids(await everything(queries, UploadQuery(UploadFilter(owner="bob")))) == ["id-00001"]

    async def test_records_from_before_the_first_query_are_found(
        self, states: Instances[StateStore], state: StateStore
    ) -> None:
        for number in (1, 2):
            await state.create(upload(number, owner="ann", status=Status.ACTIVE))
        unprepared = RecordQueries(state)
        assert ids(await everything(unprepared, UploadQuery(limit=1))) == ["id-00002", "id-00001"]
        queries = RecordQueries(await states.open())
        await queries.prepare()
        await queries.prepare()
        await state.create(upload(3, owner="ann"))
        for condition in (UploadFilter(), UploadFilter(owner="ann"), UploadFilter(status=Status.ACTIVE)):
            query = UploadQuery(condition, limit=1)
            assert ids(await everything(queries, query)) == ["id-00003", "id-00002", "id-00001"]

    async def test_text_is_found_in_id_owner_and_metadata(self, state: StateStore, queries: RecordQueries) -> None:
        await state.create(upload(1, metadata=encode_metadata({"filename": "Übung.PDF"})))
        await state.create(upload(2, owner="auth0|Ada"))
        await state.create(upload(3, metadata=encode_metadata({"note": "two words"})))
        await state.create(upload(4, metadata="filename"))
        for order in ("created_at", "filename"):
            query = UploadQuery(order=order, limit=1)
            found = {text: ids(await everything(queries, query, text)) for text in ("übung", "ADA", "D-00003", "O W")}
            assert found == {"übung": ["id-00001"], "ADA": ["id-00002"], "D-00003": ["id-00003"], "O W": ["id-00003"]}
            assert await everything(queries, query, "%") == []
            assert ids(await everything(queries, query, "id-00004")) == ["id-00004"]
        bobs = UploadQuery(UploadFilter(owner="bob"))
        assert await everything(queries, bobs, "id-00002") == []

    async def test_text_is_searched_for_in_bounded_steps(self, state: StateStore, queries: RecordQueries) -> None:
        for number in range(30):
            await state.create(upload(number, owner="ann" if number % 2 else "bob"))
        page = await queries.find(UploadQuery(limit=4), "ANN")
        assert ids(page.uploads) == ["id-00029", "id-00027", "id-00025", "id-00023"]
        assert len(await everything(queries, UploadQuery(limit=4), "ann")) == 15

    async def test_totals_are_those_of_the_records(self, state: StateStore, queries: RecordQueries) -> None:
        records = varied(50)
        for record in records:
            await state.create(record)
        totals = (await queries.totals()).totals
        assert totals.by_status == shares(records, lambda record: record.status)
        assert totals.by_owner == shares(records, lambda record: record.owner)
        assert list(totals.by_owner.values()) == sorted(totals.by_owner.values(), key=lambda one: -one.bytes)
        active = [record.created_at for record in records if record.status is Status.ACTIVE]
        assert totals.oldest_active == min(active)

    async def test_totals_of_no_records_are_empty(self, queries: RecordQueries) -> None:
        totals = (await queries.totals()).totals
        assert (totals.by_status, totals.by_owner, totals.oldest_active) == ({}, {}, None)


def ids(records: Any) -> list[str]:
    """Return the ids of records."""
    return [record.id for record in records]


async def everything(queries: RecordQueries, query: UploadQuery, text: str = "") -> list[Upload]:
    """Return the uploads of all pages, each page asked for by the cursor of the one before."""
    found: list[Upload] = []
    while True:
        page = await queries.find(query, text)
        assert len(page.uploads) <= query.limit
        found += page.uploads
        if page.next is None:
            return found
        cursor = encode_cursor(query, page.next)
        query = replace(query, after=decode_cursor(cursor, query.order, descending=query.descending))


def shares(records: Sequence[Upload], name: Any) -> dict[Any, Share]:
    """Return the totals of records by a property of theirs."""
    found: dict[Any, Share] = {}
    for record in records:
        found[name(record)] = found.get(name(record), Share()) + Share(1, record.offset)
    return found
