"""Events as messages of a Kafka topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.cloudevents import MEDIA_TYPE
from tusd_py.outbox.sink_urls import SinkAddress
from tusd_py.outbox.sinks.connection import SharedConnection

TIMEOUT_MS = 10_000


class KafkaSink:
    """A sink that writes every event to a topic, acknowledged by all replicas in sync.

    The key of a message is the upload id, so that one partition has all events of an upload, in order.
    """

    def __init__(self, address: SinkAddress, render: Callable[[OutboxEvent], bytes]) -> None:
        self.name = address.name
        self._address = address
        self._render = render
        self._connection: SharedConnection[AIOKafkaProducer] = SharedConnection(
            self._connect, _is_usable, AIOKafkaProducer.stop
        )

    async def open(self) -> None:
        """Connect."""
        await self._connection.get()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def _connect(self) -> AIOKafkaProducer:
        address = self._address
        host = f"[{address.host}]" if ":" in address.host else address.host
        credentials: dict[str, Any] = {}
        if address.user:
            credentials = {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "sasl_plain_username": address.user,
                "sasl_plain_password": address.password,
            }
        producer = AIOKafkaProducer(
            bootstrap_servers=f"{host}:{address.port}",
            client_id="tusd-py",
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=TIMEOUT_MS,
            **credentials,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def send(self, event: OutboxEvent) -> None:
        """Write an event to the topic."""
        try:
            producer = await self._connection.get()
            await producer.send_and_wait(
                self._address.target,
                self._render(event),
                key=event.upload_id.encode(),
                headers=[("content-type", MEDIA_TYPE.encode())],
            )
        except (KafkaError, OSError) as error:
            raise DeliveryError(f"Kafka: {error or type(error).__name__}") from error


def _is_usable(producer: AIOKafkaProducer) -> bool:
    return True  # a producer connects again by itself
