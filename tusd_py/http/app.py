"""The ASGI application of uploads: routes requests to a protocol adapter, sends responses, publishes one event each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import (
    ClientDisconnected,
    CodedError,
    ContentRefused,
    MaxSizeExceeded,
    NotReady,
    QuotaExceeded,
    ServerShutdown,
    StorageUnavailable,
    UploadNotFound,
    WriteTimeout,
)
from tusd_py.core.upload import is_upload_id
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished
from tusd_py.http.access import AccessControl
from tusd_py.http.body import RequestBody
from tusd_py.http.body_extension import body_extension_of
from tusd_py.http.cors import CrossOrigin, RawHeaders
from tusd_py.http.errors import (
    HTTPError,
)
from tusd_py.http.page_origin import check_page
from tusd_py.http.request import (
    FILE_SENDING,
    CommonHeaders,
    FileBody,
    Handler,
    Request,
    Response,
    declared_size,
    method_of,
    responder_of,
    sends_files,
)
from tusd_py.http.tus.headers import single_values
from tusd_py.http.urls import UrlBuilder
from tusd_py.http.websocket import WebSocketExchange
from tusd_py.http.write_limit import write_limit
from tusd_py.transfer.budget import BufferPool

logger = logging.getLogger("tusd_py.http")

UNROUTED = "tusd_py.unrouted"  # scope key of a request that is answered 404, whatever its path
NOT_READY = "tusd_py.not_ready"  # scope key of a request that came before the server could start
ARRIVED_AT = "tusd_py.arrived_at"  # scope key of the arrival of a request that waited, in the time of the event loop
MAX_DRAIN_BYTES = 64 << 10  # bytes of a refused body that are read and dropped so that the connection can be kept
LINGERING_CLOSE_TIMEOUT = 2.0  # seconds of reading and dropping a refused body before the connection is closed
LAST_ANSWER_TIMEOUT = 1.0  # seconds of sending the answer to a request that was cancelled at the shutdown
HEAD_TIMEOUT = 1.95  # seconds until a HEAD is told to ask later
REQUEST_ID_LENGTH = 64
FILE_PIECE = 64 << 20  # bytes of a file that the server sends at a time, and counts as sent
REFUSALS = (ContentRefused, MaxSizeExceeded, QuotaExceeded)  # of limits and checks: the log tells their sentences
NGINX_HEADER_LIMIT = 3500  # bytes of metadata and concat header that nginx passes on by default (4 KiB for all)


class ProtocolAdapter(Protocol):
    """The rules of one upload protocol that concern every request: routes, common headers, rendering of errors."""

    @property
    def common_headers(self) -> RawHeaders:
        """Header fields of every response, errors and preflights included."""

    def route(self, request: Request) -> Handler:
        """Find the handler of a request; raises `CodedError`."""

    def error_response(self, request: Request, error: CodedError | None) -> Response:
        """Render an error as a response; None stands for a bug."""


class UploadApp:
    """The ASGI application for `/` (creation), `/{id}` and `/{id}/{sub-resource}` below its mount point."""

    def __init__(
        self,
        protocol: ProtocolAdapter,
        events: EventBus,
        urls: UrlBuilder,
        pool: BufferPool,
        cross_origin: CrossOrigin,
        *,
        idle_timeout: float,
        min_rate: float,
        is_draining: Callable[[], bool],
        access: AccessControl | None = None,
    ) -> None:
        """Take the timeout in seconds, the rate in bytes a second, and whether the server is about to end.

        `access` decides about requests; without it all are let in.
        """
        self._access = access
        self._is_draining = is_draining
        self._protocol = protocol
        self._events = events
        self._urls = urls
        self._pool = pool
        self._cross_origin = cross_origin
        self._common_headers = CommonHeaders(protocol.common_headers, cross_origin)
        self._idle_timeout = idle_timeout
        self._min_rate = min_rate
        self._warned_about_header_size = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        extension = body_extension_of(scope, receive)
        websocket = None
        if scope["type"] == "websocket":
            websocket = WebSocketExchange(scope, receive, send)
            scope, receive, send = websocket.scope, websocket.receive_no_body, websocket.send
        # Copied, since a server may append trailers to this list later.
        headers = single_values(list(scope["headers"]))
        preflight = self._cross_origin.preflight(scope, headers)
        if preflight is not None:
            await preflight(scope, receive, with_headers(send, self._protocol.common_headers))
            return
        body = RequestBody(
            receive,
            0,
            idle_timeout=self._idle_timeout,
            min_rate=self._min_rate,
            offers_upgrade="upgrade" in headers,
            expects_continue=headers.get("expect", "").lower() == "100-continue",
            extension=extension,
            pool=self._pool,
        )
        method = method_of(scope, headers) if websocket is None else "GET"
        request = Request(scope, "", body, headers, method, self._urls.client(scope, headers))
        request.websocket = websocket
        request.sends_files = sends_files(scope, send)
        if request.is_head:
            request.deadline = scope.get(ARRIVED_AT, asyncio.get_running_loop().time()) + HEAD_TIMEOUT
        status, code = 0, "ERR_CLIENT_DISCONNECTED"
        response: Response | None = None
        try:
            response = await self._respond(request)
            if response is not None:
                await self._send(request, response, send)
                status, code = response.status, response.error_code
        except CodedError as error:  # while the response was being sent: the server closes the connection
            code = error.code
            if error.__cause__ is not None:
                logger.error("%s: %s (%s)", code, error.message, first_cause(error))
        except asyncio.CancelledError:
            if response is None and self._is_draining():
                status, code = await self._send_shutdown(request, send)
            raise
        finally:
            body.close()
            self._events.publish(_finished(request, status, code, started))

    async def _respond(self, request: Request) -> Response | None:
        """Run the handler of a request and return its response, or None if the client has disconnected."""
        try:
            request.body.declared_size = declared_size(request.headers)
            handler = self._route(request)
            if request.websocket is not None:
                check_page(request, self._cross_origin, self._urls)
            if self._access is not None:
                await self._access.admit(request)
            return await handler(request)
        except ClientDisconnected:
            return None
        except CodedError as error:
            if error.__cause__ is not None:
                details = error if logger.isEnabledFor(logging.DEBUG) else None
                logger.error("%s: %s (%s)", error.code, error.message, first_cause(error), exc_info=details)
            if isinstance(error, REFUSALS):
                request.refusal = error.message
            return self._protocol.error_response(request, error)
        except Exception:  # a bug: the client gets a plain answer, the log the traceback
            logger.exception("unhandled exception in %s %s", request.method, request.path)
            return self._protocol.error_response(request, None)

    async def _send_shutdown(self, request: Request, send: Send) -> tuple[int, str]:
        """Answer a request that was cancelled at the end of the shutdown grace: uvicorn would answer 500.

        Returns status and code of the answer.
        """
        response = self._protocol.error_response(request, ServerShutdown())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWER_TIMEOUT):
                await self._send_start(request, response, send)
                await send({"type": "http.response.body", "body": response.body})
        return response.status, response.error_code

    async def _send(self, request: Request, response: Response, send: Send) -> None:
        if response.file is not None:
            try:
                await self._send_start(request, response, send)
                await self._send_messages(request, _file_messages(response.file), send)
            finally:
                response.file.file.close()
        elif response.events is not None:
            try:
                await self._send_start(request, response, send)
                await response.events.send(request, send, partial(self._write_timeout, request))
            finally:
                response.events.close()
        elif response.stream is not None:
            async with contextlib.aclosing(response.stream) as stream:
                await self._send_start(request, response, send)
                await self._send_messages(request, _messages(response.body, stream), send)
        elif request.body.is_watched:
            await self._send_whole(request, response, send)
        else:
            if request.has_body and not request.body.ended and not request.awaits_continue:
                await request.body.discard(0)  # the rest of the body has mostly arrived already
            async with self._write_timeout(request, 0):
                await self._send_whole(request, response, send)

    async def _send_start(self, request: Request, response: Response, send: Send) -> None:
        common = self._common_headers.to(request.headers.get("origin"))
        headers = [*response.raw_headers(), *common.raw]
        request.answered_at = time.monotonic()
        await send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def _send_whole(self, request: Request, response: Response, send: Send) -> None:
        closes = _must_close(request)
        if closes:
            response.headers["Connection"] = "close"
        if response.status not in (204, 304):
            response.headers.setdefault("Content-Length", str(len(response.body)))
        self._warn_about_header_size(request, response)
        if not closes and self._send_by_responder(request, response, send):
            return
        await self._send_start(request, response, send)
        if closes and not request.awaits_continue:
            await send({"type": "http.response.body", "body": response.body, "more_body": True})
            await request.body.discard(LINGERING_CLOSE_TIMEOUT)
            response.body = b""
        await send({"type": "http.response.body", "body": response.body})

    def _send_by_responder(self, request: Request, response: Response, send: Send) -> bool:
        """Send the whole response in one call of the server; return False if it must be sent in ASGI messages."""
        responder = responder_of(request.scope, send)
        if responder is None:
            return False
        common = self._common_headers.to(request.headers.get("origin"))
        close = "Connection" in response.headers  # "close" is the only value that is ever sent
        request.answered_at = time.monotonic()
        return responder.respond(response.status, response.header_lines() + common.lines, response.body, close=close)

    def _warn_about_header_size(self, request: Request, response: Response) -> None:
        """Log once that the header fields of an upload are longer than a proxy may pass on."""
        sent = len(response.headers.get("Upload-Metadata", "")) + len(response.headers.get("Upload-Concat", ""))
        if self._warned_about_header_size or sent <= NGINX_HEADER_LIMIT:
            return
        if self._urls.is_behind_proxy(request.scope):
            self._warned_about_header_size = True
            logger.warning(
                "the fields of upload %s are longer than nginx passes on by default: it answers 502 and clients begin"
                " again, unless proxy_buffer_size is raised as in deploy/nginx.conf",
                request.upload_id,
            )

    async def _send_messages(self, request: Request, messages: AsyncIterator[tuple[int, Message]], send: Send) -> None:
        """Send the messages of a body, each with the number of its bytes."""
        # Servers drop without an error what is sent to a client that has disconnected; only `receive` reports it.
        gone = asyncio.ensure_future(request.body.wait_for_disconnect())
        try:
            async for size, message in messages:
                if gone.done():
                    raise WriteTimeout if request.body.reader_timed_out else ClientDisconnected
                async with self._write_timeout(request, size):
                    await send(message)
                    # The empty message makes the server wait until the client has taken almost all of the bytes
                    # before it, and only then are more bytes read.
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                request.bytes_sent += size
            if request.body.reader_timed_out:
                raise WriteTimeout
            await send({"type": "http.response.body", "body": b""})
        except ConnectionError:  # the server tells it of files
            raise WriteTimeout if request.body.reader_timed_out else ClientDisconnected from None
        except OSError as error:  # of the file
            raise StorageUnavailable from error
        finally:
            gone.cancel()

    def _write_timeout(self, request: Request, size: int) -> AbstractAsyncContextManager[None]:
        """Return the bound of the time in which the client takes `size` bytes."""
        return write_limit(request.body, size, idle_timeout=self._idle_timeout, min_rate=self._min_rate)

    def _route(self, request: Request) -> Handler:
        scope = request.scope
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if UNROUTED in scope:
            raise HTTPError(404, "ERR_NOT_FOUND", "there is nothing here")
        if path not in ("", "/"):
            upload_id, slash, request.sub_resource = _without_slash(path[1:], scope).partition("/")
            if not is_upload_id(upload_id) or (slash and not request.sub_resource):
                raise UploadNotFound
            request.upload_id = upload_id
        handler = self._protocol.route(request)
        if NOT_READY in scope and request.method != "OPTIONS":
            raise NotReady
        return handler


async def _messages(first: bytes, stream: AsyncIterator[Buffer]) -> AsyncIterator[tuple[int, Message]]:
    if first:
        yield len(first), {"type": "http.response.body", "body": first, "more_body": True}
    async for data in stream:
        yield len(data), {"type": "http.response.body", "body": data, "more_body": True}


async def _file_messages(body: FileBody) -> AsyncIterator[tuple[int, Message]]:
    for start in range(body.start, body.end, FILE_PIECE):
        size = min(FILE_PIECE, body.end - start)
        yield (
            size,
            {
                "type": FILE_SENDING,
                "file": body.file.descriptor,
                "offset": start,
                "count": size,
                "more_body": True,
            },
        )


def _finished(request: Request, status: int, code: str, started: float) -> RequestFinished:
    answered_at = request.answered_at
    return RequestFinished(
        method=request.method,
        path=request.path,
        status=status,
        seconds=time.monotonic() - started,
        error_code=code,
        upload_id=request.upload_id,
        bytes_received=request.body.bytes_received,
        bytes_sent=request.bytes_sent,
        offset_before=request.offset_before,
        offset_after=request.offset_after,
        client=request.client,
        request_id=request.headers.get("x-request-id", "")[:REQUEST_ID_LENGTH],
        principal="" if request.principal is None else request.principal.owner,
        refusal=request.refusal,
        is_stream=request.is_stream,
        first_byte=None if answered_at is None else answered_at - started,
    )


def _without_slash(path: str, scope: Scope) -> str:
    """Return the path without a slash at its end, unless that was encoded and so is a part of the name."""
    if path.endswith("/") and not (scope.get("raw_path") or b"").lower().endswith(b"%2f"):
        return path[:-1]
    return path


def first_cause(error: BaseException) -> str:
    """Return the message of the first cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())


def with_headers(send: Send, headers: RawHeaders) -> Send:
    """Add header fields to the response that goes through `send`."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_with_headers


def _must_close(request: Request) -> bool:
    """Return whether to close the connection because more of the body may follow than is worth reading."""
    if request.body.ended or not request.has_body:
        return False
    if request.awaits_continue:  # the client may send the body or the next request: the server cannot tell them apart
        return True
    size = request.body.declared_size
    ignored = MAX_DRAIN_BYTES if request.body.is_watched else 0
    return size is None or size - request.body.bytes_received > ignored
