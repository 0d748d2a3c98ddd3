"""Threads for blocking calls: no call is forgotten, whenever the threads are closed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.support.timing import scaled
from tusd_py.asyncutil.threads import Threads
from tusd_py.backends.disk.receiving_threads import ReceivingThreads


class Room:
    """A limit on the threads that can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._start_or_refuse(thread))

    def _start_or_refuse(self, thread: threading.Thread) -> None:
        if not self.left:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        self._start(thread)


async def test_call_that_comes_while_the_threads_close_is_made() -> None:
    threads = Threads(2, "test")
    begun, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        goes_on.wait()

    first = threads.run(wait)
    await asyncio.to_thread(begun.wait)
    closing = asyncio.ensure_future(asyncio.to_thread(threads.close, 60.0))
    while not threads._closing:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    late = threads.run(lambda: "done")
    goes_on.set()

    async with asyncio.timeout(60.0):
        assert await closing
        assert await late == "done"
        await first


async def test_call_after_the_close_is_made_by_new_threads() -> None:
    threads = Threads(2, "test")
    await threads.run(lambda: None)
    assert await asyncio.to_thread(threads.close)

    assert await threads.run(lambda: "done") == "done"

    assert await asyncio.to_thread(threads.close)


async def test_threads_that_could_not_be_started_are_started_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads(2, "test")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            threads.run(lambda: None)

    async with asyncio.timeout(scaled(10)):
        assert await threads.run(lambda: "done") == "done"

    assert await asyncio.to_thread(threads.close)


async def test_a_thread_that_could_not_be_started_beside_others_is_started_with_a_later_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = Threads(2, "test")
    release = threading.Event()
    with monkeypatch.context() as patched:
        room = Room(patched, 1)
        first = threads.run(release.wait)
        room.left = 1
        async with asyncio.timeout(scaled(10)):
            assert await threads.run(lambda: "done") == "done"
    assert not first.done()
    release.set()
    await first

    assert await asyncio.to_thread(threads.close)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-")]


async def test_only_threads_that_run_are_spare_to_receive_in(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = ReceivingThreads(8)

    def is_possible() -> bool:
        return threads.is_possible

    assert is_possible()
    release = threading.Event()
    with monkeypatch.context() as patched:
        room = Room(patched, 1)
        first = threads.run(release.wait)
        assert not is_possible()
        release.set()
        await first
        assert is_possible()
        room.left = 10
        release.clear()
        calls = [threads.run(release.wait) for _ in range(7)]
        assert is_possible()
        calls.append(threads.run(release.wait))
        assert not is_possible()
        release.set()
        await asyncio.gather(*calls)

    assert await asyncio.to_thread(threads.close)
