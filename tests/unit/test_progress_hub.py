"""The hub with listeners to one upload: what they are told, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.followed import UPLOAD, Followed, Records
from tests.support.timing import TIMEOUT
from tusd_py.core.errors import ServerShutdown, UploadNotFound
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import (
    AppendEnded,
    AppendStarted,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.progress import (
    hub as module,
    listeners,
    reconciler,
    watched as watched_module,
    watched_uploads,
)
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import TooManyListenersError


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
    assert "ann" not in hub._listeners._senders
    hub.close()


async def test_one_sender_may_have_all_of_few_places() -> None:
    hub = Followed(Records(), max_listeners=listeners.MIN_SHARE).hub
    for _ in range(listeners.MIN_SHARE):
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
