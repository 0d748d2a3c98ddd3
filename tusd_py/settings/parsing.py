"""Parsers and checks of single settings: each takes what was given, and returns its value or raises `ValueError`.

The text of the error is what is accepted, as it follows "must be" in a sentence.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from urllib.parse import urlsplit

from tusd_py.core.redaction import QUERY

MAX_TAGS = 10  # S3 takes no more, and only these characters
TAG = re.compile(r"[\w +\-.:/@]{1,128}=[\w +\-=.:/@]{0,256}")
ENDPOINT = re.compile(r"https?://[^/\s?#]+/?")
REDIS_URL = re.compile(r"(?:(?:redis|valkey)s?(?:\+sentinel|\+cluster)?://[^/\s]+(?:/\S*)?)|unix:/\S+")
REDIS_PREFIX = re.compile(r"[A-Za-z0-9:._-]{0,64}")
FILE_MODE = re.compile(r"0?[67][0-7]{2}")
DIRECTORY_MODE = re.compile(r"[0-3]?7[0-7]{2}")
PUBLIC_URL = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%-]+)*"
)
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._*-]+|\[[0-9A-Fa-f:.]+\])(?::(?:[0-9]{1,5}|\*))?/?")
HOST = re.compile(r"[^\s/?#@\[\]]+|\[[0-9A-Fa-f:.%]+[^\s\[\]]*\]")
HOST_AND_PORT = re.compile(r"(?:[^:,@\[\]\s]*|\[[0-9A-Fa-f:.%a-z]+\])(?::[0-9]{1,5})?")
RESERVED_PATHS = ("/healthz", "/readyz", "/metrics")
SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
SIZE_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)?")
MAX_DURATION = 100 * 366 * 86400.0  # seconds; dates stay within four digits
DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: object) -> object:
    """Bytes from `5GiB`, `10MB`, `512`."""
    if isinstance(value, bool):
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    return int(Decimal(match[1]) * SIZE_UNITS[(match[2] or "").lower()])


def parse_duration(value: object) -> object:
    """Seconds from `24h`, `90s`, `1.5m`, `30`."""
    if isinstance(value, bool):
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if not match:
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    return float(match[1]) * DURATION_UNITS[match[2] or ""]


def refuse_switch(value: object) -> object:
    """Refuse true and false, which are integers to Python but not to an operator who writes a configuration file."""
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def split_list(value: object) -> object:
    """A tuple from `a, b`."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def refuse_nothing(value: object) -> object:
    """Refuse an empty path, which would be the working directory."""
    if value == "":
        raise ValueError("a directory")
    return value


def check_host(value: str) -> str:
    """Refuse what is no host; an empty one would be every address of this machine to the system."""
    if not HOST.fullmatch(value):
        raise ValueError("an address or the name of a host, such as 127.0.0.1, or 0.0.0.0 for every address")
    return value.strip("[]")


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise ValueError("* or origins as browsers send them, such as https://app.example.org, without a path")
    return origins


def check_base_path(value: str) -> str:
    path = "/" + value.strip("/")
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("a path such as /files")
    if path in RESERVED_PATHS:
        raise ValueError(f"another path than {', '.join(RESERVED_PATHS)}")
    return path


def check_public_url(value: str) -> str:
    if not PUBLIC_URL.fullmatch(value.rstrip("/")):
        raise ValueError("a URL such as https://uploads.example.org")
    try:
        urlsplit(value).port  # noqa: B018 - raises for what is none
    except ValueError:
        raise ValueError("a URL such as https://uploads.example.org") from None
    return value.rstrip("/")


def check_endpoint(value: str) -> str:
    if not ENDPOINT.fullmatch(value):
        raise ValueError("a URL such as https://s3.example.org")
    return value


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    names = {tag.partition("=")[0] for tag in tags}
    if len(tags) > MAX_TAGS or len(names) < len(tags) or not all(TAG.fullmatch(tag) for tag in tags):
        raise ValueError(
            f"at most {MAX_TAGS} different pairs such as project=press,kind=upload,"
            " of letters, digits, spaces and +-=._:/@"
        )
    return tags


def check_redis_url(value: str) -> str:
    if not REDIS_URL.fullmatch(value):
        raise ValueError("a URL such as redis://127.0.0.1:6379/0, rediss:// or redis+sentinel://")
    if not value.startswith("unix:") and not _names_hosts(value):
        raise ValueError("a URL in which / ? # and @ of a password are written as %2F %3F %23 and %40")
    return value


def _names_hosts(url: str) -> bool:
    """Whether a URL reads as hosts and ports; with a bare `/` or `@` in a password it reads as something else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    credentials, _, hosts = parts.netloc.rpartition("@")
    misread = "@" in credentials + parts.path + parts.fragment or ("@" in parts.query and not QUERY.match(parts.query))
    return not misread and all(HOST_AND_PORT.fullmatch(host) for host in hosts.split(","))


def check_redis_prefix(value: str) -> str:
    if not REDIS_PREFIX.fullmatch(value):
        raise ValueError("up to 64 letters, digits and :._-")
    return value


def check_file_mode(value: str) -> str:
    if not FILE_MODE.fullmatch(value):
        raise ValueError("an octal number such as 0640 or 0660 in which the owner may read and write")
    return value


def check_directory_mode(value: str) -> str:
    if not DIRECTORY_MODE.fullmatch(value):
        raise ValueError("an octal number such as 0750 or 2770 in which the owner may do everything")
    return value


def check_proxies(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        if entry != "*":
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError:
                raise ValueError("addresses or networks such as 127.0.0.1,10.0.0.0/8, or *") from None
    return entries
