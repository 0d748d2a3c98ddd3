"""The ASGI application of the administration API: routes, admission, answers in JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from starlette.types import Receive, Scope, Send

from tusd_py.admin.access import AdminAccess
from tusd_py.admin.requests import AdminRequest, parse_parameters
from tusd_py.contracts.auth import Principal
from tusd_py.core.errors import ClientDisconnected, CodedError, NotReady, UploadNotFound, WriteTimeout
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import is_upload_id
from tusd_py.http.app import first_cause
from tusd_py.http.errors import INTERNAL_ERROR, RETRY_AFTER, ErrorResponse, HTTPError, error_response_for
from tusd_py.http.security_headers import TEXT_HEADERS
from tusd_py.http.tus.headers import single_values
from tusd_py.http.websocket import WebSocketExchange
from tusd_py.observability.log_fields import ADMIN
from tusd_py.observability.logging import log_line

logger = logging.getLogger("tusd_py.admin")
T = TypeVar("T")

PATH = "/admin/api"
MAX_BODY = 4096  # bytes
MAX_REQUESTS = 8  # that are worked on at a time
READ_TIMEOUT = 10.0  # seconds for the body of a request, and for the answer to one that only looks
CHANGE_TIMEOUT = 120.0  # seconds for the answer to a request that ends an upload; the work goes on after it
JSON = b"application/json"
PROBLEM = b"application/problem+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: JSON, nothing for None."""

    document: Any = None
    status: int = 200


class Stream(Protocol):
    """An answer that lasts as long as its client listens."""

    async def send(self, send: Send) -> None:
        """Send the answer to its end; raises `WriteTimeout` if the client does not take it in time."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for a stream.

    Attributes:
        context: the request, without credentials.
        administrator: its sender.
        receive: receives messages of ASGI.
        admit: decides anew whether the sender is an administrator, as `AdminAccess.admit` does.
    """

    context: RequestContext
    administrator: Principal
    receive: Receive
    admit: Callable[[], Awaitable[object]]


Handler: TypeAlias = Callable[[AdminRequest], Awaitable[Answer]]
StreamOpener: TypeAlias = Callable[[StreamRequest], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the API.

    Attributes:
        method: GET, POST or DELETE.
        path: below `PATH`; `{id}` stands for an id.
        summary: the purpose of the route, for its description.
        handler: answers requests.
        parameters: the names of the parameters of its query.
        answers: the name of the schema of its answer; empty without a body.
    """

    method: str
    path: str
    summary: str
    handler: Handler
    parameters: tuple[str, ...] = ()
    answers: str = ""

    @property
    def changes(self) -> bool:
        """Whether the route changes anything."""
        return self.method != "GET"


@dataclass(frozen=True, slots=True)
class StreamRoute:
    """A route of the API whose answer is a stream of Server-Sent Events.

    Attributes:
        path: below `PATH`.
        summary: the purpose of the route, for its description.
        open: begins the answer to a request, whose query it checks itself.
        parameters: the names of the parameters of its query.
    """

    path: str
    summary: str
    open: StreamOpener
    parameters: tuple[str, ...] = ()
    method: str = "GET"


AnyRoute: TypeAlias = Route | StreamRoute


class Busy(CodedError):
    """Too many requests to the API are under way, or one took too long."""

    code = "ERR_BUSY"
    default_message = "the administration is busy; try again"


class AdminApp:
    """The administration API, mounted at `PATH`.

    Attributes:
        access: decides who may administrate.
    """

    def __init__(
        self,
        routes: Sequence[AnyRoute],
        access: AdminAccess,
        client_of: Callable[[Scope, Mapping[str, str]], str],
        start_error: Callable[[float], Awaitable[CodedError | None]],
    ) -> None:
        """Take the routes, and what a request needs.

        Args:
            routes: all routes.
            access: decides who may administrate.
            client_of: returns the address of a client.
            start_error: starts the server unless it runs, within so many seconds; returns the reason why it cannot.
        """
        self._routes = _table(routes)
        self._whole_paths = frozenset(route.path for route in routes if "{id}" not in route.path)
        self.access = access
        self._client_of = client_of
        self._start_error = start_error
        self._turns = asyncio.Semaphore(MAX_REQUESTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a WebSocket is refused before it is accepted."""
        if scope["type"] == "websocket":
            websocket = WebSocketExchange(scope, receive, send)
            scope, receive, send = {**websocket.scope, "type": "websocket"}, websocket.receive_no_body, websocket.send
        started = time.monotonic()
        headers = single_values(list(scope["headers"]))
        context = RequestContext(
            scope["method"],
            scope["path"],
            headers,
            self._client_of(scope, headers),
            query=scope.get("query_string", b"").decode("latin-1"),
            scope=scope,
        )
        line: dict[str, Any] = {"method": context.method, "path": context.path, "client": context.client}
        try:
            await self._respond(context, line, receive, send)
        except ClientDisconnected:
            return
        finally:  # a stream may also end by a cancellation
            if "status" in line:
                line["duration_ms"] = round((time.monotonic() - started) * 1000, 1)
                log_line(ADMIN, logging.INFO, line)

    async def _respond(self, context: RequestContext, line: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, and note in its log line how."""
        try:
            content = await _whole_body(receive)
            answer, extra = await self._answer(context, content, line, receive)
        except ClientDisconnected:
            raise
        except CodedError as error:
            answer, extra = _problem(error_response_of(error))
            line |= {"code": error.code, "refusal": getattr(error, "reason", "")}
            if error.__cause__ is not None:
                logger.error("%s: %s (%s)", error.code, error.message, first_cause(error))
        except Exception:  # a bug: the client gets a plain answer, the log the traceback
            logger.exception("unhandled exception in %s %s", context.method, context.path)
            answer, extra = _problem(INTERNAL_ERROR)
        if isinstance(answer, Answer):
            line["status"] = answer.status
            await _send(answer, extra, send, with_body=context.method != "HEAD")
        else:
            line["status"] = 200
            line["code"] = await _code_of_stream(answer, send)

    async def _answer(
        self, context: RequestContext, content: bytes, line: dict[str, Any], receive: Receive
    ) -> tuple[Answer | Stream, Mapping[str, str]]:
        """Return the answer to a request, and header fields of its own; raises `CodedError`."""
        if context.scope["type"] == "websocket":
            raise HTTPError(404, "ERR_NOT_FOUND", "there is no WebSocket here")
        if context.method == "OPTIONS":  # for everybody, as that of uploads is: it tells nothing of them
            return Answer(status=204), {"Allow": _allowed(self._methods(context)[0])}
        administrator = await self.access.admit(context)
        actor = line["principal"] = administrator.owner
        route, upload_id = self._find(context)
        if len(content) > MAX_BODY:
            raise HTTPError(413, "ERR_BODY_TOO_LARGE", f"the body has at most {MAX_BODY} bytes")
        line["upload" if route.path.startswith("uploads/") else "event"] = upload_id
        told = self.access.told_context(context, actor)
        if isinstance(route, StreamRoute):
            wanted = StreamRequest(told, administrator, receive, partial(self.access.admit, context))
            return await self._in_turn(partial(route.open, wanted), READ_TIMEOUT), {}
        parameters = parse_parameters(context.scope.get("query_string", b""), route.parameters)
        request = AdminRequest(told, upload_id, parameters)
        timeout = CHANGE_TIMEOUT if route.changes else READ_TIMEOUT
        return await self._in_turn(partial(route.handler, request), timeout), {}

    async def _in_turn(self, work: Callable[[], Awaitable[T]], timeout: float) -> T:
        """Return the result of work for a request, once it has its turn and the server runs.

        Raises `Busy` after so many seconds, and `NotReady`.
        """
        try:
            async with asyncio.timeout(timeout), self._turns:
                error = await self._start_error(READ_TIMEOUT)
                if error is not None:
                    raise NotReady from error
                return await work()
        except TimeoutError:
            raise Busy("there was no answer in time; try again") from None

    def _find(self, context: RequestContext) -> tuple[AnyRoute, str]:
        """Return the route of a request, and the id in its path; raises `HTTPError`, `UploadNotFound`."""
        methods, upload_id = self._methods(context)
        method = "GET" if context.method == "HEAD" else context.method
        if method not in methods:
            allowed = _allowed(methods)
            raise HTTPError(405, "ERR_METHOD_NOT_ALLOWED", f"the methods here are {allowed}", {"Allow": allowed})
        if upload_id and not is_upload_id(upload_id):
            raise UploadNotFound
        return methods[method], upload_id

    def _methods(self, context: RequestContext) -> tuple[Mapping[str, AnyRoute], str]:
        """Return the routes of a path by their methods, and the id in the path; raises `HTTPError` without a route."""
        scope = context.scope
        pattern, upload_id = scope["path"].removeprefix(scope.get("root_path", "")).strip("/"), ""
        if pattern not in self._whole_paths:
            words = pattern.split("/")
            upload_id = words[1] if len(words) > 1 else ""
            pattern = "/".join([words[0], *(["{id}"] if len(words) > 1 else []), *words[2:]])
        methods = self._routes.get(pattern)
        if methods is None:
            raise HTTPError(404, "ERR_NOT_FOUND", "there is nothing here")
        return methods, upload_id


def _allowed(methods: Collection[str]) -> str:
    """Return the value of `Allow` for a path with these methods."""
    return ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])


def _table(routes: Sequence[AnyRoute]) -> Mapping[str, Mapping[str, AnyRoute]]:
    table: dict[str, dict[str, AnyRoute]] = {}
    for route in routes:
        table.setdefault(route.path, {})[route.method] = route
    return table


async def _whole_body(receive: Receive) -> bytes:
    """Return the body of a request, or a little more than `MAX_BODY` of it; raises `ClientDisconnected`, `Busy`."""
    content = b""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            while len(content) <= MAX_BODY:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                content += message.get("body", b"")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise Busy("the body did not arrive in time") from None
    return content


def error_response_of(error: CodedError) -> ErrorResponse:
    """Return status, code and message for an error, as clients of uploads see them but for those of this API."""
    if isinstance(error, Busy):
        return ErrorResponse(503, error.code, error.message, retry=True, close=True)
    return error_response_for(error)


def _problem(answer: ErrorResponse) -> tuple[Answer, Mapping[str, str]]:
    document = {"title": answer.message, "status": answer.status, "code": answer.code}
    headers = dict(answer.headers)
    if answer.retry:
        headers["Retry-After"] = RETRY_AFTER
    if answer.close or answer.status == 413:
        headers["Connection"] = "close"
    return Answer(document, answer.status), headers


async def _code_of_stream(stream: Stream, send: Send) -> str:
    """Send a stream; return the code of the error that has ended it, empty without one."""
    try:
        await stream.send(send)
    except WriteTimeout as error:
        return error.code
    except OSError:  # of a server that tells by it that the client has gone
        return ClientDisconnected.code
    return ""


async def _send(answer: Answer, headers: Mapping[str, str], send: Send, *, with_body: bool) -> None:
    body = b"" if answer.document is None else json.dumps(answer.document, separators=(",", ":")).encode()
    fields = [*TEXT_HEADERS, (b"cache-control", b"no-store"), (b"content-length", str(len(body)).encode())]
    if body:
        fields.append((b"content-type", PROBLEM if answer.status >= 400 else JSON))
    else:
        fields = [field for field in fields if field[0] != b"content-length" or answer.status != 204]
    fields += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    with contextlib.suppress(ConnectionError):  # the client has gone
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": body if with_body else b""})
