from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.support.properties import on_any_machine
from tusd_py.outbox.sink_urls import check_sinks, parse_sink_url


@pytest.mark.parametrize(
    ("url", "kind", "host", "port", "target", "name"),
    [
        ("https://app.example.org/hook", "http", "app.example.org", 443, "", "https://app.example.org/hook"),
        ("http://127.0.0.1:9000", "http", "127.0.0.1", 9000, "", "http://127.0.0.1:9000"),
        ("redis://:pw@Cache:7/3?stream=tus.events", "redis", "cache", 7, "tus.events",
         "redis://cache:7/3?stream=tus.events"),
        ("rediss://cache?stream=s", "redis", "cache", 6379, "s", "rediss://cache?stream=s"),
        ("nats://user:pw@broker/tus.events", "nats", "broker", 4222, "tus.events", "nats://broker/tus.events"),
        ("kafka://[::1]:9093/tus-events", "kafka", "::1", 9093, "tus-events", "kafka://[::1]:9093/tus-events"),
        ("amqp://u:p%40@broker/tus?vhost=%2Fa", "amqp", "broker", 5672, "tus", "amqp://broker/tus?vhost=%2Fa"),
        ("amqps://broker/tus", "amqp", "broker", 5671, "tus", "amqps://broker/tus"),
    ],
)  # fmt: skip
def test_url_names_its_sink(url: str, kind: str, host: str, port: int, target: str, name: str) -> None:
    address = parse_sink_url(url)
    assert (address.kind, address.host, address.port, address.target) == (kind, host, port, target)
    assert address.name == name
    assert address.url == url


def test_details_of_urls_are_decoded() -> None:
    assert parse_sink_url("redis://u:p%2Fw@h/3?stream=s").database == 3
    assert parse_sink_url("redis://u:p%2Fw@h/3?stream=s").password == "p/w"
    assert parse_sink_url("amqp://h/e?vhost=%2Fa").vhost == "/a"
    assert parse_sink_url("amqp://h/e").vhost == "/"
    assert parse_sink_url("amqps://h/e").secure


def test_name_and_repr_hold_no_secret() -> None:
    for url in ("https://user:secret@host/hook?token=secret", "nats://secret@host/s", "redis://:secret@h/?stream=s"):
        address = parse_sink_url(url)
        assert "secret" not in address.name + repr(address)


def test_urls_that_differ_in_their_query_are_different_sinks() -> None:
    names = {parse_sink_url(f"https://host/hook?token={token}").name for token in "ab"}
    assert len(names) == 2
    assert parse_sink_url("https://host/hook?token=a").name in names


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "URLs such as"),
        ("host/path", "URLs such as"),
        ("ftp://host/path", "URLs such as"),
        ("https:///path", "URLs such as"),
        ("https://host:port/", "URLs such as"),
        ("https://host:99999/", "URLs such as"),
        ("https://[::1/", "URLs such as"),
        ("https://host/a b", "URLs such as"),
        ("https://host/#part", "URLs such as"),
        ("redis://host/0", "for Redis"),
        ("redis://host/zero?stream=s", "for Redis"),
        ("redis://host/0?stream=", "for Redis"),
        ("redis://host/0?stream=s&more=1", "for Redis"),
        ("nats://host", "for NATS"),
        ("nats://host/tus.*", "for NATS"),
        ("nats://host/tus..events", "for NATS"),
        ("kafka://host/", "for Kafka"),
        ("kafka://host/a%2Fb", "for Kafka"),
        ("amqp://host", "for AMQP"),
        ("amqp://host/e?other=1", "for AMQP"),
    ],
)
def test_url_that_names_no_sink_is_refused_with_its_form(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sink_url(url)


def test_same_sink_twice_is_refused() -> None:
    assert check_sinks(["https://a/", "https://b/"]) == ("https://a/", "https://b/")
    with pytest.raises(ValueError, match="https://a/ is there twice"):
        check_sinks(["https://u:p@a/", "https://a/"])


@on_any_machine
@given(st.text(max_size=40) | st.from_regex(r"(redis|nats|amqp|kafka|https)://.{0,30}", fullmatch=True))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    refusal = ""
    try:
        parse_sink_url(text)
    except ValueError as error:
        refusal = str(error)
    assert refusal == "" or refusal.startswith(("URLs such as", "a URL such as"))
