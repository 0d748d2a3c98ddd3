"""The protocol adapter of tus 1.0.0: its routes, common headers and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tusd_py.contracts.auth import Action
from tusd_py.core.errors import CodedError, HookRejected, OffsetMismatch, UploadNotFound
from tusd_py.http.cors import RawHeaders
from tusd_py.http.errors import INTERNAL_ERROR, RETRY_AFTER, TRY_LATER, HTTPError, error_response_for, render
from tusd_py.http.hook_answers import rejected, with_fields
from tusd_py.http.progress.endpoint import EVENTS, ProgressEndpoint
from tusd_py.http.request import Handler, Request, Response
from tusd_py.http.security_headers import SECURITY_HEADERS
from tusd_py.http.tus.handlers import VERSION, TusHandlers
from tusd_py.http.tus.headers import format_date

COMMON_HEADERS: RawHeaders = [(b"tus-resumable", VERSION.encode()), *SECURITY_HEADERS]
CREATION_URL = "give this URL to a tus client (https://tus.io/implementations) as its endpoint; "


class MethodNotAllowed(HTTPError):
    """A request whose method its URL does not take; `allowed` are the methods that it takes."""

    def __init__(self, allowed: Sequence[str], hint: str = "") -> None:
        methods = ", ".join(allowed)
        super().__init__(405, "ERR_METHOD_NOT_ALLOWED", f"{hint}the methods here are {methods}", {"Allow": methods})


class TusProtocol:
    """The rules of tus 1.0.0 that concern every request (`tusd_py.http.app.ProtocolAdapter`)."""

    common_headers = COMMON_HEADERS

    def __init__(self, handlers: TusHandlers, progress: ProgressEndpoint | None = None) -> None:
        """Without `progress` there are no events of uploads."""
        self._handlers = handlers
        self._progress = progress
        self._on_events: Mapping[str, Handler] = {}
        self._on_events_of_several: Mapping[str, Handler] = {}
        if progress is not None:
            options = handlers.options
            self._on_events = {"OPTIONS": options, "GET": progress.get, "HEAD": progress.head}
            several = {"GET": progress.get_several, "HEAD": progress.head_several}
            self._on_events_of_several = {"OPTIONS": options, **several}

    def route(self, request: Request) -> Handler:
        """Find the handler of a request to the creation URL, to an upload or to its events.

        Raises `UploadNotFound` for any other sub-resource, or a WebSocket to anything but events, and
        `MethodNotAllowed`.
        """
        if request.sub_resource or (request.upload_id == EVENTS and self._progress is not None):
            return self._route_events(request)
        if request.websocket is not None:
            raise UploadNotFound
        methods = self._handlers.on_upload if request.upload_id else self._handlers.on_creation_url
        handler = methods.get(request.method)
        if handler is None:
            raise MethodNotAllowed(list(methods), "" if request.upload_id else CREATION_URL)
        return handler

    def _route_events(self, request: Request) -> Handler:
        """Find the handler of the events of one upload, or of several below the creation URL."""
        if self._progress is None or request.sub_resource not in ("", EVENTS):
            raise UploadNotFound
        methods = self._on_events
        if not request.sub_resource:
            request.upload_id = ""
            methods = self._on_events_of_several
        handler = methods.get(request.method)
        if handler is None:
            raise MethodNotAllowed(list(methods))
        request.purpose = Action.INSPECT
        return handler

    def error_response(self, request: Request, error: CodedError | None) -> Response:
        """Render an error as a response; None stands for a bug, of which the client learns no details.

        Clients start a new upload at byte 0 when HEAD answers 5xx: HEAD answers 423 instead.
        """
        answer = INTERNAL_ERROR if error is None else error_response_for(error)
        if request.is_head and answer.status >= 500:
            answer = TRY_LATER
        content_type, body = render(answer, request.headers.get("accept", ""))
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        if isinstance(error, HookRejected):
            return rejected(Response(answer.status, with_fields(headers, answer.headers), body, error_code=answer.code))
        headers |= answer.headers
        if request.location:
            headers["Location"] = request.location
        if isinstance(error, OffsetMismatch):
            headers["Upload-Offset"] = str(error.offset)
            request.offset_after = error.offset
        if request.expires_at is not None:
            headers["Upload-Expires"] = format_date(request.expires_at)
        if answer.retry:
            headers["Retry-After"] = RETRY_AFTER
        if answer.close:
            headers["Connection"] = "close"
        return Response(answer.status, headers, body, error_code=answer.code)
