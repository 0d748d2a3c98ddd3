from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from tests.support.request_bodies import TIMEOUT, Arrived, Make, Wire, next_of, others_run
from tusd_py.core.errors import ClientDisconnected, UploadInterrupted
from tusd_py.transfer.budget import BufferPool, ByteBudget

# Bytes and the end of them.


async def test_bytes_in_order_and_then_the_end(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"one ")
    wire.send(b"")
    wire.send(b"two")
    wire.send(b"", more=False)
    assert [await next_of(body) for _ in range(4)] == [b"one ", b"", b"two", b""]
    assert body.ended
    assert body.bytes_received == 7
    assert [await next_of(body) for _ in range(3)] == [None, None, None]


async def test_a_body_in_one_message(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"all of it", more=False)
    assert await next_of(body) == b"all of it"
    assert await next_of(body) is None


async def test_messages_that_leave_out_what_is_the_default(make: Make) -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    body = make(receive=receive)
    assert await next_of(body) == b""
    assert await next_of(body) is None


async def test_a_disconnect_is_told_after_the_bytes_before_it(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"half")
    wire.disconnect()
    assert await next_of(body) == b"half"
    with pytest.raises(ClientDisconnected):
        await next_of(body)
    assert body.bytes_received == 4


async def test_waiting_for_the_disconnect(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"ignored", more=False)
    gone = asyncio.create_task(body.wait_for_disconnect())
    await others_run()
    assert not gone.done()
    wire.disconnect()
    await asyncio.wait_for(gone, TIMEOUT)


# Discarding.


async def test_discarding_reads_to_the_end(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    wire.send(b"either", more=False)
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)
    assert body.ended


async def test_discarding_ends_with_the_connection(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    wire.disconnect()
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)


async def test_discarding_takes_its_time_and_no_more(wire: Wire, make: Make) -> None:
    body = make()
    wire.send(b"not kept")
    await asyncio.wait_for(body.discard(0.05), TIMEOUT)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_discarding_after_an_interruption(wire: Wire, make: Make) -> None:
    body = make()
    body.interrupt(UploadInterrupted())
    wire.send(b"not kept", more=False)
    await asyncio.wait_for(body.discard(TIMEOUT), TIMEOUT)
    assert body.ended


async def test_a_cancelled_discard_is_cancelled(make: Make) -> None:
    task = asyncio.create_task(make().discard(TIMEOUT))
    await others_run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Blocks and trailers.


async def test_blocks_are_used_from_the_first_read_on(wire: Wire, make: Make) -> None:
    arrived, pool = Arrived(), BufferPool(ByteBudget(32 << 20))
    body = make(extension=arrived, pool=pool)
    started = [body.started]
    assert arrived.pools == []  # nothing is set aside for a request that is refused
    for data in (b"one", b"two"):
        wire.send(data)
        assert await next_of(body) == data
        started.append(body.started)
    assert started == [False, True, True]
    assert arrived.pools == [pool]


async def test_only_blocks_are_recycled(make: Make) -> None:
    pool = BufferPool(ByteBudget(8 << 20))
    body = make(pool=pool)
    block = pool.acquire()
    pool.detach(block)
    body.release([b"bytes", bytearray(b"of the parser"), memoryview(b"not a block"), memoryview(block)[:10]])
    assert pool.acquire() is block
    make().release([memoryview(block)])


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ([(b"upload-checksum", b" sha1 abc=\t")], "sha1 abc="),
        ([(b"other", b"x"), (b"upload-checksum", b"\xff")], "\xff"),
        ([(b"upload-checksum", b"a"), (b"upload-checksum", b"b")], None),
        ([(b"other", b"x")], None),
        ([], None),
    ],
)
async def test_a_field_after_the_body(make: Make, trailers: list[tuple[bytes, bytes]], expected: str | None) -> None:
    body = make(extension=Arrived(trailers=trailers))
    assert body.has_trailers
    assert body.trailer("upload-checksum") == expected


async def test_servers_without_trailers(make: Make) -> None:
    body = make()
    assert not body.has_trailers
    assert body.trailer("upload-checksum") is None
