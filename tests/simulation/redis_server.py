"""A model of a Redis server in the simulated world, and of the connections to it.

Requests and replies of a connection keep their order and take random times. A request that has left its process is
carried out even if the process dies or gives up, unless its connection breaks first. redis-py is the real one: it reads
and writes through the streams of asyncio.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tests.simulation.loop import SimulatedLoop
from tests.simulation.machine import EPOCH, Machine, Process
from tests.simulation.redis_commands import Commands
from tests.simulation.redis_store import Store
from tests.simulation.redis_wire import Map, Push, RedisError, encode, take_command
from tests.simulation.system_calls import process_now

LATENCY = 0.0004  # seconds, at most, of nearly every message
FATES_OF_REQUESTS = {"lost request": 3, "late": 3, "hangs": 2}
FATES_OF_ANSWERS = {"lost answer": 5, "late answer": 3}


class Transport(asyncio.Transport):
    """The connection of a process to Redis: both ends of it."""

    def __init__(self, server: RedisServer, process: Process, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.server = server
        self.process = process
        self.machine = process.machine
        self.channels: set[bytes] = set()
        self.is_open = True  # in the kernel of the process
        self.is_served = True  # at Redis
        self.hangs = False  # nothing arrives any more, and nobody is told
        self.received = bytearray()
        self._protocol = protocol
        self._to_server = self._to_client = server.loop.now  # times at which the last messages arrive
        self._requests: deque[bytes | None] = deque()  # on their way; None: the end of the connection
        self._replies: deque[bytes] = deque()

    # The interface of asyncio.

    def write(self, data: Any) -> None:
        if not self.is_open:
            return
        delay = self.server.delay_of_request(self)
        self._send_to_server(bytes(data), delay)

    def _send_to_server(self, data: bytes | None, delay: float) -> None:
        self._requests.append(data)
        self._to_server = max(self._to_server, self.server.loop.now + delay)
        self.server.at(self._to_server, self._arrive)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return not self.is_open

    def close(self) -> None:
        if self.is_open and not self.server.loop.is_closed():
            self.is_open = False
            self._send_to_server(None, self.server.latency())
            self.server.loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    # The way to Redis and back.

    def _arrive(self) -> None:
        """Have the next message arrive, whichever timer came first: those of one time have no order."""
        data = self._requests.popleft()
        if not self.is_served or self.hangs:
            return
        if data is None:
            self.is_served = False
            self.server.forget(self)
        else:
            self.received += data
            self.server.work(self)

    def send(self, data: bytes, delay: float) -> None:
        """Send bytes from Redis."""
        self._replies.append(data)
        self._to_client = max(self._to_client, self.server.loop.now + delay)
        self.server.at(self._to_client, self._deliver)

    def _deliver(self) -> None:
        data = self._replies.popleft()
        if self.is_open and self.process.alive and not self.hangs:
            self._protocol.data_received(data)

    def reset(self) -> None:
        """Break the connection: Redis drops it, and the process is told."""
        self.is_served = False
        self.server.forget(self)
        self.server.at(self.server.loop.now + self.server.latency(), self._lost)

    def _lost(self) -> None:
        if self.is_open and self.process.alive and not self.hangs:
            self.is_open = False
            self._protocol.connection_lost(ConnectionResetError(104, "Connection reset by peer"))

    def died(self) -> None:
        """The process has died: its kernel closes the connection."""
        if self.is_open:
            self.is_open = False
            self._send_to_server(None, self.server.latency())


class RedisServer:
    """One Redis, which is replaced by its replica at a failover, and its network with all its faults."""

    def __init__(
        self, loop: SimulatedLoop, rng: Random, log: Callable[[str], None], count: Callable[[str], None]
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.log = log
        self.count = count
        self.store = Store(lambda: loop.now, EPOCH)
        self.commands = Commands(self.store, rng, self._publish)
        self.connections: list[Transport] = []
        self.lives = 1
        # Faults.
        self.down_until = 0.0  # nothing listens
        self.silent_until = 0.0  # packets are lost on the way, all of them
        self.stalled_until = 0.0  # nothing is carried out
        self.troubled_until = 0.0
        self.intensity = 0.0
        self.usual = 0.0  # rate of fates in quiet times
        self.partitioned_until: dict[str, float] = {}  # by the name of a machine
        self._stalled: list[Transport] = []

    def at(self, when: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back at a time, on behalf of no process."""
        self.loop.call_at(when, callback, *arguments, context=contextvars.Context())

    def latency(self) -> float:
        return self.rng.random() * (LATENCY if self.rng.random() < 0.95 else 0.02)

    # Connections.

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> tuple[Transport, asyncio.Protocol]:
        process = process_now()
        await asyncio.sleep(self.latency())
        while not self._can_be_reached(process.machine):  # noqa: ASYNC110 - faults end by themselves
            await asyncio.sleep(0.25)  # the caller gives up first, if need be
        if self.loop.now < self.down_until:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = factory()
        transport = Transport(self, process, protocol)
        self.connections.append(transport)
        process.on_death.append(transport.died)
        protocol.connection_made(transport)
        return transport, protocol

    def _can_be_reached(self, machine: Machine) -> bool:
        return self.loop.now >= max(self.silent_until, self.partitioned_until.get(machine.name, 0.0))

    def forget(self, connection: Transport) -> None:
        if connection in self.connections:
            self.connections.remove(connection)

    def delay_of_request(self, connection: Transport) -> float:
        """Draw the time that a request takes; it may never arrive."""
        delay = self.latency()
        reachable_at = max(self.silent_until, self.partitioned_until.get(connection.machine.name, 0.0))
        if self.loop.now < reachable_at:
            delay += reachable_at - self.loop.now + self.rng.random() * 0.2  # sent again until it arrives
        fate = self._fate(FATES_OF_REQUESTS)
        if fate == "lost request":
            connection.reset()
        elif fate == "hangs":
            connection.hangs = True
        elif fate == "late":
            delay += self.rng.choice((0.3, 1.2, 3.0, 9.0)) * self.rng.random()
        return delay

    def _fate(self, fates: Mapping[str, int]) -> str:
        rate = self.intensity if self.loop.now < self.troubled_until else self.usual
        if not rate or self.rng.random() >= rate:
            return ""
        fate = self.rng.choices(list(fates), list(fates.values()))[0]
        self.count(f"redis {fate}")
        return fate

    # Work.

    def work(self, connection: Transport) -> None:
        """Carry out what has arrived, unless this Redis stands still."""
        if self.loop.now < self.stalled_until:
            if not self._stalled:
                self.at(self.stalled_until, self._go_on)
            if connection not in self._stalled:
                self._stalled.append(connection)
            return
        while connection.is_served and (words := take_command(connection.received)) is not None:
            self._answer(connection, words)

    def _go_on(self) -> None:
        stalled, self._stalled = self._stalled, []
        self.rng.shuffle(stalled)
        for connection in stalled:
            self.work(connection)

    def _answer(self, connection: Transport, words: list[bytes]) -> None:
        try:
            reply = self._run(connection, words)
        except RedisError as error:
            reply = error
        fate, delay = self._fate(FATES_OF_ANSWERS), self.latency()
        if fate == "lost answer":
            connection.reset()
            return
        if fate == "late answer":
            delay += self.rng.choice((0.3, 1.2, 3.0)) * self.rng.random()
        if self.loop.now < (until := self.partitioned_until.get(connection.machine.name, 0.0)):
            delay += until - self.loop.now
        connection.send(encode(reply), delay)

    def _run(self, connection: Transport, words: list[bytes]) -> Any:
        name = words[0].upper()
        if name == b"HELLO":
            return Map({b"server": b"redis", b"version": b"7.4.0", b"proto": 3})
        if name == b"SUBSCRIBE":
            connection.channels.add(words[1])
            return Push([b"subscribe", words[1], len(connection.channels)])
        if name == b"UNSUBSCRIBE":
            connection.channels.clear()
            return Push([b"unsubscribe", None, 0])
        if name == b"PUBSUB":
            return [words[2], sum(words[2] in other.channels for other in self.connections)]
        return self.commands.run(words)

    def _publish(self, channel: bytes, message: bytes) -> int:
        receivers = [connection for connection in self.connections if channel in connection.channels]
        for connection in receivers:
            connection.send(encode(Push([b"message", channel, message])), self.latency())
        return len(receivers)

    # Faults.

    def break_connections(self, machine: Machine | None = None) -> None:
        """Reset the connections of a machine, or all of them."""
        for connection in list(self.connections):
            if machine is None or connection.machine is machine:
                connection.reset()

    def restart(self, seconds: float, lost: float) -> int:
        """End this Redis, and start it `seconds` later, without the changes of the last `lost` seconds."""
        self.break_connections()
        self.lives += 1
        self.commands.replication_id = str(self.lives)
        self.commands.scripts.sources.clear()
        self.down_until = max(self.down_until, self.loop.now + seconds)
        self.stalled_until = 0.0
        return self.store.lose(lost) if lost else 0

    def evict(self) -> bytes | None:
        """Remove one of the keys that would expire; return it."""
        keys = sorted(key for key, entry in self.store.entries.items() if entry.expires_at is not None)
        if not keys:
            return None
        key = self.rng.choice(keys)
        self.store.put(key, None)
        return key

    def calm_down(self) -> None:
        """End all faults of Redis and its network."""
        now = self.loop.now
        self.down_until = self.silent_until = self.troubled_until = min(now, self.down_until)
        self.stalled_until = min(now, self.stalled_until)
        self.partitioned_until.clear()
        self.usual = 0.0
        self.commands.is_full = False
        self._go_on()
