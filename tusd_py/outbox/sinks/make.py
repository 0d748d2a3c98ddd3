"""Sinks made from their addresses; the client library of a broker is imported with the first sink that needs it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from tusd_py.contracts.outbox import Sink
from tusd_py.core.outbox import OutboxEvent
from tusd_py.outbox.sink_urls import SinkAddress, SinkKind
from tusd_py.outbox.sinks.http import HttpSink

# Class, name of the broker, and what pip installs.
BROKERS: Mapping[SinkKind, tuple[str, str, str]] = {
    "redis": ("redis_stream:RedisStreamSink", "Redis", "redis[hiredis]"),
    "nats": ("nats_jetstream:NatsSink", "NATS", "nats-py"),
    "kafka": ("kafka:KafkaSink", "Kafka", "aiokafka"),
    "amqp": ("amqp:AmqpSink", "AMQP", "aio-pika"),
}


class MissingPackage(Exception):
    """The client library of a broker is not installed; the text is one sentence that names it."""


def make_sink(
    address: SinkAddress,
    render: Callable[[OutboxEvent], bytes],
    secrets: Sequence[bytes],
    context: ssl.SSLContext | None = None,
) -> Sink:
    """Return the sink of an address.

    Args:
        address: the endpoint or broker.
        render: returns the bytes of an event as they are sent.
        secrets: sign the requests to endpoints.
        context: of connections to endpoints with TLS; None for one that trusts the authorities of the system.

    Raises:
        MissingPackage: the client library of the broker is not installed.
    """
    if address.kind == "http":
        return HttpSink(address, render, secrets, context)
    place, broker, package = BROKERS[address.kind]
    module, _, name = place.partition(":")
    try:
        kind = getattr(import_module(f"tusd_py.outbox.sinks.{module}"), name)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"events to {broker} need the package {package}: pip install '{package}'") from error
    sink: Sink = kind(address, render)
    return sink
