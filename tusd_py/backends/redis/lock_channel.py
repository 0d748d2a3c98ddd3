"""Messages between the lockers of all processes, over Redis pub/sub.

Messages only save time: holders see the same requests when they renew a lease, and waiting requests try again after
`POLL_INTERVAL`, in case a message is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.lease_keeper import LeaseKeeper, cancel

logger = logging.getLogger("tusd_py.locks")

RECONNECT_PAUSE = 0.2  # seconds
KINDS = ("released", "release", "commit")  # of messages about locks
LISTEN_TIMEOUT = 5.0  # seconds


class LockChannel:
    """The receiver of messages for the holders of leases and for the requests that wait for one."""

    def __init__(self, connection: RedisConnection, channel: str, leases: LeaseKeeper) -> None:
        self._redis = connection
        self._channel = channel
        self._leases = leases
        self._waiters: dict[str, dict[asyncio.Event, None]] = {}  # by upload id, who waits longest first
        self._listener: asyncio.Task[None] | None = None
        self._observer: Callable[[str, str], object] | None = None
        self._reconnected: Callable[[], object] | None = None

    def observe(self, observer: Callable[[str, str], object], reconnected: Callable[[], object]) -> None:
        """Have messages of other kinds observed, from now on.

        Args:
            observer: is called with the kind and the rest of every such message; raises nothing.
            reconnected: is called after every new subscription: messages may have been missed.
        """
        self._observer, self._reconnected = observer, reconnected

    def unobserve(self) -> None:
        """Undo `observe`."""
        self._observer = self._reconnected = None

    async def open(self) -> None:
        """Subscribe; return when that is done, or after `LISTEN_TIMEOUT` while attempts continue."""
        subscribed = asyncio.Event()
        self._listener = asyncio.create_task(self._listen(subscribed))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_TIMEOUT):
                await subscribed.wait()

    async def close(self) -> None:
        """Stop listening."""
        await cancel(self._listener)
        self._listener = None

    @contextlib.contextmanager
    def released(self, upload_id: str) -> Iterator[asyncio.Event]:
        """Return an event that is set whenever the lease of an upload is released, or may have been."""
        event = asyncio.Event()
        waiters = self._waiters.setdefault(upload_id, {})
        waiters[event] = None
        try:
            yield event
        finally:
            del waiters[event]
            if not waiters:
                del self._waiters[upload_id]

    async def _listen(self, subscribed: asyncio.Event) -> None:
        """Receive messages, on a new connection whenever one breaks."""
        while True:
            subscriber = self._redis.subscriber()
            try:
                await subscriber.subscribe(self._channel)
                silent = False
                while True:
                    message = await subscriber.get_message(timeout=LISTEN_TIMEOUT)
                    if message is None:
                        if silent:
                            raise TimeoutError(f"no message for {LISTEN_TIMEOUT:.0f} s")
                        await subscriber.subscribe(self._channel)  # as a ping: Redis confirms it
                    elif message["type"] == "subscribe":
                        subscribed.set()
                        self._wake_all()  # a message may have been missed
                        if self._reconnected is not None and not silent:
                            self._reconnected()
                    else:
                        self._handle_message(str(message["data"]))
                    silent = message is None
            except Exception as error:  # of any cause; until the reconnection renewals and polling replace messages
                logger.debug("pub/sub connection to Redis lost: %s", error)
            finally:
                with contextlib.suppress(Exception):  # the connection is broken, or being closed
                    await subscriber.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(RECONNECT_PAUSE)

    def _handle_message(self, text: str) -> None:
        kind, _, rest = text.partition(" ")
        upload_id, _, lease_id = rest.partition(" ")
        lock = self._leases.find(lease_id)
        if kind == "released":
            for waiter in self._waiters.get(upload_id, ()):
                waiter.set()
        elif lock is not None and kind == "release":
            lock.request_release()
        elif lock is not None and kind == "commit":
            lock.holder.commit_requested()
        elif self._observer is not None and kind not in KINDS:
            self._observer(kind, rest)

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()
