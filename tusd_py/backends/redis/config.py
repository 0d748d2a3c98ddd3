"""The configuration of the state store and the locker on Redis."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tusd_py.core.option_types import Seconds
from tusd_py.core.redaction import QUERY

URL = re.compile(r"(?:(?:redis|valkey)s?(?:\+sentinel|\+cluster)?://[^/\s]+(?:/\S*)?)|unix:/\S+")
HOST_AND_PORT = re.compile(r"(?:[^:,@\[\]\s]*|\[[0-9A-Fa-f:.%a-z]+\])(?::[0-9]{1,5})?")
PREFIX = re.compile(r"[A-Za-z0-9:._-]{0,64}")


def check_url(value: str) -> str:
    """Return the URL; refuse one with unescaped characters in its password."""
    if not URL.fullmatch(value):
        raise ValueError("a URL such as redis://127.0.0.1:6379/0, rediss:// or redis+sentinel://")
    if not value.startswith("unix:") and not _names_hosts(value):
        raise ValueError("a URL in which / ? # and @ of a password are written as %2F %3F %23 and %40")
    return value


def _names_hosts(url: str) -> bool:
    """Return whether a URL parses as hosts and ports; an unescaped `/` or `@` in its password prevents that."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    credentials, _, hosts = parts.netloc.rpartition("@")
    misread = "@" in credentials + parts.path + parts.fragment or ("@" in parts.query and not QUERY.match(parts.query))
    return not misread and all(HOST_AND_PORT.fullmatch(host) for host in hosts.split(","))


def check_prefix(value: str) -> str:
    """Return the prefix of the keys in Redis."""
    if not PREFIX.fullmatch(value):
        raise ValueError("up to 64 letters, digits and :._-")
    return value


class RedisConfig(BaseModel):
    """The configuration of the records and locks in Redis. Every field is a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None,
        repr=False,
        description="Redis for records and locks, which several hosts can share: redis://, rediss://, ...",
    )
    prefix: Annotated[str, AfterValidator(check_prefix)] = Field(
        default="tus:", description="prefix of all keys in Redis"
    )
    lock_ttl: Seconds = Field(
        default=6,
        ge=1,
        le=3600,
        description="lease duration of locks in Redis: a lock ends this long after its last renewal; 1s at least",
    )

    @property
    def is_cluster(self) -> bool:
        """Whether the URL names a cluster."""
        return self.url is not None and "+cluster" in self.url.partition("://")[0]
