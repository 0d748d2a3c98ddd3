"""Parsers and checks of single settings: each returns the value of a given text, or raises `ValueError`.

The text of the error names the accepted values, as it follows "must be" in a sentence.
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
    """Return the bytes of `5GiB`, `10MB` or `512`."""
    if isinstance(value, bool):
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    return int(Decimal(match[1]) * SIZE_UNITS[(match[2] or "").lower()])


def parse_duration(value: object) -> object:
    """Return the seconds of `24h`, `90s`, `1.5m` or `30`."""
    if isinstance(value, bool):
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if not match:
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    return float(match[1]) * DURATION_UNITS[match[2] or ""]


def refuse_bool(value: object) -> object:
    """Return the value; refuse true and false of a configuration file, which Python takes for integers."""
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def split_list(value: object) -> object:
    """Return the tuple of `a, b`."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def refuse_empty(value: object) -> object:
    """Return the path; refuse an empty one, which would be the working directory."""
    if value == "":
        raise ValueError("a directory")
    return value


def check_host(value: str) -> str:
    """Return the host without brackets; refuse an empty one, which the system takes for every address."""
    if not HOST.fullmatch(value):
        raise ValueError("an address or the name of a host, such as 127.0.0.1, or 0.0.0.0 for every address")
    return value.strip("[]")


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return the origins; refuse one that no browser sends."""
    for origin in origins:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise ValueError("* or origins as browsers send them, such as https://app.example.org, without a path")
    return origins


def check_base_path(value: str) -> str:
    """Return the path with a leading slash; refuse a path of the server itself."""
    path = "/" + value.strip("/")
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("a path such as /files")
    if path in RESERVED_PATHS:
        raise ValueError(f"another path than {', '.join(RESERVED_PATHS)}")
    return path


def check_public_url(value: str) -> str:
    """Return the URL without a trailing slash."""
    if not PUBLIC_URL.fullmatch(value.rstrip("/")):
        raise ValueError("a URL such as https://uploads.example.org")
    try:
        urlsplit(value).port  # noqa: B018 - raises for an invalid port
    except ValueError:
        raise ValueError("a URL such as https://uploads.example.org") from None
    return value.rstrip("/")


def check_endpoint(value: str) -> str:
    """Return the URL of an S3 server; refuse one with a path."""
    if not ENDPOINT.fullmatch(value):
        raise ValueError("a URL such as https://s3.example.org")
    return value


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags; refuse those that S3 does not take."""
    names = {tag.partition("=")[0] for tag in tags}
    if len(tags) > MAX_TAGS or len(names) < len(tags) or not all(TAG.fullmatch(tag) for tag in tags):
        raise ValueError(
            f"at most {MAX_TAGS} different pairs such as project=press,kind=upload,"
            " of letters, digits, spaces and +-=._:/@"
        )
    return tags


def check_redis_url(value: str) -> str:
    """Return the URL; refuse one with unescaped characters in its password."""
    if not REDIS_URL.fullmatch(value):
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


def check_redis_prefix(value: str) -> str:
    """Return the prefix of the keys in Redis."""
    if not REDIS_PREFIX.fullmatch(value):
        raise ValueError("up to 64 letters, digits and :._-")
    return value


def check_file_mode(value: str) -> str:
    """Return the octal permissions of files; refuse those without reading and writing by the owner."""
    if not FILE_MODE.fullmatch(value):
        raise ValueError("an octal number such as 0640 or 0660 in which the owner may read and write")
    return value


def check_directory_mode(value: str) -> str:
    """Return the octal permissions of directories; refuse those that do not give the owner everything."""
    if not DIRECTORY_MODE.fullmatch(value):
        raise ValueError("an octal number such as 0750 or 2770 in which the owner may do everything")
    return value


def check_proxies(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses and networks of proxies."""
    for entry in entries:
        if entry != "*":
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError:
                raise ValueError("addresses or networks such as 127.0.0.1,10.0.0.0/8, or *") from None
    return entries
