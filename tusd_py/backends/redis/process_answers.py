"""A question to all processes that share a Redis, and their answers, by pub/sub.

The question names a channel of its own, to which the answers come, so that those to an earlier one are not taken.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable

from tusd_py.asyncutil.cancellation import CancellationGuard
from tusd_py.backends.redis.connection import FAILURES, RedisConnection
from tusd_py.core.errors import StateUnavailable


async def ask(
    redis: RedisConnection, channel: str, send: Callable[[], Awaitable[int]], timeout: float
) -> tuple[list[str], int]:
    """Return the answers to a question, and the number of processes that were asked.

    Args:
        redis: the connection.
        channel: that of the answers.
        send: sends the question, and returns the number of processes that get it.
        timeout: seconds to wait for answers.

    Raises:
        StateUnavailable: Redis cannot be used now.
    """
    guard = CancellationGuard()
    subscriber = redis.subscriber()
    answers: list[str] = []
    asked: int | None = None
    try:
        await subscriber.subscribe(channel)
        deadline = time.monotonic() + timeout
        while (asked is None or len(answers) < asked) and (left := deadline - time.monotonic()) > 0:
            message = await subscriber.get_message(timeout=left)
            guard.check()
            if message is not None and message["type"] == "subscribe":
                asked = await send()
            elif message is not None:
                answers.append(str(message["data"]))
    except FAILURES as error:
        raise StateUnavailable from error
    finally:
        with contextlib.suppress(Exception):  # the connection is broken, or being closed
            await subscriber.aclose()  # type: ignore[no-untyped-call]
    if asked is None:
        raise StateUnavailable
    return answers, asked
