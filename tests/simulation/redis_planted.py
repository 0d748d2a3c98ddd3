"""Defects of several hosts with Redis to plant in the server, as in `planted.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.planted import change
from tusd_py.backends.redis import connection, locker, pipeline, scripts
from tusd_py.core import clock
from tusd_py.core.errors import StateUnavailable

REDIS_PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    REDIS_PLANTS[function.__name__] = function
    return function


def edit(script: scripts.Script, old: str, new: str) -> None:
    """Change the text of a script, before anybody has asked for its digest."""
    assert old in script.text, f"{script.name} has no {old!r} any more"
    object.__setattr__(script, "text", script.text.replace(old, new))


CHANGING = (scripts.UPDATE, scripts.END)


# Fencing.


@plant
def update_without_fencing_and_comparison() -> None:
    """One of both alone does no harm: a stale holder is stopped by the other."""
    for script in CHANGING:
        edit(script, "if tonumber(latest_token or 0) > token or tonumber(record_token or 0) > token", "if false")
        edit(script, "if offset ~= arguments.offset or status ~= arguments.status", "if false")


@plant
def tokens_follow_the_clock_of_the_host() -> None:
    real = locker.RedisLocker._try_acquire

    async def try_acquire(self: Any, lock: Any, script: Any, *, request: bool) -> float:
        expires_in = await real(self, lock, script, request=request)
        lock.token = lock.token and int(locker.time.time() * 1e6)  # type: ignore[attr-defined]
        return expires_in

    change(locker.RedisLocker, "_try_acquire", try_acquire)


# Repetition of calls whose answer was lost.


@plant
def change_counted_as_made_after_a_lost_answer() -> None:
    real = connection.RedisConnection.run

    async def run(self: Any, script: Any, keys: Any, arguments: Any, timeout: float = 1.5) -> Any:
        try:
            return await real(self, script, keys, arguments, timeout)
        except StateUnavailable:
            if script is scripts.UPDATE:
                return 1
            raise

    change(connection.RedisConnection, "run", run)


@plant
def replies_of_cancelled_calls_given_to_others() -> None:
    real = pipeline._Connection.call

    def call(self: Any, words: Sequence[Any], deadline: float) -> asyncio.Future[Any]:
        def forget(reply: asyncio.Future[Any]) -> None:
            if reply.cancelled():
                with contextlib.suppress(ValueError):
                    self._replies.remove((reply, deadline))

        reply = real(self, words, deadline)
        reply.add_done_callback(forget)
        return reply

    change(pipeline._Connection, "call", call)


@plant
def silent_connection_kept() -> None:
    def check_deadlines(self: Any) -> None:
        self._timer = None
        now = self._loop.time()
        for reply, deadline in self._replies:
            if deadline <= now:
                pipeline._settle(reply, TimeoutError())
        later = [deadline for _, deadline in self._replies if deadline > now]
        if later:
            self._set_timer(min(later))

    change(pipeline._Connection, "_check_deadlines", check_deadlines)


@plant
def scripts_not_sent_again() -> None:
    async def run(self: Any, script: Any, keys: Any, arguments: Any, timeout: float = 1.5) -> Any:
        word = script.source if script.digest not in sent else script.digest
        name = "EVAL" if script.digest not in sent else "EVALSHA"
        sent.add(script.digest)
        words = (name, word, len(keys), *keys, *arguments)
        if script.has_deadline:
            words = (*words, int((self.clock.earliest() + 1) * 1e6))
        return await self._call(script.name, lambda deadline: self._send(words, deadline), timeout)

    sent: set[str] = set()
    change(connection.RedisConnection, "run", run)


@plant
def clock_of_the_host_instead_of_that_of_redis() -> None:
    def earliest(self: Any) -> float:  # which alone follows Redis, or nothing would be done
        return real(self) - self._error  # type: ignore[no-any-return]

    real = clock.RemoteClock.wall
    change(clock.RemoteClock, "earliest", earliest)
    change(clock.RemoteClock, "wall", lambda self: self._clock.wall())
