"""The URLs of uploads as clients see them, behind proxies and below mounts."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from starlette.types import Scope

from tusd_py.core.upload import is_upload_id
from tusd_py.http.tus.headers import InvalidHeader

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

logger = logging.getLogger("tusd_py.http")

HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
FORWARDED_PAIR = re.compile(r'\s*([A-Za-z]+)=(?:"([^"]*)"|([^";,\s]*))\s*')
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class TrustedProxies:
    """The peers whose forwarding headers are believed: addresses and networks, or `*` for every peer."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._all = "*" in entries
        self._networks: list[Network] = [ipaddress.ip_network(entry, strict=False) for entry in entries if entry != "*"]

    def trusts(self, address: str) -> bool:
        if self._all or not self._networks:
            return self._all
        try:
            ip = ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # an IPv4 peer on a socket for both families
        return any(ip in network for network in self._networks)

    def hops(self, peer: str, forwarded_for: Sequence[str]) -> int:
        """Return the number of entries of a forwarding header, from the right, that trusted proxies have written."""
        if not self.trusts(peer):
            return 0
        count = 1
        for address in reversed(forwarded_for):
            if not self.trusts(_without_port(address)):
                break
            count += 1
        return count


class UrlBuilder:
    """Builder of the creation URL and of client addresses, from the setting `public_url` or forwarding headers."""

    def __init__(self, public_url: str | None, proxies: TrustedProxies) -> None:
        self._public_url = public_url.rstrip("/") if public_url else None
        self._proxies = proxies
        self._proxy_warning_logged = public_url is not None  # `public_url` makes forwarding headers needless

    def base(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """Return the absolute creation URL, without a slash at its end."""
        server_prefix: str = scope.get("app_root_path", "")
        mounted_at: str = scope.get("root_path", "").removeprefix(server_prefix)
        if self._public_url is not None:
            return self._public_url + mounted_at
        scheme: str = scope.get("scheme", "http")
        forwarded = self._forwarded(scope, headers)
        if not forwarded:
            host = _own_host(scope, headers).removesuffix(DEFAULT_PORTS.get(scheme, "-"))
            return f"{scheme}://{host}{server_prefix}{mounted_at}"
        if forwarded.get("proto", "").lower() in DEFAULT_PORTS:
            scheme = forwarded["proto"].lower()
        host = forwarded.get("host", "")
        if not _is_host(host):
            host = _own_host(scope, headers)
        host = host.removesuffix(DEFAULT_PORTS.get(scheme, "-"))
        prefix = forwarded.get("prefix", "").rstrip("/")
        if not PREFIX.fullmatch(prefix):
            prefix = server_prefix
        return f"{scheme}://{host}{prefix}{mounted_at}"

    def client(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """Return the address of the client as told by trusted proxies, otherwise of the peer."""
        forwarded = self._forwarded(scope, headers)
        return (_without_port(forwarded.get("for", "")) if forwarded else "") or _peer(scope)

    def is_behind_proxy(self, scope: Scope) -> bool:
        """Return whether a trusted proxy sent this request."""
        return self._proxies.trusts(_peer(scope))

    def _warn_about_untrusted_proxy(self, peer: str) -> None:
        """Log once that URLs may be wrong, mostly because a proxy is missing in `trusted_proxies`."""
        self._proxy_warning_logged = True
        logger.warning(
            "X-Forwarded-* or Forwarded from %s is ignored, so that Location may have a scheme and host that clients"
            " cannot reach: if this is your proxy, name it in trusted_proxies, or set public_url",
            peer or "an unknown peer",
        )

    def _forwarded(self, scope: Scope, headers: Mapping[str, str]) -> dict[str, str]:
        """Return for, proto, host and prefix as trusted proxies report them.

        `Forwarded` (RFC 7239) wins over `X-Forwarded-*`.
        """
        peer = _peer(scope)
        if not self._proxies.trusts(peer):
            if not self._proxy_warning_logged and _has_forwarding_field(headers):
                self._warn_about_untrusted_proxy(peer)
            return {}
        if "forwarded" in headers:
            elements = [_parse_forwarded(element) for element in headers["forwarded"].split(",")]
            hops = self._proxies.hops(peer, [element.get("for", "") for element in elements])
            return elements[-min(hops, len(elements))]
        addresses = _split_list(headers.get("x-forwarded-for", ""))
        hops = self._proxies.hops(peer, addresses)
        forwarded = {}
        for name in ("for", "proto", "host", "prefix"):
            values = _split_list(headers.get(f"x-forwarded-{name}", ""))
            if values:
                forwarded[name] = values[-min(hops, len(values))]
        port = _split_list(headers.get("x-forwarded-port", ""))
        if "host" in forwarded and ":" not in forwarded["host"] and port:
            forwarded["host"] += f":{port[-min(hops, len(port))]}"
        return forwarded


def upload_id_of(url: str) -> str:
    """Return the id in the URL of an upload: its last segment, with or without a slash after it.

    Host and folder are ignored, since a proxy may have rewritten them on their way to the client. Raises
    `InvalidHeader` if there is no id.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidHeader("Upload-Concat names something that is not a URL", "ERR_INVALID_CONCAT") from None
    upload_id = unquote(parts.path.removesuffix("/").rpartition("/")[2])
    is_list = "," in parts.path  # several header fields joined into one: no URL of an upload has a comma
    if is_list or (parts.scheme or "http") not in DEFAULT_PORTS or not is_upload_id(upload_id):
        raise InvalidHeader("Upload-Concat names something that is not an upload", "ERR_INVALID_CONCAT")
    return upload_id


def _is_host(text: str) -> bool:
    match = HOST.fullmatch(text)
    return match is not None and int(match[1] or 0) < 1 << 16


def _split_list(text: str) -> list[str]:
    return [value.strip() for value in text.split(",") if value.strip()]


def _parse_forwarded(element: str) -> dict[str, str]:
    pairs = {}
    for part in element.split(";"):
        match = FORWARDED_PAIR.fullmatch(part)
        if match:
            name, quoted, plain = match.groups()
            pairs[name.lower()] = quoted if quoted is not None else plain
    return pairs


def _without_port(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _has_forwarding_field(headers: Mapping[str, str]) -> bool:
    return "forwarded" in headers or "x-forwarded-proto" in headers or "x-forwarded-host" in headers


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _own_host(scope: Scope, headers: Mapping[str, str]) -> str:
    host = headers.get("host", "")
    if _is_host(host):
        return host
    server = scope.get("server")
    if not server:
        return "localhost"
    name, port = server
    name = f"[{name}]" if ":" in name else name
    return f"{name}:{port}" if port else "localhost"
