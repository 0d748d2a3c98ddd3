"""A client for requests to other services: kept connections, bounded answers, no redirects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import socket
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import httptools

from tusd_py.http_client.response_parser import HttpAnswer, HttpFailure, ResponseParser

READ_SIZE = 64 << 10
MAX_IDLE = 16  # connections to one host that are kept
MAX_CONNECTIONS = 64  # connections to one host at a time; further requests wait, which counts as time for the answer


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """An endpoint. `credentials` is the value of Authorization that user and password of the URL make, or empty."""

    secure: bool
    host: str
    port: int
    target: str
    credentials: str = field(default="", repr=False)

    @property
    def host_header(self) -> str:
        """The value of Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def parse_http_url(url: str) -> HttpUrl:
    """Return the parts of a URL with http or https; raises `ValueError` for any other."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL such as https://HOST/PATH")
    secure = parts.scheme == "https"
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return HttpUrl(
        secure=secure,
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        credentials="" if user == ":" else f"Basic {base64.b64encode(user.encode()).decode()}",
    )


def endpoint_name(url: HttpUrl) -> str:
    """Return the URL without secrets; a query, where tokens are common, is told by a digest."""
    path, question_mark, query = url.target.partition("?")
    digest = hashlib.sha256(query.encode()).hexdigest()[:8] if query else ""
    return f"http{'s' if url.secure else ''}://{url.host_header}{path}{question_mark}{digest}"


class _Reader(asyncio.StreamReader):
    """A reader that counts the bytes which have not been read, and notes the end of the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0
        self.has_ended = False

    def feed_eof(self) -> None:
        self.has_ended = True
        super().feed_eof()

    def feed_data(self, data: Any) -> None:
        self.unread += len(data)
        super().feed_data(data)

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.unread -= len(data)
        return data


@dataclass(eq=False, slots=True)
class _Connection:
    reader: _Reader
    writer: asyncio.StreamWriter
    was_used: bool = False

    def is_usable(self) -> bool:
        """Return whether the connection is open, and no byte came that belongs to no request."""
        return not (self.reader.unread or self.reader.at_eof() or self.writer.is_closing())

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass(eq=False, slots=True)
class _Host:
    """The connections to one host; no more of them are kept once it has sent bytes that belong to no request."""

    idle: list[_Connection] = field(default_factory=list)
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))
    keeps_connections: bool = True


class HttpClient:
    """Requests over connections that are kept while the receiver keeps them."""

    def __init__(self, *, allow_private: bool = True, context: ssl.SSLContext | None = None) -> None:
        """Make a client without any connection.

        Args:
            allow_private: whether addresses that are not of the public internet may be called.
            context: of connections with TLS; None for one that trusts the authorities of the system.
        """
        self._allow_private = allow_private
        self._hosts: dict[tuple[bool, str, int], _Host] = defaultdict(_Host)
        self._context = context
        self._closed = False

    async def post(
        self, url: HttpUrl, headers: Mapping[str, str], body: bytes, timeout: float, *, max_body: int = 64 << 10
    ) -> HttpAnswer:
        """Send a request and return the answer, whatever its status.

        Args:
            url: the endpoint.
            headers: header fields besides Host and Content-Length.
            body: the body.
            timeout: seconds for everything.
            max_body: bytes of the answer at most. Of a longer one, `HttpAnswer.body` is None.

        Raises:
            HttpFailure: there is no answer in time, or it is no HTTP; the text says why.
        """
        return await self._send(url, _request("POST", url, headers, body), timeout, max_body)

    async def get(self, url: HttpUrl, headers: Mapping[str, str], timeout: float, *, max_body: int) -> HttpAnswer:
        """Ask for a document and return the answer, whatever its status; arguments and errors are those of `post`."""
        return await self._send(url, _request("GET", url, headers), timeout, max_body)

    async def _send(self, url: HttpUrl, request: bytes, timeout: float, max_body: int) -> HttpAnswer:
        try:
            async with asyncio.timeout(timeout):
                host = self._hosts[url.secure, url.host, url.port]
                async with host.slots:
                    return await self._exchange(host, url, request, max_body)
        except TimeoutError:
            raise HttpFailure(f"no answer in {timeout:g} s") from None
        except OSError as error:
            raise HttpFailure(error.strerror or str(error) or type(error).__name__) from error
        except UnicodeError as error:
            raise HttpFailure(f"{url.host} is no name of a host") from error

    async def _exchange(self, host: _Host, url: HttpUrl, request: bytes, max_body: int) -> HttpAnswer:
        while True:
            connection = await _take_idle(host) or await self._connect(url)
            parser = ResponseParser(max_body)
            try:
                answer = await _ask(connection, request, parser)
            except (OSError, HttpFailure):
                connection.close()
                if connection.was_used and not parser.has_begun:
                    continue  # the receiver had closed it meanwhile
                raise
            except BaseException:
                connection.close()
                raise
            if parser.has_surplus:
                _distrust(host)
            self._give_back(host, connection, keep=parser.keeps_alive)
            return answer

    def _give_back(self, host: _Host, connection: _Connection, *, keep: bool) -> None:
        keep = keep and host.keeps_connections and not self._closed and len(host.idle) < MAX_IDLE
        if keep and connection.is_usable():
            host.idle.append(connection)
        else:
            connection.close()

    async def _connect(self, url: HttpUrl) -> _Connection:
        if url.secure and self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        address = url.host if self._allow_private else await _public_address(url)
        reader, loop = _Reader(), asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(
            lambda: protocol,
            address,
            url.port,
            ssl=self._context if url.secure else None,
            server_hostname=url.host if url.secure else None,
        )
        return _Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for host in self._hosts.values():
            for connection in host.idle:
                connection.close()
                with contextlib.suppress(Exception):  # of the transport: it is closed either way
                    await connection.writer.wait_closed()
        self._hosts.clear()

    async def open(self) -> None:
        """Keep connections again after `close`."""
        self._closed = False


async def _take_idle(host: _Host) -> _Connection | None:
    """Return a kept connection, on which nothing may have come since its last answer."""
    await asyncio.sleep(0)  # what has come by now is read
    while host.idle:
        connection = host.idle.pop()
        if connection.is_usable():
            connection.was_used = True
            return connection
        if connection.reader.unread and not connection.reader.has_ended:  # else a last word, as 408
            _distrust(host)
        connection.close()
    return None


def _distrust(host: _Host) -> None:
    """Keep no connection to a host that sends bytes after its answers: they would be taken for the next answer."""
    host.keeps_connections = False
    while host.idle:
        host.idle.pop().close()


def _request(method: str, url: HttpUrl, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    fields = {"Host": url.host_header, "User-Agent": "tusd-py", **headers}
    if url.credentials:
        fields.setdefault("Authorization", url.credentials)
    if body is not None:
        fields["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {url.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")


async def _ask(connection: _Connection, request: bytes, parser: ResponseParser) -> HttpAnswer:
    connection.writer.write(request)
    await connection.writer.drain()
    while not parser.is_complete:
        data = await connection.reader.read(READ_SIZE)
        try:
            parser.feed(data)
        except httptools.HttpParserError as error:
            raise HttpFailure("the answer is not HTTP") from error
    return parser.answer()


async def _public_address(url: HttpUrl) -> str:
    """Return an address of the host if all of its addresses are public; raises `HttpFailure`.

    The connection is made to this very address, so that a second answer of the name server changes nothing.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise HttpFailure(f"the address of {url.host} is not known: {error.strerror}") from error
    addresses = [str(place[0]) for *_, place in found]
    for address in addresses:
        if not _is_public(address):
            raise HttpFailure(f"{url.host} has the private address {address}")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast
