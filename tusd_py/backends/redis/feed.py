"""The change feed of processes that share a Redis: interests and changes by pub/sub.

Interests go over the channel of the locks, which every process hears already: `watch TOKEN JSON`, repeated while they
last, and `hello TOKEN` of a process that may have missed some, since it has started or its connection was lost. Changes
go to a channel of each process that wants some, to which it subscribes with its first interest. `locks TOKEN NAME` asks
all others which locks they hold; their answers go to a channel of that name below the one of the asking process.
Processes of an earlier version pass over all of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.lease_keeper import cancel
from tusd_py.backends.redis.lock_channel import LISTEN_TIMEOUT, RECONNECT_PAUSE, LockChannel
from tusd_py.backends.redis.process_answers import ask
from tusd_py.backends.redis.schema import Keys
from tusd_py.contracts.change_feed import FeedReceiver
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.lock_reports import Answers
from tusd_py.core.progress import NO_INTERESTS, Change, Interests
from tusd_py.core.progress_codec import decode_change, decode_interests, encode_change, encode_interests

logger = logging.getLogger("tusd_py.progress")

TELL_INTERVAL = 0.05  # seconds between two messages about the interests of this process
REPEAT_INTERVAL = 10.0  # seconds after which they are told again
FORGET_AFTER = 30.0  # seconds after which interests count for nothing that were not told again
KEPT_TIME = 60.0  # seconds that the channel stays subscribed without interests
MAX_IDS = 200  # uploads in one message; beyond it a process wants everything
MAX_SENDING = 1000  # changes on their way to Redis; more are dropped
SEND_TIMEOUT = 1.0  # seconds


class RedisFeed:
    """The feed of one process (`tusd_py.contracts.change_feed.ChangeFeed`)."""

    def __init__(self, connection: RedisConnection, prefix: str, messages: LockChannel) -> None:
        """Take the connection, which the locker has opened, and the channel of the locker."""
        self._redis = connection
        self._channel = Keys(prefix).channel
        self._changes = Keys(prefix).changes
        self._token = secrets.token_hex(8)
        self._messages = messages
        self._receiver: FeedReceiver | None = None
        self._interests = NO_INTERESTS
        self._others: dict[str, tuple[Interests, float]] = {}  # token -> interests, time at which they end
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._repeat_timer: asyncio.TimerHandle | None = None
        self._leave_timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._reports: Callable[[], str] = lambda: "[]"  # the locks of this process

    @property
    def works(self) -> bool:
        """Whether changes of other processes come; while Redis is away there are none."""
        return True

    @property
    def is_wanted(self) -> bool:
        """Whether another process wants any changes."""
        self._forget()
        return bool(self._others)

    def wants(self, upload_id: str, owner: str) -> bool:
        """Return whether another process wants the changes of this upload."""
        return bool(self._others) and any(interests.include(upload_id, owner) for interests, _ in self._others.values())

    def _forget(self) -> None:
        """Forget the interests of processes that have not told them for a while."""
        now = asyncio.get_running_loop().time()
        for token in [token for token, (_, end) in self._others.items() if end < now]:
            del self._others[token]

    async def open(self, receiver: FeedReceiver) -> None:
        """Ask the other processes what they want."""
        self._receiver = receiver
        self._messages.observe(self._told, self._greet)
        self._greet()

    def _greet(self) -> None:
        self._start(self._send(self._channel, f"hello {self._token}"))

    async def close(self) -> None:
        """End, and let the other processes forget this one; what is wanted later counts for nothing."""
        self._receiver = None
        self._messages.unobserve()
        for timer in (self._timer, self._repeat_timer, self._leave_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._repeat_timer = self._leave_timer = None
        if self._interests:
            self._interests = NO_INTERESTS
            with contextlib.suppress(StateUnavailable):
                await self._redis.command("PUBLISH", self._channel, self._watch_message(), timeout=SEND_TIMEOUT)
        await cancel(self._listener)
        self._listener = None
        for task in list(self._sending):
            await cancel(task)
        self._others.clear()

    # Publishing.

    def publish(self, change: Change) -> None:
        """Send a change to those that want it."""
        text = encode_change(change)
        for token, (interests, _) in self._others.items():
            if interests.include(change.id, change.owner):
                self._start(self._send(f"{self._changes}{token}", text))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._sending) >= MAX_SENDING:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, channel: str, text: str) -> None:
        with contextlib.suppress(StateUnavailable):  # a lost message is made up for by the comparison with the records
            await self._redis.command("PUBLISH", channel, text, timeout=SEND_TIMEOUT)

    def _told(self, kind: str, rest: str) -> None:
        """Take a message of another process on the channel of the locks."""
        token, _, text = rest.partition(" ")
        if token == self._token or self._receiver is None:
            return
        if kind == "hello" and self._interests:
            self._tell_soon()
        elif kind == "watch":
            interests = decode_interests(text)
            if interests:
                self._others[token] = interests, asyncio.get_running_loop().time() + FORGET_AFTER
            else:
                self._others.pop(token, None)
            self._receiver.interest_changed()
        elif kind == "locks":
            self._start(self._send(f"{self._changes}{token}:{text}", self._reports()))

    # Questions about locks (`tusd_py.contracts.process_questions.AsksProcesses`).

    def answer_with(self, reports: Callable[[], str]) -> None:
        """Answer questions of other processes with the text that a function returns."""
        self._reports = reports

    async def ask_for_locks(self, timeout: float) -> Answers:
        """Ask all other processes for the locks that they hold."""
        name = secrets.token_hex(8)

        async def send() -> int:
            others = await self._redis.listeners(self._channel) - 1
            question = f"locks {self._token} {name}"
            await self._redis.command("PUBLISH", self._channel, question, timeout=SEND_TIMEOUT)
            return others

        texts, asked = await ask(self._redis, f"{self._changes}{self._token}:{name}", send, timeout)
        return Answers(texts, max(0, asked - len(texts)))

    # Listening.

    def want(self, interests: Interests) -> None:
        """Tell the other processes what this one wants, soon and again and again."""
        if interests == self._interests or self._receiver is None:
            return
        self._interests = interests
        if self._leave_timer is not None:
            self._leave_timer.cancel()
            self._leave_timer = None
        if interests and self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        else:
            self._tell_soon()
        if not interests:
            self._leave_timer = asyncio.get_running_loop().call_later(KEPT_TIME, self._leave)

    def _leave(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    def _tell_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_INTERVAL, self._tell)

    def _tell(self) -> None:
        for timer in (self._timer, self._repeat_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._repeat_timer = None
        self._start(self._send(self._channel, self._watch_message()))
        if self._interests:
            self._repeat_timer = asyncio.get_running_loop().call_later(REPEAT_INTERVAL, self._tell)

    def _watch_message(self) -> str:
        return f"watch {self._token} {encode_interests(self._interests, MAX_IDS)}"

    async def _listen(self) -> None:
        """Receive changes, on a new connection whenever one breaks."""
        channel = f"{self._changes}{self._token}"
        while True:
            subscriber = self._redis.subscriber()
            try:
                await subscriber.subscribe(channel)
                silent = False
                while True:
                    message = await subscriber.get_message(timeout=LISTEN_TIMEOUT)
                    if message is None:
                        if silent:
                            raise TimeoutError(f"no message for {LISTEN_TIMEOUT:.0f} s")
                        await subscriber.subscribe(channel)  # as a ping: Redis confirms it
                    elif message["type"] == "subscribe":
                        self._subscribed(again=silent)
                    else:
                        self._received(str(message["data"]))
                    silent = message is None
            except Exception as error:  # of any cause; until the reconnection the records are compared
                logger.debug("pub/sub connection to Redis lost: %s", error)
            finally:
                with contextlib.suppress(Exception):  # the connection is broken, or being closed
                    await subscriber.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(RECONNECT_PAUSE)

    def _subscribed(self, *, again: bool) -> None:
        """Tell what is wanted, now that changes can come; those of before the subscription are lost."""
        if not again and self._receiver is not None:
            self._tell()
            self._receiver.lost_changes()

    def _received(self, text: str) -> None:
        change = decode_change(text)
        if change is not None and self._receiver is not None:
            self._receiver.changed(change)
