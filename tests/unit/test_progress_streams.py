"""The streams of several uploads: which uploads they follow, and that none holds others up."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.support.followed import UPLOAD, Followed, Records, anybody
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import (
    UploadCreated,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)
from tusd_py.progress import (
    place,
    streams,
    watched_uploads,
)
from tusd_py.progress.listener import Listener


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
    monkeypatch.setattr(streams, "MAX_FOLLOWED", 10)
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
    monkeypatch.setattr(streams, "MAX_FOLLOWED", 2)
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
    assert most <= 2 * streams.JOINS_AT_ONCE
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
