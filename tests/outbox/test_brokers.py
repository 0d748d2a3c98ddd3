"""The sinks of message brokers against the brokers: Redis, NATS, Kafka's mock, and with TEST_RABBITMQ=1 RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from tests.support.brokers import RABBITMQ, Broker, NatsStream, RabbitQueue, RedisStream
from tests.support.event_receiver import check_received
from tests.support.harness import ServerProcess
from tests.support.redis_server import free_port
from tests.support.timing import TIMEOUT, scaled, wait_until
from tests.support.wire.requests import complete, create
from tusd_py.contracts.outbox import DeliveryError, Sink
from tusd_py.core.event_document import document_of
from tusd_py.core.outbox import EventType, OutboxEvent
from tusd_py.core.upload import Upload
from tusd_py.outbox.cloudevents import MEDIA_TYPE, render
from tusd_py.outbox.sink_urls import parse_sink_url
from tusd_py.outbox.sinks.make import make_sink

SOURCE = "https://uploads.example.org"
LIMIT = 60.0  # seconds for one attempt, reached only when the broker hangs
RABBITMQ_WANTED = pytest.mark.skipif(not os.environ.get("TEST_RABBITMQ"), reason="takes long: make brokers")
BROKERS = [
    pytest.param(RedisStream, id="redis"),
    pytest.param(NatsStream, id="nats"),
    pytest.param(RabbitQueue, id="rabbitmq", marks=RABBITMQ_WANTED),
]


def event(number: int) -> OutboxEvent:
    document = document_of(Upload("upload", 1.0, 3), {}, None)
    return OutboxEvent(f"{number:032x}", "upload", EventType.FINISHED, number, 1_700_000_000.5, document, ())


def sink_of(url: str) -> Sink:
    return make_sink(parse_sink_url(url), partial(render, source=SOURCE), ())


async def send(sink: Sink, *numbers: int) -> None:
    for number in numbers:
        async with asyncio.timeout(LIMIT):
            await sink.send(event(number))


async def send_once(url: str, *numbers: int) -> None:
    sink = sink_of(url)
    try:
        await sink.open()
        await send(sink, *numbers)
    finally:
        await sink.close()


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = request.param
    assert kind is not RabbitQueue or RABBITMQ.exists(), "rabbitmq-server is not installed"
    with kind() as broker:
        yield broker


def ids_of(broker: Broker) -> list[int]:
    return [int(one["id"], 16) for one in broker.received()]


def test_a_broker_has_what_was_sent_in_order(broker: Broker) -> None:
    asyncio.run(send_once(broker.url, 1, 2, 3))
    expected = [json.loads(render(event(number), SOURCE)) for number in (1, 2, 3)]
    assert broker.received() == expected


def test_a_sink_goes_on_after_a_kill_of_its_broker(broker: Broker) -> None:
    async def go_on() -> None:
        sink = sink_of(broker.url)
        try:
            await sink.open()
            await send(sink, 1)
            await asyncio.to_thread(broker.kill)
            with pytest.raises(DeliveryError):
                await send(sink, 2)
            await asyncio.to_thread(broker.start)
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    await send(sink, 2)
                    return
                except DeliveryError:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
        finally:
            await sink.close()

    asyncio.run(go_on())
    assert ids_of(broker) in ([1, 2], [1, 2, 2])


@pytest.mark.parametrize("kills", [3])
def test_events_of_a_server_outlive_kills_of_the_broker(tmp_path: Path, broker: Broker, kills: int) -> None:
    with ServerProcess(tmp_path / "uploads", events_to=broker.url) as server:
        uploads = set()
        for _ in range(kills):
            for _ in range(3):
                path = create(server.port, 4)
                complete(server.port, path, b"four")
                uploads.add(path.rpartition("/")[2])
            broker.restart()
        wait_until(lambda: len({one["id"] for one in broker.received()}) == 2 * len(uploads), "all arrive", scaled(60))
        told = check_received(broker.received())
        assert set(told) == uploads
        for events in told.values():
            assert [one["type"] for one in events] == ["tus.upload.created", "tus.upload.finished"]


def test_an_entry_of_a_redis_stream_has_the_fields_of_the_event() -> None:
    with RedisStream() as broker:
        asyncio.run(send_once(broker.url, 1))
        [entry] = broker.entries()
    assert (entry["id"], entry["type"], entry["subject"]) == (event(1).id, "tus.upload.finished", "upload")


def test_jetstream_drops_an_event_that_is_sent_again() -> None:
    with NatsStream() as broker:
        asyncio.run(send_once(broker.url, 1, 2, 2, 1))
        assert ids_of(broker) == [1, 2]
        [first, _] = broker.messages()
        assert (first.headers["Nats-Msg-Id"], first.headers["Content-Type"]) == (event(1).id, MEDIA_TYPE)
        elsewhere = broker.url.replace("tus.events", "other.events")
        with pytest.raises(DeliveryError, match=r"no stream stores the subject other\.events"):
            asyncio.run(send_once(elsewhere, 3))


@RABBITMQ_WANTED
def test_an_event_that_no_queue_takes_counts_as_failed() -> None:
    with RabbitQueue() as broker:
        asyncio.run(send_once(broker.url, 1))
        [message] = broker.messages()
        assert (message.message_id, message.routing_key) == (event(1).id, "tus.upload.finished")
        assert message.content_type == MEDIA_TYPE
        for elsewhere, reason in (("nowhere", "NOT_FOUND"), ("amq.topic", "no queue of the exchange")):
            with pytest.raises(DeliveryError, match=reason):
                asyncio.run(send_alone(broker.url.replace("/tus", f"/{elsewhere}")))


async def send_alone(url: str) -> None:
    """Send an event without opening the sink before, which the delivery leaves to the first event too."""
    sink = sink_of(url)
    try:
        await send(sink, 1)
    finally:
        await sink.close()


def test_kafka_has_what_was_sent_with_the_upload_as_key() -> None:
    mock = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    [place] = mock.list_topics(timeout=LIMIT).brokers.values()
    servers = f"{place.host}:{place.port}"
    asyncio.run(send_once(f"kafka://{servers}/tus-events", 1, 2))
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe(["tus-events"])
        messages = consumer.consume(2, timeout=LIMIT)
    finally:
        consumer.close()
    assert [int(json.loads(message.value())["id"], 16) for message in messages] == [1, 2]
    assert {message.key() for message in messages} == {b"upload"}
    assert messages[0].headers() == [("content-type", MEDIA_TYPE.encode())]


# Brokers that are away.


@pytest.mark.parametrize("url", ["redis://{}/0?stream=tus", "nats://{}/tus.events", "amqp://{}/tus", "kafka://{}/tus"])
def test_a_broker_that_is_not_there_fails_an_attempt_with_its_reason(url: str) -> None:
    place = f"127.0.0.1:{free_port()}"
    with pytest.raises(DeliveryError) as caught:
        asyncio.run(send_alone(url.format(place)) if "redis" not in url else send_once(url.format(place), 1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 10


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT)
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("url", ["redis://{}/0?stream=tus", "nats://{}/tus.events", "amqp://{}/tus"])
def test_a_broker_that_is_silent_fails_an_attempt_within_its_limit(
    silent: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("redis_stream", "nats_jetstream", "amqp"):
        monkeypatch.setattr(f"tusd_py.outbox.sinks.{module}.TIMEOUT", 0.5)
    with pytest.raises(DeliveryError):
        asyncio.run(send_alone(url.format(silent)) if "redis" not in url else send_once(url.format(silent), 1))
