"""The hub alone: changes that are late, lost or doubled end in the state of the record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from tests.support.timing import TIMEOUT
from tusd_py.core.clock import SystemClock
from tusd_py.core.errors import ServerShutdown, UploadNotFound
from tusd_py.core.listing import Page, UploadFilter
from tusd_py.core.progress import FINAL_KINDS, Change, ProgressKind, change_of
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    UploadCreated,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.progress import hub as module, place, reconciler, watched as watched_module, watched_uploads
from tusd_py.progress.hub import ProgressHub, TooManyListenersError
from tusd_py.progress.listener import Listener
from tusd_py.progress.messages import Message
from tusd_py.progress.watched import Watched
from tusd_py.testing import MemoryLocker

UPLOAD = Upload("a", 1.0, length=100)


async def anybody(upload: Upload) -> bool:
    return True


class Records:
    """The records, as many as there are."""

    def __init__(self, *uploads: Upload) -> None:
        self.uploads = {upload.id: upload for upload in uploads}
        self.events = EventBus()

    async def find(self, upload_id: str) -> Upload | None:
        return self.uploads.get(upload_id)

    async def get(self, upload_id: str) -> Upload:
        if upload_id not in self.uploads:
            raise UploadNotFound
        return self.uploads[upload_id]

    async def list(self, *, after: str, limit: int, condition: UploadFilter) -> Page:
        return Page(tuple(self.uploads.values()), None)

    def change(self, upload: Upload) -> Upload:
        self.uploads[upload.id] = upload
        return upload


class Followed:
    """A hub with one listener, and what that was told."""

    def __init__(self, records: Records, *, max_listeners: int = 10) -> None:
        self.records = records
        self.hub = ProgressHub(records.events, records.find, MemoryLocker(), SystemClock(), max_listeners=max_listeners)
        self.listener = Listener(("a",))

    async def follow(self, number: int | None = None) -> bool:
        self.listener = Listener(("a",))
        self.hub.add(self.listener, "sse", 3600)
        return await self.hub.watch(self.listener, "a", lambda: self.records.get("a"), number)

    async def follow_owner(self, owner: str | None = "ann") -> None:
        self.listener = Listener(None)
        self.hub.add(self.listener, "sse", 3600)
        await self.hub.watch_owner(self.listener, owner, anybody, self.records.list)

    async def next(self) -> list[Message]:
        async with asyncio.timeout(TIMEOUT):
            return list(await self.listener.next() or ())

    async def kinds(self) -> list[str]:
        return [message.kind for message in await self.next()]


@pytest.fixture
async def followed() -> AsyncIterator[Followed]:
    followed = Followed(Records(UPLOAD))
    assert await followed.follow()
    assert await followed.kinds() == ["snapshot"]
    yield followed
    followed.hub.close()


def at(offset: int, **fields: Any) -> Upload:
    return replace(UPLOAD, offset=offset, **fields)


async def test_hub_observes_nothing_while_nobody_listens() -> None:
    records = Records(UPLOAD)
    followed = Followed(records)
    assert not any(records.events._observers.values())
    await followed.follow()
    assert all(records.events._observers.values())
    followed.hub.close()
    assert not any(records.events._observers.values())


async def test_changes_of_other_uploads_are_not_told(followed: Followed) -> None:
    followed.records.events.publish(UploadProgressed(replace(UPLOAD, id="b", offset=5), 5))
    followed.records.events.publish(UploadProgressed(at(6), 6))
    (message,) = await followed.next()
    assert message.upload_id == "a"


async def test_many_commits_are_a_message_now_and_one_later(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_module, "MESSAGE_INTERVAL", 0.02)
    for offset in range(1, 50):
        followed.records.events.publish(UploadProgressed(at(offset), 1))
    offsets = [b'"offset":%d,' % offset for offset in (1, 49)]
    for expected in offsets:
        (message,) = await followed.next()
        assert expected in message.text


async def test_commit_that_moves_nothing_is_not_told(followed: Followed) -> None:
    followed.records.events.publish(UploadProgressed(at(0, token=1), 0))
    followed.records.events.publish(UploadProgressed(at(0, token=1, length=50), 0))
    (message,) = await followed.next()
    assert b'"length":50' in message.text


async def test_interrupted_append_is_resumed_by_the_next(followed: Followed) -> None:
    publish = followed.records.events.publish
    publish(AppendStarted(UPLOAD))
    publish(AppendEnded(at(4, token=1), interrupted=True))
    assert await followed.kinds() == ["interrupted"]
    publish(AppendStarted(at(4, token=1)))
    assert await followed.kinds() == ["resumed"]
    publish(UploadProgressed(at(8, token=2), 4))
    publish(AppendEnded(at(8, token=2)))
    publish(AppendStarted(at(8, token=2)))
    publish(UploadFinished(at(100, token=3, status=Status.COMPLETE)))
    assert await followed.kinds() == ["finished"]
    assert await followed.listener.next() is None


async def test_refused_upload_has_failed(followed: Followed) -> None:
    followed.records.events.publish(UploadTerminated(UPLOAD, code="ERR_TYPE_NOT_ALLOWED"))
    (message,) = await followed.next()
    assert message.kind == "failed"
    assert b'"status":"terminated"' in message.text
    assert b'"code":"ERR_TYPE_NOT_ALLOWED"' in message.text


async def test_state_of_the_record_is_told_if_messages_are_lost(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.records.change(at(40, token=3))
    followed.hub._reconciler.look_now()
    (message,) = await followed.next()
    assert (message.kind, b'"offset":40' in message.text) == ("progress", True)
    del followed.records.uploads["a"]
    followed.hub._reconciler.look_now()
    await asyncio.sleep(0)
    assert await followed.kinds() == ["terminated"]
    assert await followed.listener.next() is None


async def test_append_of_a_process_that_died_is_interrupted(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "SILENCE", 0.0)
    followed.records.events.publish(AppendStarted(UPLOAD))
    followed.hub._reconciler.look_now()
    assert await followed.kinds() == ["interrupted"]


async def test_id_that_is_used_again_ends_the_stream(followed: Followed) -> None:
    followed.records.events.publish(UploadProgressed(replace(UPLOAD, created_at=2.0, owner="b", offset=7), 7))
    (message,) = await followed.next()
    assert (message.kind, b'"offset":0' in message.text) == ("terminated", True)
    assert await followed.listener.next() is None


async def test_id_that_is_used_again_meanwhile_is_not_found() -> None:
    records = Records(UPLOAD)
    followed = Followed(records)
    followed.hub.add(followed.listener, "sse", 3600)

    async def read() -> Upload:
        records.events.publish(UploadProgressed(replace(UPLOAD, created_at=2.0, offset=7), 7))
        return UPLOAD

    with pytest.raises(UploadNotFound):
        await followed.hub.watch(followed.listener, "a", read, None)
    followed.hub.close()


async def test_client_that_has_seen_the_end_is_told_so(followed: Followed) -> None:
    followed.records.events.publish(UploadFinished(followed.records.change(at(100, status=Status.COMPLETE))))
    (end,) = await followed.next()
    assert end.number % 2
    assert not await followed.follow(end.number)
    assert await followed.follow(2)
    assert await followed.kinds() == ["snapshot"]


async def test_messages_that_were_missed_are_sent(followed: Followed) -> None:
    publish = followed.records.events.publish
    publish(UploadProgressed(followed.records.change(at(1)), 1))
    (seen,) = await followed.next()
    publish(AppendEnded(at(1), interrupted=True))
    publish(AppendStarted(at(1)))
    assert await followed.follow(seen.number)
    assert await followed.kinds() == ["interrupted", "resumed"]


async def test_stream_ends_after_its_time() -> None:
    followed = Followed(Records(UPLOAD))
    followed.hub.add(followed.listener, "sse", 0.01)
    await followed.hub.watch(followed.listener, "a", lambda: followed.records.get("a"), None)
    assert await followed.kinds() == ["snapshot"]
    assert await followed.listener.next() is None
    assert followed.listener.retry == 1000
    followed.hub.close()


async def test_drained_hub_ends_its_listeners_and_takes_no_more(followed: Followed) -> None:
    followed.hub.drain()
    assert await followed.listener.next() is None
    assert 1000 <= (followed.listener.retry or 0) <= 5000
    with pytest.raises(ServerShutdown):
        followed.hub.add(Listener(("a",)), "sse", 3600)
    followed.hub.remove(followed.listener)
    followed.hub.open()
    assert await followed.follow()


async def test_listener_that_does_not_take_the_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_WRITE_TIMEOUT", 0.0)
    followed = Followed(Records(UPLOAD))
    await followed.follow()
    given_up = asyncio.Event()
    followed.listener.give_up = given_up.set
    followed.hub.drain()
    async with asyncio.timeout(TIMEOUT):
        await given_up.wait()
    followed.hub.close()


async def test_hub_with_as_many_listeners_as_it_may_have_takes_no_more() -> None:
    followed = Followed(Records(UPLOAD), max_listeners=1)
    await followed.follow()
    with pytest.raises(TooManyListenersError):
        followed.hub.add(Listener(("a",)), "sse", 3600)
    followed.hub.remove(followed.listener)
    assert await followed.follow()
    followed.hub.close()


async def test_one_sender_has_a_part_of_the_places() -> None:
    hub = Followed(Records(), max_listeners=40).hub
    listeners = [Listener(("a",)) for _ in range(10)]
    for listener in listeners:
        hub.add(listener, "sse", 3600, "ann")
    with pytest.raises(TooManyListenersError):
        hub.add(Listener(("a",)), "sse", 3600, "ann")
    for sender in ("bob", "", *[""] * 20):
        hub.add(Listener(("a",)), "sse", 3600, sender)
    hub.remove(listeners[0])
    hub.add(listeners[0], "sse", 3600, "ann")
    for listener in listeners:
        hub.remove(listener)
    assert "ann" not in hub._senders
    hub.close()


async def test_one_sender_may_have_all_of_few_places() -> None:
    hub = Followed(Records(), max_listeners=module.MIN_SHARE).hub
    for _ in range(module.MIN_SHARE):
        hub.add(Listener(("a",)), "sse", 3600, "ann")
    hub.close()


async def test_hub_keeps_the_state_of_few_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_uploads, "MAX_KEPT", 2)
    records = Records(*(replace(UPLOAD, id=str(number)) for number in range(5)))
    followed = Followed(records)
    for upload_id in records.uploads:
        listener = Listener((upload_id,))
        followed.hub.add(listener, "sse", 3600)
        await followed.hub.watch(listener, upload_id, lambda upload_id=upload_id: records.get(upload_id), None)  # type: ignore[misc]
        followed.hub.remove(listener)
    assert list(followed.hub._watched._states) == ["3", "4"]
    followed.hub.close()


async def test_unknown_upload_leaves_nothing() -> None:
    followed = Followed(Records())
    followed.hub.add(followed.listener, "sse", 3600)
    with pytest.raises(UploadNotFound):
        await followed.hub.watch(followed.listener, "a", lambda: followed.records.get("a"), None)
    assert not followed.hub._watched
    followed.hub.close()


# All uploads of an owner.


def of_ann(upload_id: str, **fields: Any) -> Upload:
    return replace(UPLOAD, id=upload_id, owner="ann", **fields)


def ended(upload: Upload) -> UploadFinished:
    return UploadFinished(replace(upload, offset=100, status=Status.COMPLETE, token=upload.token + 1))


async def test_stream_of_an_owner_holds_no_uploads_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_uploads, "MAX_KEPT", 5)
    records = Records()
    followed = Followed(records)
    await followed.follow_owner()
    assert await followed.kinds() == []
    for number in range(50):
        upload = records.change(of_ann(str(number)))
        records.events.publish(UploadCreated(upload))
        assert await followed.kinds() == ["created"]
        records.events.publish(ended(upload))
        assert await followed.kinds() == ["finished"]
    assert len(followed.hub._watched) <= 6
    followed.hub.close()


async def test_hub_rests_after_the_uploads_of_an_owner_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_uploads, "KEPT_TIME", 0.0)
    records = Records(of_ann("a"))
    followed = Followed(records)
    await followed.follow_owner()
    assert await followed.kinds() == ["snapshot"]
    records.events.publish(ended(records.uploads["a"]))
    assert await followed.kinds() == ["finished"]
    followed.hub.remove(followed.listener)
    followed.hub._tick(0.0)
    assert not any(records.events._observers.values())
    followed.hub.close()


async def test_stream_of_many_uploads_makes_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FOLLOWED", 10)
    records = Records(*(of_ann(f"old-{number}") for number in range(12)))
    followed = Followed(records)
    await followed.follow_owner()
    assert await followed.kinds() == ["snapshot"] * 10
    for number in range(30):
        records.events.publish(UploadCreated(records.change(of_ann(f"new-{number}"))))
        assert await followed.kinds() == ["created"]
    assert not followed.listener.ended
    assert len(followed.hub._watched.listened()) <= 10
    followed.hub.close()


@pytest.mark.parametrize("kept", [0, 100])
async def test_upload_that_has_made_room_is_told_of_with_its_next_change(
    monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(module, "MAX_FOLLOWED", 2)
    monkeypatch.setattr(watched_uploads, "MAX_KEPT", kept)
    records = Records(of_ann("a"), of_ann("b"))
    followed = Followed(records)
    await followed.follow_owner()
    assert await followed.kinds() == ["snapshot"] * 2
    for upload_id in ("c", "d"):
        records.events.publish(UploadCreated(records.change(of_ann(upload_id, updated_at=time.time()))))
        assert await followed.kinds() == ["created"]
    records.events.publish(UploadProgressed(records.change(of_ann("a", offset=5, token=1)), 5))
    (message,) = await followed.next()
    assert (message.upload_id, message.kind) == ("a", "progress")
    records.events.publish(UploadTerminated(records.uploads.pop("b")))
    (message,) = await followed.next()
    assert (message.upload_id, message.kind) == ("b", "terminated")
    assert not followed.listener.ended
    followed.hub.close()


async def test_stream_of_many_uploads_lets_others_have_their_turn() -> None:
    records = Records(*(of_ann(str(number)) for number in range(256)))
    followed = Followed(records)
    several = Listener(records.uploads)
    followed.hub.add(several, "sse", 3600)
    for work in (followed.follow_owner(), followed.hub.watch_several(several, list(records.uploads), anybody)):
        task, turns = asyncio.create_task(work), 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 10
    followed.hub.close()


async def test_streams_that_begin_together_let_others_have_their_turn() -> None:
    finds = 0

    class Counted(Records):
        async def find(self, upload_id: str) -> Upload | None:
            nonlocal finds
            finds += 1
            return await super().find(upload_id)

    followed = Followed(Counted(*(of_ann(str(number)) for number in range(20))), max_listeners=100)
    tasks = [asyncio.create_task(followed.follow_owner()) for _ in range(50)]
    most = 0
    while not all(task.done() for task in tasks):
        before = finds
        await asyncio.sleep(0)
        most = max(most, finds - before)
    assert finds >= 20 * 50
    assert most <= 2 * module.JOINS_AT_ONCE
    followed.hub.close()


async def test_introductions_of_one_stream_leave_those_of_others_alone() -> None:
    records = Records()
    followed = Followed(records)
    asked = asyncio.Event()

    async def never(upload: Upload) -> bool:
        return await asked.wait()

    busy = Listener(None)
    followed.hub.add(busy, "sse", 3600)
    await followed.hub.watch_owner(busy, "bob", never, records.list)
    await followed.follow_owner()
    assert await followed.kinds() == []
    for number in range(2 * place.MAX_ASKING):
        upload = records.change(replace(UPLOAD, id=f"bob-{number}", owner="bob"))
        records.events.publish(UploadCreated(upload))
    records.events.publish(UploadCreated(records.change(of_ann("a"))))
    assert await followed.kinds() == ["created"]
    assert busy.ended
    assert not followed.listener.ended
    followed.hub.close()


async def test_listener_of_an_upload_that_has_ended_leaves_the_next_one_of_its_id_alone(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_uploads, "MAX_KEPT", 0)
    first = followed.listener
    followed.records.events.publish(UploadFinished(followed.records.change(at(100, status=Status.COMPLETE))))
    assert await followed.follow()
    followed.records.change(replace(UPLOAD, created_at=2.0))
    assert await followed.follow()
    followed.hub.remove(first)
    assert await followed.kinds() == ["snapshot"]
    followed.records.events.publish(UploadProgressed(replace(UPLOAD, created_at=2.0, offset=7, token=1), 7))
    assert await followed.kinds() == ["progress"]


# Any order, any loss.

KINDS = [ProgressKind.STARTED, ProgressKind.PROGRESS, ProgressKind.ENDED, ProgressKind.INTERRUPTED]


@strategies.composite
def histories(draw: strategies.DrawFn) -> tuple[list[Change], Upload, list[int]]:
    """Return the changes of an upload, its record after them, and which of them arrive in what order."""
    changes: list[Change] = []
    offset, token, time = 0, 0, 1.0
    for _ in range(draw(strategies.integers(1, 8))):
        token += draw(strategies.integers(0, 1))
        time += 1.0
        kind = draw(strategies.sampled_from(KINDS))
        if kind is ProgressKind.PROGRESS:
            offset += draw(strategies.integers(0, 9))
        changes.append(change_of(replace(UPLOAD, offset=offset, token=token), kind, time))
    end = draw(strategies.sampled_from([Status.ACTIVE, Status.COMPLETE, Status.FINISHING]))
    arriving = draw(strategies.lists(strategies.integers(0, len(changes) - 1)))
    return changes, replace(UPLOAD, offset=offset, token=token, status=end), arriving


@given(histories())
@settings(deadline=None)
def test_any_order_and_loss_of_changes_ends_in_the_state_of_the_record(
    history: tuple[list[Change], Upload, list[int]],
) -> None:
    changes, record, arriving = history

    async def follow() -> list[Message]:
        numbers = iter(range(0, 10_000, 2))
        watched = Watched(
            "a", lambda last: next(numbers) + last, lambda watched, listeners: None, lambda kind, count: None
        )
        listener = Listener(("a",))
        watched.listeners.add(listener)
        told: list[Message] = []
        watched.reconcile(UPLOAD, 1.0)
        for index in arriving:
            watched.take(changes[index])
            while listener._pending:
                told += await listener.next() or ()
        watched.reconcile(record, 100.0)
        assert watched.last is not None
        assert (watched.last.status, watched.last.offset) == (record.status, record.offset)
        watched.close()
        while listener._pending:
            told += await listener.next() or ()
        return told

    told = asyncio.run(follow())
    assert all(before.number < after.number for before, after in pairwise(told))
    assert not any(message.kind in FINAL_KINDS for message in told[:-1])
