"""The deadline of a connection, on an event loop whose clock the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
import uvloop

from tusd_py.uvicorn_server.deadline import Deadline


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self._when = when
        self.call = call
        self.is_cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.when() <= self.now]:
            self.timers.remove(timer)
            if not timer.is_cancelled:
                timer.call()

    @property
    def waiting(self) -> int:
        return sum(not timer.is_cancelled for timer in self.timers)


def deadline_on(loop: Loop) -> Deadline:
    return Deadline(cast(asyncio.AbstractEventLoop, loop))


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def calls() -> list[str]:
    return []


def test_deadline_that_was_set_calls_once_at_its_time(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    deadline.set(10, calls.append, "late")
    loop.advance(9.9)
    assert calls == []
    loop.advance(0.1)
    loop.advance(100)
    assert calls == ["late"]


def test_deadline_that_moves_away_keeps_its_timer_and_calls_at_the_new_time(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    for _ in range(100):
        deadline.set(10, calls.append, "late")
        loop.advance(1)
    assert loop.waiting == 1
    loop.advance(8.9)
    assert calls == []
    loop.advance(0.1)
    assert calls == ["late"]


def test_deadline_that_comes_nearer_calls_at_the_nearer_time_only(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    deadline.set(75, calls.append, "idle")
    deadline.set(2, calls.append, "refused")
    loop.advance(2)
    assert calls == ["refused"]
    loop.advance(100)
    assert calls == ["refused"]


def test_deadline_that_was_cleared_or_set_to_never_calls_nothing(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    deadline.set(10, calls.append, "late")
    deadline.clear()
    loop.advance(20)
    deadline.set(10, calls.append, "late")
    deadline.set(0, calls.append, "never")
    loop.advance(100)
    assert calls == []


def test_deadline_set_after_its_timer_fired_without_one_calls_at_its_time(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    deadline.set(10, calls.append, "first")
    deadline.clear()
    loop.advance(20)
    deadline.set(10, calls.append, "second")
    loop.advance(10)
    assert calls == ["second"]


def test_deadline_that_is_closed_leaves_no_timer(loop: Loop, calls: list[str]) -> None:
    deadline = deadline_on(loop)
    deadline.set(10, calls.append, "late")
    deadline.clear()
    deadline.close()
    assert loop.waiting == 0


def test_deadline_that_is_due_at_once_is_moved_by_the_next_one_under_uvloop() -> None:
    async def move() -> None:
        moved = asyncio.Event()
        deadline = Deadline(asyncio.get_running_loop())
        deadline.set(0.0001, pytest.fail, "the deadline was moved")
        deadline.set(0.00005, moved.set)
        async with asyncio.timeout(60):
            await moved.wait()
        deadline.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(move())
