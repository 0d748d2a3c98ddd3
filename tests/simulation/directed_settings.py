"""Directed scenarios of settings with which no server starts, and of those that seldom have another value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tests.simulation.directed import DirectedWorld, scenario
from tusd_py.backends.redis.config import RedisConfig
from tusd_py.backends.s3.config import S3Config

REFUSED: Sequence[tuple[Callable[..., Any], Mapping[str, Any], str]] = (
    (RedisConfig, {"url": "http://redis.example"}, "redis://"),
    (RedisConfig, {"url": "redis://:pass/word@redis.example:6379"}, "%2F"),
    (RedisConfig, {"url": "redis://[redis.example:6379"}, "%2F"),
    (RedisConfig, {"prefix": "a prefix"}, "64 letters"),
    (S3Config, {"bucket": "b", "endpoint": "s3.example"}, "https://s3.example.org"),
    (S3Config, {"bucket": "b", "key_template": "{prefix}"}, "exactly once"),
    (S3Config, {"bucket": "b", "key_template": "{id}{size}"}, "metadata.NAME"),
    (S3Config, {"bucket": "b", "tags": ("a=1", "a=2")}, "different pairs"),
    (S3Config, {"bucket": "b", "prefix": "p" * 1000}, "too long"),
)
TAKEN: Sequence[tuple[Callable[..., Any], Mapping[str, Any]]] = (
    (RedisConfig, {"url": "rediss://user:pass%2Fword@redis.example:6379/0", "prefix": "tus:"}),
    (RedisConfig, {"url": "unix:/run/redis.sock"}),
    (S3Config, {"bucket": "b", "endpoint": "https://s3.example", "key_template": "{prefix}{metadata.name}-{id}"}),
    (S3Config, {"bucket": "b", "tags": ("a=1", "b=2")}),
)


@scenario()
async def wrong_settings_are_refused_with_the_right_ones(world: DirectedWorld) -> None:
    for make, values, text in REFUSED:
        try:
            made = make(**values)
        except ValidationError as error:
            world.check(text in str(error), f"{values} is refused with {error}")
        else:
            world.complain(f"{values} makes {made}")
    for make, values in TAKEN:
        make(**values)
