"""URLs of sinks, as `--events-to` takes them. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

SinkKind = Literal["http", "redis", "nats", "kafka", "amqp"]

EXAMPLES = (
    "https://HOST/PATH, redis://HOST/DB?stream=NAME, nats://HOST/SUBJECT, kafka://HOST/TOPIC or amqp://HOST/EXCHANGE"
)
KINDS: Mapping[str, SinkKind] = {
    "https": "http",
    "http": "http",
    "redis": "redis",
    "rediss": "redis",
    "nats": "nats",
    "kafka": "kafka",
    "amqp": "amqp",
    "amqps": "amqp",
}
PORTS: Mapping[str, int] = {
    "https": 443,
    "http": 80,
    "redis": 6379,
    "rediss": 6379,
    "nats": 4222,
    "kafka": 9092,
    "amqp": 5672,
    "amqps": 5671,
}
SUBJECT = re.compile(r"[^\s.*>]+(?:\.[^\s.*>]+)*")
TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
EXCHANGE = re.compile(r"[A-Za-z0-9._:-]{1,127}")
STREAM = re.compile(r"[^\x00-\x20\x7f]{1,256}")
DATABASE = re.compile(r"[0-9]{1,5}")
VHOST = re.compile(r"[^\x00-\x20\x7f]{1,255}")


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """The place that events are sent to.

    Attributes:
        kind: the protocol.
        name: the URL without user, password, and what may be a secret in its query: the name of the sink in the
            outbox, in metrics and in log lines.
        url: the URL as given; may hold a password.
        secure: whether the connection is encrypted.
        host: name or address, without brackets.
        port: the port, that of the protocol without one in the URL.
        target: stream, subject, topic or exchange; empty for HTTP.
        database: of Redis.
        vhost: of AMQP.
    """

    kind: SinkKind
    name: str
    url: str = field(repr=False)
    secure: bool
    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    target: str = ""
    database: int = 0
    vhost: str = "/"


def parse_sink_url(url: str) -> SinkAddress:
    """Return the address that a URL names.

    Raises:
        ValueError: the URL names no sink; the text says what is accepted and follows "must be".
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"URLs such as {EXAMPLES}") from None
    if parts.scheme not in KINDS or not parts.hostname or parts.fragment or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"URLs such as {EXAMPLES}")
    kind = KINDS[parts.scheme]
    target = _TARGETS[kind](parts)
    return SinkAddress(
        kind=kind,
        name=_name(parts, kind),
        url=url,
        secure=parts.scheme in ("https", "rediss", "amqps"),
        host=parts.hostname,
        port=PORTS[parts.scheme] if port is None else port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        target=target.name,
        database=target.database,
        vhost=target.vhost,
    )


def check_sinks(urls: Sequence[str]) -> tuple[str, ...]:
    """Return the URLs; raise `ValueError` for one that names no sink, and for two that name the same one."""
    names = [parse_sink_url(url).name for url in urls]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"different sinks, and {name} is there twice")
    return tuple(urls)


def _name(parts: SplitResult, kind: SinkKind) -> str:
    """Return the URL without secrets."""
    place = parts.netloc.rpartition("@")[2].lower()
    query = f"?{parts.query}" if parts.query else ""
    if kind == "http" and query:  # tokens are common there, and two URLs may differ in nothing else
        query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}"
    return f"{parts.scheme}://{place}{parts.path}{query}"


class _Target(NamedTuple):
    """The part of an address that the path and the query of its URL name; see `SinkAddress`."""

    name: str = ""
    database: int = 0
    vhost: str = "/"


def _no_target(parts: SplitResult) -> _Target:
    return _Target()


def _stream(parts: SplitResult) -> _Target:
    query = dict(parse_qsl(parts.query))
    database = parts.path.strip("/") or "0"
    if set(query) != {"stream"} or not STREAM.fullmatch(query["stream"]) or not DATABASE.fullmatch(database):
        raise ValueError("a URL such as redis://HOST/0?stream=NAME for Redis")
    return _Target(query["stream"], int(database))


def _path_segment(pattern: re.Pattern[str], example: str) -> Callable[[SplitResult], _Target]:
    def parse(parts: SplitResult) -> _Target:
        target = unquote(parts.path.removeprefix("/"))
        if not pattern.fullmatch(target) or parts.query:
            raise ValueError(f"a URL such as {example}")
        return _Target(target)

    return parse


def _exchange(parts: SplitResult) -> _Target:
    target, query = unquote(parts.path.removeprefix("/")), dict(parse_qsl(parts.query))
    vhost = query.pop("vhost", "/")
    if not EXCHANGE.fullmatch(target) or not VHOST.fullmatch(vhost) or query:
        raise ValueError("a URL such as amqp://HOST/EXCHANGE or amqp://HOST/EXCHANGE?vhost=NAME for AMQP")
    return _Target(target, vhost=vhost)


_TARGETS: Mapping[SinkKind, Callable[[SplitResult], _Target]] = {
    "http": _no_target,
    "redis": _stream,
    "nats": _path_segment(SUBJECT, "nats://HOST/SUBJECT for NATS"),
    "kafka": _path_segment(TOPIC, "kafka://HOST/TOPIC for Kafka"),
    "amqp": _exchange,
}
