"""The connection of a process to Redis, Valkey, a Sentinel group or a Cluster, shared by its records and locks.

Every call has a timeout, and is tried again within it. Invariant: all commands and scripts are harmless to repeat.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from tusd_py.asyncutil.cancellation import CancellationGuard
from tusd_py.backends.redis.scripts import Script
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.core.clock import Clock, RemoteClock, SystemClock
from tusd_py.core.errors import StateFull, StateUnavailable

try:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.client import PubSub
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        NoPermissionError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
        ResponseError,
    )

    from tusd_py.backends.redis.pipeline import PipelinedConnection
except ImportError as error:  # the extra is not installed
    raise StateUnavailable("Redis needs the packages redis and hiredis: pip install 'redis[hiredis]'") from error

logger = logging.getLogger("tusd_py.state")
_warnings: set[tuple[str, str]] = set()  # URL and text of the warnings that this process has logged

T = TypeVar("T")

RETRY_DEADLINE = 1.5  # seconds for all attempts of a call, unless it has its own
ATTEMPT_TIMEOUT = 1.0  # seconds
# A client of several nodes has to detect, within one attempt, that one of them does not answer.
NODE_TIMEOUT = {"socket_timeout": ATTEMPT_TIMEOUT / 4, "socket_connect_timeout": ATTEMPT_TIMEOUT / 4}
PAUSES = (0.02, 0.05, 0.1, 0.25)  # seconds between attempts; the last one is repeated
MAX_CONNECTIONS = 64
OLDEST_VERSION = (7, 0)
# In the text of INFO, or in the dictionary that the client of a cluster returns.
VERSION = re.compile(r"redis_version'?: ?'?([0-9]+)\.([0-9]+)")
MEMORY_POLICY = re.compile(r"maxmemory_policy'?: ?'?([a-z-]+)")
MEMORY_LIMIT = re.compile(r"maxmemory'?: ?'?([0-9]+)")
SCAN_COUNT = 500
LATE = "LATE"  # the code of a refusal, see `deadline.lua`
# Errors of redis-py, which raises RedisClusterException for clusters, and of the network.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
# Errors that another attempt would repeat.
FINAL_ERRORS = (AuthenticationError, NoPermissionError, OutOfMemoryError)
AUTH_ERRORS = ("NOAUTH", "HELLO must be called with the client already authenticated")
TEMPORARY_ERRORS = (
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "BUSY",
    "UNBLOCKED",
    "FAILOVER",
)


class RedisConnection:
    """Calls to one Redis, each with a timeout and retries within it.

    URLs: `redis://`, `rediss://` (TLS) and `unix://` name a server, `redis+cluster://HOST:PORT,...` a cluster,
    `redis+sentinel://HOST:PORT,.../SERVICE/DB` the server that sentinels watch. `valkey` stands for `redis` anywhere.
    """

    def __init__(
        self, url: str, instrumentation: Instrumentation = NO_INSTRUMENTATION, clock: Clock | None = None
    ) -> None:
        self._url = url
        self.clock = RemoteClock(clock or SystemClock())  # the clock of Redis
        self._instrumentation = instrumentation
        self._client: Any = None
        self._clients: list[Any] = []  # every client that has to be closed
        self._pipeline: PipelinedConnection | None = None  # None for a cluster, whose client chooses the node of a call
        self._users = 0
        self._opening = asyncio.Lock()
        self.is_cluster = "+cluster" in urlsplit(url).scheme

    async def open(self) -> None:
        """Connect, unless another user of the connection has done so. Raises `StateUnavailable` with the reason."""
        async with self._opening:
            if self._users == 0:
                try:
                    self._client = self._make_client()
                    if not self.is_cluster:
                        self._pipeline = PipelinedConnection(
                            self._make_client(socket_timeout=None).connection_pool.make_connection
                        )
                    await self._check_version()
                    await self.ask_for_time()
                    await self.check_memory_policy(refuse=True)
                except (TypeError, ValueError) as error:  # of an option in the URL
                    await self._disconnect()
                    raise StateUnavailable(f"its URL cannot be used: {error}") from None
                except BaseException:
                    await self._disconnect()
                    raise
            self._users += 1

    async def close(self) -> None:
        """Disconnect when every user that opened the connection has closed it."""
        async with self._opening:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                await self._disconnect()

    async def _disconnect(self) -> None:
        self._client = None
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            await pipeline.close()
        while self._clients:
            await self._clients.pop().aclose()

    def _make_client(self, socket_timeout: float | None = ATTEMPT_TIMEOUT) -> Any:
        self._clients += _clients(self._url, socket_timeout)
        return self._clients[-1]

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Any], timeout: float = RETRY_DEADLINE
    ) -> Any:
        """Run a script and return its result. `timeout` is the time for all attempts, in seconds."""
        words = (len(keys), *keys, *arguments)
        if not script.has_deadline:
            return await self._call(script.name, lambda deadline: self._send_script(script, words, deadline), timeout)
        return await self._call(script.name, lambda deadline: self._run_before(script, words, deadline), timeout)

    async def _run_before(self, script: Script, words: Sequence[Any], deadline: float) -> Any:
        """Run a script that Redis refuses after the deadline, by its clock as this process knows it.

        A refusal tells the time: the clock may have jumped, or that of another node is needed.
        """
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            if now >= deadline:
                raise TimeoutError("too late")
            asked_at = self.clock.monotonic()
            last_moment = int((self.clock.earliest() + deadline - now) * 1e6)
            try:
                return await self._send_script(script, (*words, last_moment), deadline)
            except ResponseError as error:
                code, *time_there = str(error).split(" ")
                if code != LATE:
                    raise
                self.clock.synchronize(seconds_of(time_there), asked_at)

    async def _send_script(self, script: Script, words: Sequence[Any], deadline: float) -> Any:
        try:
            return await self._send(("EVALSHA", script.digest, *words), deadline)
        except NoScriptError:
            return await self._send(("EVAL", script.source, *words), deadline)

    async def ask_for_time(self) -> None:
        """Set the clock to that of Redis."""
        asked_at = self.clock.monotonic()
        answer = await self.command("TIME")
        times = answer.values() if isinstance(answer, dict) else [answer]  # of a cluster, those of all its nodes
        self.clock.synchronize(min(seconds_of(time) for time in times), asked_at)

    async def command(self, *words: Any, timeout: float = RETRY_DEADLINE) -> Any:
        """Run one command and return its reply."""
        return await self._call(str(words[0]).lower(), lambda deadline: self._send(words, deadline), timeout)

    async def commands(self, *commands: Sequence[Any], timeout: float = RETRY_DEADLINE) -> list[Any]:
        """Return the replies to several commands, run in this order, in one round trip unless Redis is a cluster."""
        pipeline = self._pipeline
        if pipeline is None:
            return [await self.command(*words, timeout=timeout) for words in commands]
        name = str(commands[0][0]).lower()
        return await self._call(name, lambda deadline: pipeline.calls(commands, deadline), timeout)

    def _send(self, words: Sequence[Any], deadline: float) -> Awaitable[Any]:
        if self._pipeline is not None:
            return self._pipeline.call(words, deadline)
        return _in_time(lambda: self._opened_client().execute_command(*words), deadline)

    def _opened_client(self) -> Any:
        """Return the client; raises `StateUnavailable` before the connection is opened and after it is closed."""
        if self._client is None:
            raise StateUnavailable
        return self._client

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Iterate over the keys that match; some may come twice."""
        guard = CancellationGuard()
        try:
            async for key in self._opened_client().scan_iter(match=pattern, count=SCAN_COUNT):
                guard.check()
                yield key
            guard.check()
        except FAILURES as error:
            raise _state_error(error) from error

    def subscriber(self) -> PubSub:
        """Return a new connection for pub/sub."""
        subscriber: PubSub = self._opened_client().pubsub()
        return subscriber

    async def listeners(self, channel: str) -> int:
        """Return the number of connections, of all processes, that have subscribed to a channel."""
        answer = await self._call(
            "pubsub",
            lambda deadline: _in_time(lambda: self._client.pubsub_numsub(channel), deadline),
            RETRY_DEADLINE,
        )
        return sum(int(count) for _, count in answer)

    async def _call(self, name: str, call: Callable[[float], Awaitable[T]], timeout: float) -> T:
        """Make attempts of a call, each given its deadline in the time of the event loop."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        pauses = iter(PAUSES)
        while True:
            self._opened_client()  # it may have been closed since the last attempt
            tried = time.monotonic()
            attempt_timeout = min(ATTEMPT_TIMEOUT, timeout)
            try:
                result = await call(loop.time() + attempt_timeout)
            except FAILURES as error:
                now = time.monotonic()
                if self._pipeline is not None and isinstance(error, ReadOnlyError):
                    self._pipeline.drop()  # the connection leads to a former master
                self._report_call(name, now - tried, succeeded=False)
                # A process that stood still, not Redis, let this time pass: the answer may lie in the socket unread.
                started += max(0.0, now - tried - attempt_timeout)
                pause = next(pauses, PAUSES[-1])
                if not _is_temporary(error) or now + pause - started >= timeout:
                    raise _state_error(error) from error
                await asyncio.sleep(pause)
            else:
                self._report_call(name, time.monotonic() - tried, succeeded=True)
                return result

    def _report_call(self, name: str, seconds: float, *, succeeded: bool) -> None:
        self._instrumentation.redis_call_finished(name, seconds, succeeded)

    async def check_memory_policy(self, *, refuse: bool) -> None:
        """Log a warning if Redis may evict keys; with `refuse`, raise `StateUnavailable` if it evicts records."""
        answer = await self._info("memory")
        policies = set(MEMORY_POLICY.findall(answer))
        limited = any(int(limit) for limit in MEMORY_LIMIT.findall(answer))
        evicting = sorted(policies - {"noeviction"})
        if not policies:
            self._warn_once("Redis does not tell its maxmemory-policy; anything but noeviction loses uploads")
        elif limited and any(policy.startswith("allkeys") for policy in evicting):
            reason = f"its maxmemory-policy {evicting[0]} evicts the records of uploads; set it to noeviction"
            if refuse:
                raise StateUnavailable(reason)
            logger.error("Redis loses uploads: %s", reason)
        elif evicting:
            lost = "the records of uploads" if evicting[0].startswith("allkeys") else "locks"
            self._warn_once(
                f"the maxmemory-policy of Redis is {evicting[0]}: with a limit of memory it evicts {lost};"
                " set it to noeviction"
            )

    def _warn_once(self, text: str) -> None:
        """Log a warning, unless this process has logged it: a server opens its connection more than once."""
        if (self._url, text) not in _warnings:
            _warnings.add((self._url, text))
            logger.warning("%s", text)

    async def _info(self, section: str) -> str:
        """Return the INFO text of every node; empty if the user is not permitted to ask."""
        try:
            if self.is_cluster:
                return str(
                    await self._call(
                        "info",
                        lambda deadline: _in_time(
                            lambda: self._client.info(section, target_nodes="primaries"), deadline
                        ),
                        RETRY_DEADLINE,
                    )
                )
            return str(await self.command("INFO", section))
        except StateUnavailable as error:
            if isinstance(error.__cause__, NoPermissionError):
                return ""
            raise

    async def _check_version(self) -> None:
        answer = await self._info("server")
        if not answer:
            return  # not permitted to ask: a script that the server cannot run will fail with a reason
        match = VERSION.search(answer)
        if match is None or (int(match[1]), int(match[2])) < OLDEST_VERSION:
            version = "unknown" if match is None else f"{match[1]}.{match[2]}"
            raise StateUnavailable(f"Redis 7.0 or later is needed, the version of this one is {version}")


async def _in_time(call: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Make a call of redis-py, which sends with `asyncio.wait_for`; `deadline` is a time of the event loop."""
    guard = CancellationGuard()
    async with asyncio.timeout_at(deadline):
        try:
            return await call()
        finally:
            guard.check()


def seconds_of(answer: Sequence[str]) -> float:
    """Return the seconds since the epoch from a reply to TIME."""
    seconds, microseconds = answer
    return int(seconds) + int(microseconds) / 1e6


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, FINAL_ERRORS):
        return False
    # Any other error reply is about the command, and would be the same for the next attempt.
    return type(error) is not ResponseError or str(error).startswith(TEMPORARY_ERRORS)


def _state_error(error: Exception) -> StateUnavailable:
    if isinstance(error, OutOfMemoryError):
        return StateFull()
    if isinstance(error, AuthenticationError) or str(error).startswith(AUTH_ERRORS):
        return StateUnavailable("it refuses the user or the password")
    return StateUnavailable()


def _clients(url: str, socket_timeout: float | None) -> list[Any]:
    """Return a client for this URL, after the clients that it uses itself."""
    parts = urlsplit(url)
    scheme = parts.scheme.replace("valkey", "redis")
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": ATTEMPT_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        "encoding_errors": "surrogateescape",
        "protocol": 3,
        "driver_info": None,  # redis-py would look its own version up in files for every connection
    }
    scheme, _, kind = scheme.partition("+")
    if not kind:
        plain = parts._replace(scheme=scheme).geturl()
        return [Redis.from_url(plain, max_connections=MAX_CONNECTIONS, **options)]
    options |= _credentials(parts)
    if scheme == "rediss":
        options["ssl"] = True
    if kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in _hosts(parts, 6379)]
        options |= NODE_TIMEOUT
        return [RedisCluster(startup_nodes=nodes, max_connections=MAX_CONNECTIONS, **options)]
    service, _, database = parts.path.strip("/").partition("/")
    sentinels: Any = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(parts, 26379),
        sentinel_kwargs={"retry": Retry(NoBackoff(), 0), "driver_info": None} | NODE_TIMEOUT,
        **options,
    )
    return [*sentinels.sentinels, sentinels.master_for(service or "mymaster", db=int(database or 0))]


def _credentials(parts: SplitResult) -> dict[str, str]:
    given = {"username": parts.username, "password": parts.password}
    return {name: unquote(value) for name, value in given.items() if value}


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    hosts = []
    for name in parts.netloc.rpartition("@")[2].split(","):
        host, colon, number = name.rpartition(":")
        hosts.append((host.strip("[]"), int(number)) if colon else (name, port))
    return hosts
