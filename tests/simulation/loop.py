"""An event loop on virtual time that runs its ready callbacks in a random order that a seed decides.

Every callback belongs to the process whose context it was scheduled in. Callbacks of a dead process are dropped, those
of a paused one are kept until it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import sys
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tests.simulation.machine import Process

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)
STEP = 2e-6  # seconds of virtual time that a callback takes
MAX_STEPS = 100_000  # callbacks of one run
DIGEST = (1 << 61) - 1  # the bits of a digest


class Stuck(Exception):
    """The simulated world does not come to its end."""


class Handle:
    """A callback that may be cancelled; lighter than `events.TimerHandle`, and interchangeable with it."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "time")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        time: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self.is_cancelled = False
        self.time = time

    def when(self) -> float:
        return self.time

    def cancel(self) -> None:
        self.is_cancelled = True
        self.args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled


class SimulatedFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, *, loop: SimulatedLoop) -> None:
        self.number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimulatedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, loop: SimulatedLoop, **options: Any) -> None:
        self.number = loop.next_number()
        context = options.get("context")
        self.process: Process | None = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class SimulatedLoop(asyncio.AbstractEventLoop):
    """See the module. `now` is the virtual time in seconds."""

    def __init__(self, rng: Random, started_at: float = 1000.0) -> None:
        self._random = rng.random
        self.now = started_at
        self.steps = 0
        self.start_thread: Callable[[Callable[[], None]], object] | None = None
        self.connect: Callable[[Callable[[], Any]], Coroutine[Any, Any, tuple[Any, Any]]] | None = None
        self.errors: list[dict[str, Any]] = []
        self.digest = 0  # of the order of everything that was run
        self._ready: list[Handle] = []
        self._first: list[Callable[[], object]] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._parked: list[tuple[Process, Handle]] = []
        self._number = 0
        self._closed = False
        self._retained: list[object] = []  # tasks and generators: nothing of a dead process is collected during a run

    def next_number(self) -> int:
        self._number += 1
        return self._number

    # Time and callbacks.

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_next(self, callback: Callable[[], object]) -> None:
        """Call back before everything else, on behalf of no process."""
        self._first.append(callback)

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, context, when)  # a cancelled one is passed over when its time comes
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    # Futures, tasks and threads.

    def create_future(self) -> asyncio.Future[Any]:
        return SimulatedFuture(loop=self)

    def create_task(self, coro: Any, **options: Any) -> Any:
        task = SimulatedTask(coro, loop=self, **options)
        self._retained.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        result = self.create_future()

        def work() -> None:
            try:
                value, error = func(*args), None
            except Exception as caught:  # raised again where the result is waited for
                value, error = None, caught
            self.call_soon(_settle, result, value, error)

        assert self.start_thread is not None
        self.start_thread(work)
        return result

    async def create_connection(self, protocol_factory: Callable[[], Any], *_: Any, **__: Any) -> tuple[Any, Any]:
        """Connect to the one server that a world may have on its network."""
        assert self.connect is not None
        return await self.connect(protocol_factory)

    async def create_unix_server(self, protocol_factory: Any, *_: Any, sock: Any = None, **__: Any) -> Any:
        """Serve the connections of a simulated socket."""
        return await sock.serve(protocol_factory)

    async def create_unix_connection(self, protocol_factory: Any, *_: Any, sock: Any = None, **__: Any) -> Any:
        """Take a simulated socket over that is connected."""
        return await sock.take_over(protocol_factory)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    # Running.

    def run(self, main: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run until `main` has ended, for at most `timeout` seconds of virtual time; raises `Stuck` after that."""
        end = self.now + timeout
        previous = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._retained.append, finalizer=self._close_generator)
        events._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._run_once()
                if self.now > end or self.steps > MAX_STEPS:
                    raise Stuck(f"no end after {self.steps} callbacks at {self.now:.3f} s")
            return task.result()  # type: ignore[no-any-return]
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*previous)

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.create_task(generator.aclose())

    def _run_once(self) -> None:
        if self._first:
            contextvars.Context().run(self._first.pop())
        ready, timers = self._ready, self._timers
        if not ready:
            self._wait()
        now = self.now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer.is_cancelled:
                ready.append(timer)
        if not ready:
            return
        count = len(ready)
        handle, index = ready.pop(), 0
        if count > 1 and (index := int(self._random() * count)) != count - 1:
            handle, ready[index] = ready[index], handle
        self.digest = (self.digest * 31 + index + count + int(now * 1e6)) & DIGEST
        if handle.is_cancelled:
            return
        process = handle.context.get(PROCESS)
        if process is not None and (process.paused or not process.alive):
            if process.alive:
                self._parked.append((process, handle))
            return
        self.steps += 1
        self.now = now + STEP
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # of a callback: reported at the end of the run
            self.errors.append({"message": f"in {handle.callback!r}", "exception": error})

    def _wait(self) -> None:
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            raise Stuck(f"nothing is left to run at {self.now:.3f} s")
        self.now = max(self.now, self._timers[0][0])

    def unpark(self, process: Process) -> None:
        """Let a process that was paused go on."""
        self._ready += [handle for owner, handle in self._parked if owner is process]
        self._parked = [(owner, handle) for owner, handle in self._parked if owner is not process]

    def tasks_of(self, process: Process) -> list[SimulatedTask]:
        """Return the tasks of a process that have not ended."""
        return [
            task
            for task in self._retained
            if isinstance(task, SimulatedTask) and not task.done() and task.process is process
        ]

    def dispose(self) -> None:
        """Let go of everything, without a word about what has not ended."""
        self._closed = True
        for task in self._retained:
            if isinstance(task, asyncio.Task):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._ready.clear()
        self._timers.clear()
        self._parked.clear()
        self._retained.clear()


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
