"""Delivery of events to subscribers: outside the locks of uploads, in order for each upload, with time limits.

Async functions run in the event loop, plain ones each in a thread, since they may block. The delivery logs the
exceptions of a function. After `SUBSCRIBER_TIMEOUT` the delivery cancels an async function, and abandons a plain one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from tusd_py.asyncutil.futures import settle

logger = logging.getLogger("tusd_py.events")

SUBSCRIBER_TIMEOUT = 30.0  # seconds
MAX_THREADS = 16  # plain functions that run at the same time
MAX_HUNG = 64  # abandoned threads that still run; with so many of them no further plain function is called

AnySubscriber: TypeAlias = Callable[[Any], Awaitable[None] | None]

_queue_of_caller: contextvars.ContextVar[str | None] = contextvars.ContextVar("_queue_of_caller", default=None)


class Deliveries:
    """Queues of events, one for each key (an upload id), with one task for each queue that is not empty."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[Any, Sequence[AnySubscriber]]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._calls = SubscriberCalls()

    def add(self, key: str, event: Any, subscribers: Sequence[AnySubscriber]) -> None:
        """Queue an event for its subscribers."""
        self._queues.setdefault(key, deque()).append((event, subscribers))
        if key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._deliver(key))

    def last(self, key: str) -> Any:
        """Return the last event of a queue, or None if the queue is empty."""
        queue = self._queues.get(key)
        return queue[-1][0] if queue else None

    def replace_last(self, key: str, event: Any) -> None:
        """Replace the last event of a queue that is not empty."""
        queue = self._queues[key]
        queue[-1] = (event, queue[-1][1])

    def count(self, key: str) -> int:
        """Return the number of queued events."""
        return len(self._queues.get(key, ()))

    def is_delivering(self, key: str) -> bool:
        """Return whether the queue has events, or a subscriber is handling its last one."""
        return key in self._tasks

    async def delivered(self, key: str) -> None:
        """Wait until the queue is empty, `SUBSCRIBER_TIMEOUT` at most.

        Returns at once if the caller is a subscriber that handles an event of this queue.
        """
        task = self._tasks.get(key)
        if task is not None and _queue_of_caller.get() != key:
            await asyncio.wait((task,), timeout=SUBSCRIBER_TIMEOUT)

    async def close(self, timeout: float) -> None:
        """Wait until all queues are empty, `timeout` seconds at most; then cancel the deliveries and drop the rest."""
        deadline = time.monotonic() + timeout
        while self._tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._tasks.values(), timeout=left)
        if self._tasks:
            logger.error(
                "subscribers of %s uploads did not return before the end of the shutdown grace", len(self._tasks)
            )
        for task in self._tasks.values():
            task.cancel()
        self._queues.clear()
        self._tasks.clear()
        self._calls = SubscriberCalls()

    async def _deliver(self, key: str) -> None:
        queue = self._queues[key]
        _queue_of_caller.set(key)
        try:
            while queue:
                event, subscribers = queue.popleft()
                for subscriber in subscribers:
                    await self._call(subscriber, event)
        finally:
            if self._queues.get(key) is queue:
                del self._queues[key], self._tasks[key]

    async def _call(self, subscriber: AnySubscriber, event: Any) -> None:
        try:
            await self._calls.call(subscriber, event)
        except Exception:  # an exception of one subscriber must not keep the event from the next one
            logger.exception("a subscriber of %s failed", type(event).__name__)


class SubscriberCalls:
    """Calls of subscribers, with limits of time and threads."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_THREADS)
        self._hung = 0
        self._running: set[asyncio.Future[Any]] = set()

    async def call(self, subscriber: AnySubscriber, event: Any) -> None:
        """Call a subscriber and wait until it has ended.

        Raises:
            TimeoutError: the subscriber did not end within `SUBSCRIBER_TIMEOUT`, or too many threads are abandoned.
            Exception: any exception of the subscriber.
        """
        if _is_async(subscriber):
            outcome = subscriber(event)
        else:
            outcome = await self._call_in_thread(subscriber, event)
        if inspect.isawaitable(outcome):
            await self._wait_for(asyncio.ensure_future(_without_exit(outcome)), cancel=True)

    async def _call_in_thread(self, function: AnySubscriber, event: Any) -> Any:
        async with self._slots:
            if self._hung >= MAX_HUNG:
                raise TimeoutError(f"not called: {self._hung} earlier calls have not returned")
            loop = asyncio.get_running_loop()
            returned: asyncio.Future[Any] = loop.create_future()
            context = contextvars.copy_context()

            def run() -> None:
                value, error = None, None
                try:
                    value = context.run(function, event)
                except BaseException as caught:  # also SystemExit; `call` raises it as an Exception
                    error = _as_result(caught)
                with contextlib.suppress(RuntimeError):  # the loop has been closed: no task awaits the result
                    loop.call_soon_threadsafe(settle, returned, value, error)

            threading.Thread(target=run, name="tusd-py-subscriber", daemon=True).start()
            try:
                return await self._wait_for(returned, cancel=False)
            except TimeoutError:
                self._hung += 1
                returned.add_done_callback(self._returned_late)
                raise

    def _returned_late(self, returned: asyncio.Future[Any]) -> None:
        self._hung -= 1
        if not returned.cancelled():
            returned.exception()  # mark the exception as retrieved: no task awaits it

    async def _wait_for(self, outcome: asyncio.Future[Any], *, cancel: bool) -> Any:
        self._running.add(outcome)
        outcome.add_done_callback(self._running.discard)
        try:
            done, _ = await asyncio.wait((outcome,), timeout=SUBSCRIBER_TIMEOUT)
        except asyncio.CancelledError:
            if cancel:
                outcome.cancel()
            raise
        if not done:
            if cancel:
                outcome.cancel()  # without waiting until it has handled the cancellation
            raise TimeoutError(f"no end within {SUBSCRIBER_TIMEOUT:.0f} s")
        if outcome.cancelled():
            raise RuntimeError("the subscriber was cancelled")
        return outcome.result()


def _as_result(error: BaseException) -> Exception:
    """Return `error`, wrapped if it is one that a future cannot hold or that would end the event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the subscriber raised {error!r}")
    wrapped.__cause__ = error
    return wrapped


async def _without_exit(outcome: Awaitable[None]) -> None:
    """Await `outcome`; convert `SystemExit` into an ordinary error, since it would end the event loop."""
    try:
        await outcome
    except SystemExit as error:
        raise _as_result(error) from error


def _is_async(function: AnySubscriber) -> bool:
    """Return whether calling `function` returns an awaitable without blocking."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
