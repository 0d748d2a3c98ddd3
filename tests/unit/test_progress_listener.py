"""One listener: what waits for it is bounded, and what waits is the newest."""

from __future__ import annotations

import asyncio

from tusd_py.core.progress import ProgressKind
from tusd_py.progress.listener import MAX_SLOTS, Listener
from tusd_py.progress.messages import Message


def message(kind: ProgressKind, number: int, upload_id: str = "a") -> Message:
    return Message(kind, upload_id, number, b"{}", b"data: {}\n\n")


async def taken(listener: Listener) -> list[int] | None:
    messages = await listener.next()
    return None if messages is None else [message.number for message in messages]


async def test_newest_message_takes_the_place_of_those_that_wait() -> None:
    listener = Listener(("a",))
    for number in range(2, 100, 2):
        listener.put(message(ProgressKind.PROGRESS, number))
    assert await taken(listener) == [98]


async def test_first_message_stays_beside_the_newest() -> None:
    listener = Listener(None)
    for number, kind in enumerate((ProgressKind.CREATED, ProgressKind.PROGRESS, ProgressKind.INTERRUPTED)):
        listener.put(message(kind, number))
    assert await taken(listener) == [0, 2]


async def test_messages_come_in_the_order_of_their_numbers() -> None:
    listener = Listener(None)
    listener.put(message(ProgressKind.PROGRESS, 2, "a"))
    listener.put(message(ProgressKind.PROGRESS, 4, "b"))
    listener.put(message(ProgressKind.PROGRESS, 6, "a"))
    assert await taken(listener) == [4, 6]


async def test_waiting_listener_is_woken_by_a_message() -> None:
    listener = Listener(("a",))
    waiting = asyncio.create_task(taken(listener))
    await asyncio.sleep(0)
    listener.put(message(ProgressKind.PROGRESS, 2))
    assert await waiting == [2]


async def test_last_message_is_followed_by_the_end() -> None:
    listener = Listener(("a", "b"))
    listener.put(message(ProgressKind.FINISHED, 3, "a"))
    assert await taken(listener) == [3]
    listener.put(message(ProgressKind.TERMINATED, 5, "b"))
    assert await taken(listener) == [5]
    assert await taken(listener) is None
    assert listener.retry is None


async def test_ping_is_a_batch_without_messages() -> None:
    listener = Listener(("a",))
    listener.ping()
    assert await taken(listener) == []


async def test_end_comes_after_the_messages_that_wait() -> None:
    listener = Listener(("a",))
    listener.put(message(ProgressKind.PROGRESS, 2))
    listener.end(3000)
    listener.put(message(ProgressKind.PROGRESS, 4))
    assert await taken(listener) == [2]
    assert await taken(listener) is None
    assert listener.retry == 3000


async def test_closed_listener_gets_nothing_more() -> None:
    listener = Listener(("a",))
    waiting = asyncio.create_task(taken(listener))
    await asyncio.sleep(0)
    listener.put(message(ProgressKind.PROGRESS, 2))
    listener.close()
    assert await waiting is None


async def test_listener_with_too_many_uploads_is_told_to_come_back() -> None:
    listener = Listener(None)
    for number in range(MAX_SLOTS + 1):
        listener.put(message(ProgressKind.PROGRESS, number, str(number)))
    assert await taken(listener) is None
    assert listener.retry == 1000
