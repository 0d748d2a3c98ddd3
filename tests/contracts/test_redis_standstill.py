"""Calls to Redis in a process that stands still for longer than they may take."""

from __future__ import annotations

import asyncio
import time

from tests.contracts.parts import within
from tests.contracts.test_shared_disk import UPLOAD
from tests.support.redis_hosts import Host
from tusd_py.backends.redis.connection import RETRY_DEADLINE


async def test_calls_during_a_standstill_of_the_event_loop_succeed_afterwards(host: Host) -> None:
    await host.state.create(UPLOAD)
    calls = [asyncio.create_task(host.state.get(UPLOAD.id)) for _ in range(10)]
    await asyncio.sleep(0)  # they are sent
    time.sleep(2 * RETRY_DEADLINE)  # noqa: ASYNC251 (as a machine that is paused or overloaded)
    assert await within(asyncio.gather(*calls)) == [UPLOAD] * 10
