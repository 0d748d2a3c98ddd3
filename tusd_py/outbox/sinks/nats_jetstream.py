"""Events as messages of a NATS JetStream stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import NoStreamResponseError

from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.cloudevents import MEDIA_TYPE
from tusd_py.outbox.sink_urls import SinkAddress
from tusd_py.outbox.sinks.connection import SharedConnection

TIMEOUT = 5  # seconds, for the connection and for an acknowledgement


class NatsSink:
    """A sink that publishes every event to a subject, and waits until a stream has stored it.

    `Nats-Msg-Id` is the id of the event, so that JetStream drops what is sent again within its duplicate window.
    """

    def __init__(self, address: SinkAddress, render: Callable[[OutboxEvent], bytes]) -> None:
        self.name = address.name
        self._address = address
        self._render = render
        self._connection: SharedConnection[Client] = SharedConnection(self._connect, _is_usable, Client.close)

    async def open(self) -> None:
        """Connect."""
        await self._connection.get()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _connect(self) -> Client:
        """Return a new connection, or raise the error of the only attempt."""
        address = self._address
        host = f"[{address.host}]" if ":" in address.host else address.host
        client, connected = Client(), asyncio.Event()

        async def report(error: Exception) -> None:
            """End the attempt: the library would go on for minutes. Later errors are met by the next event too."""
            if not connected.is_set():
                raise error

        async def ignore(*_: object) -> None:
            """Take the end of the connection, which the next event finds out."""

        try:
            async with asyncio.timeout(TIMEOUT):
                await client.connect(
                    f"nats://{host}:{address.port}",
                    name="tusd-py",
                    user=address.user if address.password else None,
                    password=address.password or None,
                    token=address.user if address.user and not address.password else None,
                    connect_timeout=TIMEOUT,
                    allow_reconnect=False,  # the next attempt to send connects again
                    error_cb=report,
                    closed_cb=ignore,
                    disconnected_cb=ignore,
                )
        except BaseException:
            with contextlib.suppress(Exception):  # of the library: what is half open is of no use
                await client.close()
            raise
        connected.set()
        return client

    async def send(self, event: OutboxEvent) -> None:
        """Publish an event."""
        headers = {"Nats-Msg-Id": event.id, "Content-Type": MEDIA_TYPE}
        try:
            stream = (await self._connection.get()).jetstream(timeout=TIMEOUT)
            await stream.publish(self._address.target, self._render(event), headers=headers)
        except NoStreamResponseError as error:
            raise DeliveryError(f"NATS: no stream stores the subject {self._address.target}") from error
        except TimeoutError as error:  # of the library, and of its connection
            raise DeliveryError(f"NATS: no answer in {TIMEOUT} s") from error
        except (Error, OSError) as error:
            raise DeliveryError(f"NATS: {str(error) or type(error).__name__}") from error


def _is_usable(client: Client) -> bool:
    return bool(client.is_connected)
