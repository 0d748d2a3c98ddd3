"""Directed scenarios of the locks between the processes of one host: counters, ends, and errors of the kernel."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import POLL, Silent, small
from tests.simulation.filesystem import File, error
from tests.simulation.machine import Process
from tests.simulation.world import TOP
from tusd_py.backends.local_locks import byte_ranges, tokens
from tusd_py.backends.local_locks.locker import LocalLock, LocalLocker
from tusd_py.backends.local_locks.tokens import COUNTER_LOCK
from tusd_py.core.errors import CodedError, LockTimeout, StateUnavailable

NAMES = ("a", "b", "c")
LOCKS = Path(TOP, "other-locks")


class Asked(Silent):
    """A lock holder that counts what it is asked for."""

    def __init__(self) -> None:
        self.releases = self.commits = 0

    def release_requested(self) -> None:
        self.releases += 1

    def commit_requested(self) -> None:
        self.commits += 1


class Lockers:
    """Processes of one machine beside the server, with one locker each."""

    def __init__(self, world: DirectedWorld) -> None:
        self.world = world
        self.processes = [Process(world.machine, number) for number in range(3)]
        self.lockers = [LocalLocker(LOCKS) for _ in self.processes]

    async def open(self) -> None:
        for number, locker in enumerate(self.lockers):
            await self.on(number, locker.open())

    async def on(self, number: int, asked: Awaitable[Any]) -> Any:
        """Await something on behalf of a process."""
        return await self.begin(number, asked)

    def begin(self, number: int, asked: Awaitable[Any]) -> asyncio.Task[Any]:
        async def asking() -> Any:
            return await asked

        task: asyncio.Task[Any] = self.world.loop.create_task(asking(), context=self.processes[number].context.copy())
        return task

    def call(self, number: int, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.processes[number].context.run(function, *arguments)

    async def acquire(self, number: int, name: str, timeout: float = 0.0, holder: Silent | None = None) -> LocalLock:
        lock: LocalLock = await self.on(number, self.lockers[number].acquire(name, holder or Silent(), timeout))
        return lock

    async def refused(self, kind: type[CodedError], number: int, asked: Awaitable[object]) -> None:
        try:
            result = await self.on(number, asked)
        except CodedError as refusal:
            self.world.check(type(refusal) is kind, f"{refusal!r} instead of {kind.__name__}")
        else:
            self.world.complain(f"{result!r} instead of {kind.__name__}")

    async def close(self) -> None:
        for number, locker in enumerate(self.lockers):
            await self.on(number, locker.close())
            self.processes[number].end()
        for name in list(self.world.machine.files.mounted.entries):
            if name.startswith(LOCKS.name):
                self.world.machine.files.mounted.change((name, None))


@scenario()
async def tokens_rise_across_processes_and_reservations(world: DirectedWorld) -> None:
    lockers = Lockers(world)
    with small(tokens, RESERVATION_SIZE=8):
        await lockers.open()
        seen: list[int] = []
        for number in range(12):
            lock = await lockers.acquire(number % 3, "a")
            seen.append(lock.token)
            if number == 5:
                await lockers.on(2, lock.raise_token(lock.token + 100))
                world.check(lock.token > seen[-1] + 100, f"a token is raised to {lock.token}")
                seen.append(lock.token)
            await lockers.on(number % 3, lock.release())
        world.check(seen == sorted(set(seen)), f"the tokens are {seen}")
        await asyncio.sleep(1.0)
        file = world.machine.files.find(f"{LOCKS}")
        assert isinstance(file, File)
        durable = tokens.COUNTER_FORMAT.unpack(bytes(file.durable))
        world.check(durable[1] >= seen[-1], f"a power cut leaves the reservation {durable}, after {seen[-1]}")
        await lockers.close()


@scenario()
async def a_counter_that_another_process_uses_is_waited_for(world: DirectedWorld) -> None:
    lockers = Lockers(world)
    await lockers.open()
    lock = await lockers.acquire(0, "a")
    token = lock.token
    other = lockers.lockers[1]._counter_file
    world.check(lockers.call(1, byte_ranges.try_lock, other, COUNTER_LOCK), "the counter is locked")
    raising = lockers.begin(0, lock.raise_token(token + 10))
    await lockers.refused(LockTimeout, 0, lockers.lockers[0].acquire("b", Silent(), 0))
    await asyncio.sleep(1.0)
    world.check(not raising.done() and lock.token == token, "two processes take tokens at the same time")
    late = LocalLocker(LOCKS)
    began = world.loop.now
    await lockers.refused(StateUnavailable, 2, late.open())
    world.check(world.loop.now - began < 30.0, f"a start waits {world.loop.now - began:.0f} s for the counter")
    lockers.call(1, byte_ranges.unlock, other, COUNTER_LOCK)
    await raising
    world.check(lock.token > token + 10, f"the token is {lock.token}")
    await lockers.close()


@scenario()
async def requests_of_many_processes_reach_the_holder_that_they_concern(world: DirectedWorld) -> None:
    lockers = Lockers(world)
    await lockers.open()
    holders = [Asked() for _ in NAMES]
    locks = [await lockers.acquire(number % 2, NAMES[number], holder=holders[number]) for number in range(3)]
    await asyncio.sleep(POLL)
    waiting = [lockers.begin(2, lockers.lockers[2].acquire(name, Silent(), 60.0)) for name in NAMES]
    async with _commits(lockers, 2, "b"):
        await asyncio.sleep(2.0)
    world.check([holder.releases for holder in holders] == [1, 1, 1], f"{[h.releases for h in holders]} are asked")
    for number, lock in enumerate(locks):
        await lockers.on(number % 2, lock.release())
    taken = await asyncio.gather(*waiting)
    world.check(len({lock.token for lock in taken}) == 3, "two locks have one token")
    for lock in taken:
        await lockers.on(2, lock.release())
    await lockers.close()


class _commits:
    """A request of one process that the holder of a lock commits, for the context."""

    def __init__(self, lockers: Lockers, number: int, name: str) -> None:
        self._lockers, self._number = lockers, number
        self._asked = lockers.lockers[number].request_commit(name)

    async def __aenter__(self) -> Any:
        return await self._lockers.on(self._number, self._asked.__aenter__())

    async def __aexit__(self, *_: object) -> None:
        await self._lockers.on(self._number, self._asked.__aexit__(None, None, None))


@scenario()
async def the_end_of_a_locker_ends_those_who_wait(world: DirectedWorld) -> None:
    lockers = Lockers(world)
    await lockers.open()
    held = await lockers.acquire(0, "a")
    own = await lockers.acquire(1, "b")
    waiting = [lockers.begin(1, lockers.lockers[1].acquire("a", Silent(), 60.0)) for _ in range(2)]
    asking = _commits(lockers, 1, "a")
    await asking.__aenter__()
    await asyncio.sleep(1.0)
    waiting[0].cancel()
    await lockers.on(1, lockers.lockers[1].close())
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    world.check(isinstance(outcomes[1], StateUnavailable), f"who waits is told {outcomes}")
    await asking.__aexit__()
    await lockers.on(1, own.release())
    await lockers.refused(StateUnavailable, 1, own.raise_token(own.token + 1))
    await lockers.refused(StateUnavailable, 1, lockers.lockers[1].acquire("c", Silent(), 1.0))
    taken = await lockers.acquire(2, "b")  # the kernel has released it
    world.check(taken.token > own.token, f"a later lock has the token {taken.token}, after {own.token}")
    await lockers.on(0, held.release())
    await lockers.close()


@scenario()
async def errors_of_the_kernel_are_no_locks(world: DirectedWorld) -> None:
    lockers = Lockers(world)
    await lockers.open()
    kernel: Any = vars(byte_ranges)["fcntl"]

    def refuse(*_: object) -> None:
        raise error(errno.ENOLCK)

    locker = lockers.lockers[0]
    lock = await lockers.acquire(0, "a", holder=Asked())
    waiting = lockers.begin(1, lockers.lockers[1].acquire("a", Silent(), 60.0))
    await asyncio.sleep(1.0)
    with small(kernel, fcntl=refuse):
        await lockers.refused(StateUnavailable, 0, lock.raise_token(lock.token + 1))
        for call in (locker.another_has_settled, locker.settled, locker.leave):
            try:
                result = lockers.call(0, call)
            except StateUnavailable:
                continue
            world.complain(f"{call.__name__} is {result} without an answer of the kernel")
        await asyncio.sleep(1.0)  # polls fail meanwhile
    world.check(not waiting.done(), "an error of the kernel counts as a lock that is free")
    await lockers.on(0, lock.release())
    await lockers.on(1, (await waiting).release())
    await lockers.close()
