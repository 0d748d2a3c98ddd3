"""Parsers and checks of single settings: each returns the value of a given text, or raises `ValueError`.

The text of the error names the accepted values, as it follows "must be" in a sentence.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from tusd_py.core.media_types import parse_patterns

FILE_MODE = re.compile(r"0?[67][0-7]{2}")
DIRECTORY_MODE = re.compile(r"[0-3]?7[0-7]{2}")
PUBLIC_URL = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%-]+)*"
)
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._*-]+|\[[0-9A-Fa-f:.]+\])(?::(?:[0-9]{1,5}|\*))?/?")
COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
CLAMD = re.compile(r"unix:/?[^\x00]+|tcp://(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
HOST = re.compile(r"[^\s/?#@\[\]]+|\[[0-9A-Fa-f:.%]+[^\s\[\]]*\]")
PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
RESERVED_PATHS = ("/healthz", "/readyz", "/metrics", "/admin/api")


def check_directory(value: object) -> object:
    """Return the path; refuse other values, and an empty path, which would be the working directory."""
    if value == "" or not isinstance(value, str | Path):
        raise ValueError("a directory")
    return value


def check_host(value: str) -> str:
    """Return the host without brackets; refuse an empty one, which the system takes for every address."""
    if not HOST.fullmatch(value):
        raise ValueError("an address or the name of a host, such as 127.0.0.1, or 0.0.0.0 for every address")
    return value.strip("[]")


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine can connect to a host that a server listens on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return the origins; refuse one that no browser sends."""
    for origin in origins:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise ValueError("* or origins as browsers send them, such as https://app.example.org, without a path")
    return origins


def check_base_path(value: str) -> str:
    """Return the path with a leading slash; refuse a path of the server itself."""
    path = "/" + value.strip("/")
    if not PATH.fullmatch(path):
        raise ValueError("a path such as /files")
    if path in RESERVED_PATHS or path.startswith("/admin/api/"):
        raise ValueError(f"another path than {', '.join(RESERVED_PATHS)}")
    return path


def check_clamd(value: str) -> str:
    """Return the address of clamd; empty for none."""
    if value and not CLAMD.fullmatch(value):
        raise ValueError("unix:PATH or tcp://HOST:PORT, such as unix:/run/clamav/clamd.ctl or tcp://127.0.0.1:3310")
    return value


def check_cookie_name(value: str) -> str:
    """Return the name of a cookie; empty for none."""
    if value and not COOKIE_NAME.fullmatch(value):
        raise ValueError("the name of a cookie, such as session")
    return value


def check_offload_prefix(value: str) -> str:
    """Return the path of a location of the proxy, without a slash at its end."""
    path = "/" + value.strip("/")
    if not PATH.fullmatch(path):
        raise ValueError("a path such as /tusd-py-files")
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


def check_types(types: tuple[str, ...]) -> tuple[str, ...]:
    """Return a list of media types and patterns such as `image/*`, in lower case."""
    return parse_patterns(types)


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
