"""The contract suite of the outbox of a state store (`tusd_py.contracts.outbox`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from tusd_py.contracts.outbox import StateStoreWithOutbox
from tusd_py.core.errors import LockLost, UploadExists
from tusd_py.core.outbox import FAR_AHEAD, Delivery, DeliveryStatus, EventType, OutboxEvent, new_event_id
from tusd_py.core.upload import Status, Upload
from tusd_py.testing.state_helpers import UPLOAD
from tusd_py.testing.support import Instances, pytest, pytest_asyncio

NOW = 1_700_000_100.5
SINK, OTHER = "https://a.example/hook", "redis://b.example/0?stream=events"


def event(upload_id: str, sequence: int, *sinks: str, kind: EventType = EventType.CREATED) -> OutboxEvent:
    """Return a new event."""
    document = f'{{"id":"{upload_id}","text":"\\u00e9 \\udc80"}}'
    return OutboxEvent(new_event_id(NOW), upload_id, kind, sequence, NOW, document, sinks or (SINK,))


async def create(state: StateStoreWithOutbox, upload_id: str, *events: OutboxEvent) -> Upload:
    """Create an upload together with events."""
    upload = replace(UPLOAD, id=upload_id, event_sequence=len(events))
    await state.create(upload, events=events)
    return upload


async def due(state: StateStoreWithOutbox, sink: str = SINK, now: float = NOW, limit: int = 10) -> list[str]:
    """Return the ids of the events that are due."""
    return [delivery.event.id for delivery in await state.outbox.due_deliveries(sink, now, limit)]


class OutboxSuite:
    """The duties of a state store with an outbox.

    Subclass it and make the store, see `StateStoreSuite`::

        class TestFileState(OutboxSuite):
            def make(self, place: Path) -> StateStoreWithOutbox:
                return FileState(place / "records")
    """

    pytestmark = pytest.mark.asyncio
    outlives_process: ClassVar[bool] = True  # False for a store in the memory of one process

    def make(self, place: Path) -> StateStoreWithOutbox:
        """Return a store that is not open yet. All stores of one place have the same records."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def states(self, tmp_path: Path) -> AsyncIterator[Instances[StateStoreWithOutbox]]:
        """Several stores of one place."""
        instances = Instances(self.make, tmp_path)
        yield instances
        await instances.close_all()

    @pytest_asyncio.fixture
    async def state(self, states: Instances[StateStoreWithOutbox]) -> StateStoreWithOutbox:
        """One open store."""
        return await states.open()

    @pytest_asyncio.fixture
    async def other_state(
        self, states: Instances[StateStoreWithOutbox], state: StateStoreWithOutbox
    ) -> StateStoreWithOutbox:
        """The same records, seen from another process."""
        return await states.open()

    async def test_events_are_stored_with_a_new_record(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        created = event("a", 1, SINK, OTHER)
        upload = await create(state, "a", created)
        assert await other_state.get("a") == upload
        for sink in (SINK, OTHER):
            expected = Delivery(replace(created, sinks=(sink,)), sink)
            assert list(await other_state.outbox.due_deliveries(sink, NOW, 10)) == [expected]

    async def test_events_are_stored_with_a_change(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        upload = await create(state, "a")
        finished = event("a", 1, kind=EventType.FINISHED)
        after = replace(upload.at(10), length=10, status=Status.COMPLETE, event_sequence=1)
        stored = await state.update(upload, after, 3, events=[finished], durable=True)
        assert await other_state.get("a") == stored
        assert stored.event_sequence == 1
        assert await due(other_state) == [finished.id]

    async def test_a_record_that_exists_stores_no_events(self, state: StateStoreWithOutbox) -> None:
        await create(state, "a")
        with pytest.raises(UploadExists):
            await create(state, "a", event("a", 1))
        assert await due(state) == []
        assert await state.outbox.outbox_depth() == {}

    async def test_a_change_that_is_refused_stores_no_events(self, state: StateStoreWithOutbox) -> None:
        upload = await create(state, "a")
        await state.update(upload, upload.at(5), 9)
        for before, token in ((upload, 9), (upload.at(5), 8)):
            with pytest.raises(LockLost):
                await state.update(before, replace(before.at(10), event_sequence=1), token, events=[event("a", 1)])
        assert await due(state) == []

    async def test_events_of_an_upload_are_due_one_after_the_other(self, state: StateStoreWithOutbox) -> None:
        first, second = event("a", 1), event("a", 2, kind=EventType.FINISHED)
        upload = await create(state, "a", first)
        await state.update(upload, upload.at(10), 1, events=[second])
        elsewhere = event("b", 1)
        await create(state, "b", elsewhere)
        assert sorted(await due(state)) == sorted([first.id, elsewhere.id])
        assert len(await due(state, limit=1)) == 1
        await state.outbox.delivered(SINK, [first.id])
        assert sorted(await due(state)) == sorted([second.id, elsewhere.id])
        await state.outbox.delivered(SINK, [elsewhere.id, second.id])
        assert await due(state) == []

    async def test_sinks_get_events_independently(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        first, second = event("a", 1, SINK, OTHER), event("a", 2, SINK, OTHER)
        await create(state, "a", first, second)
        await state.outbox.delivered(SINK, [first.id])
        assert await due(other_state) == [second.id]
        assert await due(other_state, OTHER) == [first.id]
        await state.outbox.delivered(OTHER, [first.id])
        assert await state.outbox.find_event(first.id) == []
        assert [delivery.sink for delivery in await state.outbox.find_event(second.id)] == sorted([SINK, OTHER])

    async def test_a_postponed_event_holds_back_those_after_it(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        first, second = event("a", 1), event("a", 2)
        await create(state, "a", first, second)
        await state.outbox.postpone(SINK, first.id, 3, NOW + 60, "it answered 500")
        assert await due(other_state) == []
        assert await due(other_state, now=NOW + 59) == []
        [delivery] = await other_state.outbox.due_deliveries(SINK, NOW + 60, 10)
        assert delivery == Delivery(replace(first, sinks=(SINK,)), SINK, 3, NOW + 60, error="it answered 500")

    async def test_events_held_back_follow_in_order(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        first, second, third = (event("a", number) for number in (1, 2, 3))
        upload = await create(state, "a", first, second)
        await state.outbox.bury(SINK, first.id, 1, "it answered 410")
        await state.outbox.postpone(SINK, second.id, 1, NOW + 60, "it answered 500")
        await state.update(upload, upload.at(10), 1, events=[third])
        elsewhere = event("b", 1)
        await create(state, "b", elsewhere)
        assert await due(other_state) == [elsewhere.id]
        await other_state.outbox.retry([first.id])
        assert sorted(await due(state)) == sorted([first.id, elsewhere.id])
        fourth = event("a", 4)
        await state.update(upload.at(10), upload.at(20), 1, events=[fourth])
        for delivery in (first, second, third, fourth):
            assert sorted(await due(other_state, now=NOW + 60)) == sorted([delivery.id, elsewhere.id])
            await state.outbox.delivered(SINK, [delivery.id])
        assert await due(state) == [elsewhere.id]

    async def test_an_event_far_ahead_is_due_since_a_clock_went_back(self, state: StateStoreWithOutbox) -> None:
        first = event("a", 1)
        await create(state, "a", first)
        await state.outbox.postpone(SINK, first.id, 1, NOW + FAR_AHEAD + 1, "away")
        assert await due(state) == [first.id]
        assert await due(state, now=NOW + 2) == []

    async def test_a_dead_event_is_kept_and_lets_the_next_one_go_on(
        self, state: StateStoreWithOutbox, other_state: StateStoreWithOutbox
    ) -> None:
        first, second = event("a", 1), event("a", 2)
        await create(state, "a", first, second)
        await state.outbox.bury(SINK, first.id, 9, "it answered 410")
        assert await due(other_state) == [second.id]
        [dead] = await other_state.outbox.find_event(first.id)
        assert (dead.status, dead.attempts, dead.error) == (DeliveryStatus.DEAD, 9, "it answered 410")
        depth = (await other_state.outbox.outbox_depth())[SINK]
        assert (depth.waiting, depth.dead, depth.oldest) == (1, 1, NOW)

    @pytest.mark.parametrize("everything", [False, True])
    async def test_dead_and_postponed_events_are_retried(self, state: StateStoreWithOutbox, everything: bool) -> None:
        events = [event(upload_id, 1) for upload_id in "abc"]
        for one in events:
            await create(state, one.upload_id, one)
        await state.outbox.bury(SINK, events[0].id, 9, "refused")
        await state.outbox.postpone(SINK, events[1].id, 2, NOW + 60, "away")
        assert await due(state) == [events[2].id]
        ids = [one.id for one in events]
        assert sorted(await state.outbox.retry(None if everything else [*ids, "unknown"])) == sorted(ids)
        assert sorted(await due(state)) == sorted(ids)

    async def test_dropped_events_are_gone(self, state: StateStoreWithOutbox) -> None:
        first, second = event("a", 1, SINK, OTHER), event("a", 2, SINK, OTHER)
        await create(state, "a", first, second)
        assert list(await state.outbox.drop([first.id, "unknown"])) == [first.id]
        assert list(await state.outbox.drop([first.id])) == []
        assert await due(state) == await due(state, OTHER) == [second.id]

    async def test_events_outlive_their_upload(self, state: StateStoreWithOutbox) -> None:
        ended = event("a", 1, kind=EventType.TERMINATED)
        upload = await create(state, "a")
        upload = await state.update(upload, replace(upload, status=Status.TERMINATED), 1, events=[ended])
        await state.delete("a", 1)
        assert await due(state) == [ended.id]
        again = event("a", 1)
        await create(state, "a", again)
        assert await due(state) == [ended.id]
        await state.outbox.delivered(SINK, [ended.id])
        assert await due(state) == [again.id]
        await state.outbox.delivered(SINK, [again.id])
        assert await state.outbox.outbox_depth() == {}

    async def test_every_waiting_and_dead_event_is_listed_once(self, state: StateStoreWithOutbox) -> None:
        events = [event(f"upload-{number}", 1, SINK, OTHER) for number in range(7)]
        for one in events:
            await create(state, one.upload_id, one)
        await state.outbox.bury(SINK, events[3].id, 1, "refused")
        await state.outbox.delivered(OTHER, [events[5].id])
        found: list[tuple[str, str]] = []
        after = ""
        while True:
            page = await state.outbox.deliveries(after, 3)
            assert len(page.deliveries) <= 3
            found += [(delivery.event.id, delivery.sink) for delivery in page.deliveries]
            after = page.after
            if not after:
                break
        expected = {(one.id, sink) for one in events for sink in one.sinks} - {(events[5].id, OTHER)}
        assert len(found) == len(expected)
        assert set(found) == expected

    async def test_unknown_events_are_no_error(self, state: StateStoreWithOutbox) -> None:
        outbox = state.outbox
        await outbox.delivered(SINK, ["unknown"])
        await outbox.postpone(SINK, "unknown", 1, NOW, "away")
        await outbox.bury(SINK, "unknown", 1, "away")
        assert list(await outbox.find_event("unknown")) == []
        assert list(await outbox.retry(["unknown"])) == list(await outbox.drop(["unknown"])) == []
        page = await outbox.deliveries("", 10)
        assert (list(page.deliveries), page.after) == ([], "")

    async def test_events_survive_the_process(self, states: Instances[StateStoreWithOutbox]) -> None:
        if not self.outlives_process:
            pytest.skip("this store does not outlive its process")
        state = await states.open()
        events: Sequence[OutboxEvent] = [event("a", 1), event("a", 2)]
        await create(state, "a", *events)
        await state.close()
        state = await states.open()
        assert await due(state) == [events[0].id]
