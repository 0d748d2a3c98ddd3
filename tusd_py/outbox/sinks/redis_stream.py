"""Events as entries of a Redis stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.cloudevents import type_name
from tusd_py.outbox.sink_urls import SinkAddress

TIMEOUT = 5.0  # seconds
MAX_CONNECTIONS = 16


class RedisStreamSink:
    """A sink that appends every event to a stream: the fields `id`, `type`, `subject`, and the event as `event`."""

    def __init__(self, address: SinkAddress, render: Callable[[OutboxEvent], bytes]) -> None:
        self.name = address.name
        self._address = address
        self._render = render
        self._client: Any = None

    async def open(self) -> None:
        """Make the client, which connects with the first event."""
        address = self._address
        self._client = Redis(
            host=address.host,
            port=address.port,
            db=address.database,
            username=address.user or None,
            password=address.password or None,
            ssl=address.secure,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            max_connections=MAX_CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def send(self, event: OutboxEvent) -> None:
        """Append an event to the stream."""
        assert self._client is not None
        fields = {
            "id": event.id,
            "type": type_name(event),
            "subject": event.upload_id,
            "event": self._render(event),
        }
        words = [word for pair in fields.items() for word in pair]
        try:
            await self._client.execute_command("XADD", self._address.target, "*", *words)
        except (RedisError, OSError) as error:
            raise DeliveryError(f"Redis: {error}") from error
