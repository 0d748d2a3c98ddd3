"""Events as messages of an exchange of AMQP 0.9.1, such as RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, PublishError

from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.cloudevents import MEDIA_TYPE, type_name
from tusd_py.outbox.sink_urls import SinkAddress
from tusd_py.outbox.sinks.connection import SharedConnection

TIMEOUT = 5.0  # seconds, for the connection and for a confirmation


@dataclass(frozen=True, slots=True)
class _Open:
    connection: AbstractConnection
    exchange: AbstractExchange


class AmqpSink:
    """A sink that publishes every event to an exchange, which has to exist, and waits for the confirmation.

    The routing key is the type of the event, the message id its id. An event that no queue takes counts as failed.
    """

    def __init__(self, address: SinkAddress, render: Callable[[OutboxEvent], bytes]) -> None:
        self.name = address.name
        self._address = address
        self._render = render
        self._connection: SharedConnection[_Open] = SharedConnection(self._connect, _is_usable, _close)

    async def open(self) -> None:
        """Connect."""
        await self._connection.get()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _connect(self) -> _Open:
        address = self._address
        connection = await aio_pika.connect(
            host=address.host,
            port=address.port,
            login=address.user or "guest",
            password=address.password or "guest",
            virtualhost=address.vhost,
            ssl=address.secure,
            timeout=TIMEOUT,
        )
        try:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return _Open(connection, await channel.get_exchange(address.target, ensure=True))
        except BaseException:
            await connection.close()
            raise

    async def send(self, event: OutboxEvent) -> None:
        """Publish an event."""
        message = aio_pika.Message(
            self._render(event),
            content_type=MEDIA_TYPE,
            message_id=event.id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            exchange = (await self._connection.get()).exchange
            await exchange.publish(message, type_name(event), mandatory=True, timeout=TIMEOUT)
        except PublishError as error:
            raise DeliveryError(f"AMQP: no queue of the exchange {self._address.target} takes the event") from error
        except ChannelInvalidStateError as error:
            raise DeliveryError("AMQP: the connection was closed") from error
        except (AMQPError, OSError) as error:
            raise DeliveryError(f"AMQP: {error or type(error).__name__}") from error


def _is_usable(opened: _Open) -> bool:
    return not opened.connection.is_closed and not opened.exchange.channel.is_closed


async def _close(opened: _Open) -> None:
    await opened.connection.close()
