"""Messages, clocks and waits for the tests of a request body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.types import Message

from tests.support.timing import scaled
from tusd_py.contracts.storage import Buffer
from tusd_py.http.body import RequestBody
from tusd_py.transfer.budget import LendsBuffers

Make = Callable[..., RequestBody]
TIMEOUT = scaled(30.0)  # seconds for anything that has to happen


class Wire:
    """The messages of a request that have arrived, as a server hands it over."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()

    def send(self, data: bytes, *, more: bool = True) -> None:
        self._messages.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def disconnect(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self._messages.get()


class Arrived:
    """The body extension of the own server (`BodyExtension`)."""

    def __init__(self, data: bytes = b"", trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.last_arrival = 0.0
        self.trailers = list(trailers)
        self.pools: list[LendsBuffers] = []
        self.whole = None
        self._data = data

    def read_buffered(self) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None: ...

    def use_buffer_pool(self, pool: LendsBuffers) -> None:
        self.pools.append(pool)

    def limit_send_buffer(self) -> None: ...

    def reset_connection(self) -> None: ...


class Clock:
    """A replacement for the module `time`, whose time passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.look = asyncio.Event()  # set when the code under test has read the time

    def monotonic(self) -> float:
        self.look.set()
        return self.now


async def next_of(body: RequestBody) -> Buffer | None:
    async with asyncio.timeout(TIMEOUT):
        return await body.read()


async def waiting(body: RequestBody) -> asyncio.Task[Buffer | None]:
    """Return a task that waits for the next bytes."""
    task = asyncio.create_task(body.read())
    await others_run()
    assert not task.done()
    return task


async def others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
