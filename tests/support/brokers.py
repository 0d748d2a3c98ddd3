"""Message brokers in processes of their own, with what the sinks of events need: a stream, an exchange, a topic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aio_pika
import nats

from tests.support.redis_server import RedisServer, free_port
from tests.support.timing import scaled, wait_until

START_TIMEOUT = scaled(60.0)  # seconds
PATTERN = "tus.upload.*"
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the script in PATH, which changes the user


class Broker:
    """A broker; use as a context manager. Acknowledged messages survive `kill`."""

    url: str  # for --events-to

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def received(self) -> list[dict[str, Any]]:
        """Return the events that it has, in their order, repeated ones too."""
        raise NotImplementedError

    def close(self) -> None:
        self.kill()

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RedisStream(Broker):
    """A stream of a Redis that keeps what it acknowledged."""

    def __init__(self) -> None:
        self.server = RedisServer(appendonly="yes", appendfsync="always")

    def start(self) -> None:
        self.server.start()
        self.url = f"redis://127.0.0.1:{self.server.port}/0?stream=tus"

    def kill(self) -> None:
        self.server.kill()

    def close(self) -> None:
        self.server.close()

    def entries(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.server.command("XRANGE", "tus", "-", "+")]

    def received(self) -> list[dict[str, Any]]:
        return [json.loads(fields["event"]) for fields in self.entries()]


class ProcessBroker(Broker):
    """A broker whose process leads a group, which is killed as a whole."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="broker-"))
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    async def prepare(self) -> None:
        """Make what events are sent to, unless it is there. Raises an error while the broker does not serve yet."""
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                asyncio.run(self.prepare())
            except Exception as error:  # of any client library, while the broker starts
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the broker did not start:\n" + self.log()) from error
                time.sleep(0.05)
            else:
                return

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-5000:]

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class NatsStream(ProcessBroker):
    """A JetStream stream with the subjects `tus.>`."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"nats://127.0.0.1:{self.port}/tus.events"

    def command(self) -> list[str]:
        program = str(Path(sys.executable).with_name("nats-server"))
        return [program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "data")]

    @contextlib.asynccontextmanager
    async def client(self) -> Any:
        async def ignore(*_: object) -> None: ...

        client = await nats.connect(
            f"nats://127.0.0.1:{self.port}", connect_timeout=5, max_reconnect_attempts=1, error_cb=ignore
        )
        try:
            yield client.jetstream(timeout=START_TIMEOUT)
        finally:
            await client.close()

    async def prepare(self) -> None:
        async with self.client() as stream:
            await stream.add_stream(name="TUS", subjects=["tus.>"])

    def messages(self) -> list[Any]:
        async def read() -> list[Any]:
            async with self.client() as stream:
                count = (await stream.stream_info("TUS")).state.messages
                return [await stream.get_msg("TUS", number) for number in range(1, count + 1)]

        return asyncio.run(read())

    def received(self) -> list[dict[str, Any]]:
        return [json.loads(message.data) for message in self.messages()]


class RabbitQueue(ProcessBroker):
    """The exchange `tus` of a RabbitMQ, and a queue that takes all events from it."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"amqp://127.0.0.1:{self.port}/tus"
        self.taken: list[Any] = []
        # The names of Erlang nodes are kept by a process of its own, which a node would start and leave behind.
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        return [str(RABBITMQ)]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"tus{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-such-file"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @contextlib.asynccontextmanager
    async def channel(self) -> Any:
        async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{self.port}/", timeout=10) as connection:
            yield await connection.channel()

    async def prepare(self) -> None:
        async with self.channel() as channel:
            exchange = await channel.declare_exchange("tus", "topic", durable=True)
            queue = await channel.declare_queue("events", durable=True)
            await queue.bind(exchange, PATTERN)

    def messages(self) -> list[Any]:
        async def take() -> None:
            async with self.channel() as channel:
                queue = await channel.get_queue("events")
                while (message := await queue.get(fail=False)) is not None:
                    self.taken.append(message)
                    await message.ack()

        asyncio.run(take())
        return self.taken

    def received(self) -> list[dict[str, Any]]:
        return [json.loads(message.body) for message in self.messages()]

    def start(self) -> None:
        if self._epmd is None:
            environment = os.environ | self.environment()
            self._epmd = subprocess.Popen(["epmd"], env=environment, stdin=subprocess.DEVNULL)
            wait_until(lambda: is_listening(self._epmd_port), "epmd listens")
        super().start()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
