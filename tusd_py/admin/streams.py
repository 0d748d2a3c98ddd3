"""The stream of uploads for administrators: the events of live progress, on the path of the API."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import parse_qs

from starlette.types import Send

from tusd_py.admin.access import NoAdministrator
from tusd_py.admin.app import StreamRequest, StreamRoute
from tusd_py.admin.requests import BadParameter
from tusd_py.core.errors import CodedError
from tusd_py.http.access import Unauthorized
from tusd_py.http.body import RequestBody
from tusd_py.http.body_extension import body_extension_of
from tusd_py.http.progress.endpoint import ProgressEndpoint
from tusd_py.http.request import EventStream, Request, Response, WriteLimit
from tusd_py.http.security_headers import TEXT_HEADERS
from tusd_py.http.write_limit import write_limit
from tusd_py.server import TusServer

logger = logging.getLogger("tusd_py.admin")

PARAMETER = "upload"
ADMISSION_INTERVAL = 5.0  # seconds between two looks whether a listener is an administrator still
MAX_UNKNOWN = 60.0  # seconds of a stream whose listener may be none, since that cannot be found out


class StreamRoutes:
    """The stream of one server."""

    def __init__(self, server: TusServer) -> None:
        self._server = server

    def routes(self) -> Sequence[StreamRoute]:
        """Return the routes."""
        return (StreamRoute("uploads/events", "Follow uploads, those named or all.", self.events, (PARAMETER,)),)

    async def events(self, wanted: StreamRequest) -> EventAnswer:
        """Return the events of the uploads that are named, without a name those of all, each from a snapshot on."""
        context, settings = wanted.context, self._server.settings
        query = parse_qs(context.query, keep_blank_values=True)
        if query.keys() - {PARAMETER}:
            raise BadParameter(f"the parameter here is {PARAMETER}")
        scope = dict(context.scope)
        body = RequestBody(wanted.receive, 0, extension=body_extension_of(scope, wanted.receive))
        request = Request(scope, "", body, context.headers, context.method, context.client)
        request.principal = wanted.administrator
        endpoint = ProgressEndpoint(self._server.hub, self._server.service, listening_administrator)
        response = await endpoint.get_several(request)
        limit = partial(write_limit, body, idle_timeout=settings.idle_timeout, min_rate=settings.min_rate)
        return EventAnswer(request, response, limit, wanted.admit)


def listening_administrator(request: Request) -> str:
    """Return the name under which an administrator is counted, which is none of a client of the same name."""
    assert request.principal is not None
    return f"administrator {request.principal.owner}"


class EventAnswer:
    """The answer to a request for events (`tusd_py.admin.app.Stream`)."""

    def __init__(
        self, request: Request, response: Response, limit: WriteLimit, admit: Callable[[], Awaitable[object]]
    ) -> None:
        """Take the response, what bounds the time in which the client takes bytes, and what admits the client."""
        self._request = request
        self._response = response
        self._write_limit = limit
        self._admit = admit

    async def send(self, send: Send) -> None:
        """Send the events, and end them, at the latest some seconds after the client has lost its right to them."""
        events = self._response.events
        if events is None:  # of a HEAD
            self._response.headers["Content-Length"] = "0"
        headers = [*TEXT_HEADERS, *self._response.raw_headers()]
        try:
            await send({"type": "http.response.start", "status": self._response.status, "headers": headers})
            if events is None:
                await send({"type": "http.response.body", "body": b""})
            else:
                await self._send_events(events, send)
        finally:
            if events is not None:
                events.close()
            self._request.body.close()

    async def _send_events(self, events: EventStream, send: Send) -> None:
        lost = asyncio.create_task(self._end_without_right(events))
        try:
            await events.send(self._request, send, self._write_limit)
        finally:
            lost.cancel()

    async def _end_without_right(self, events: EventStream) -> None:
        """End the events once their client is no administrator any more: the token was changed, or taken back."""
        known_at = time.monotonic()
        while time.monotonic() - known_at < MAX_UNKNOWN:
            await asyncio.sleep(ADMISSION_INTERVAL)
            try:
                await self._admit()
                known_at = time.monotonic()
            except (Unauthorized, NoAdministrator):
                break
            except CodedError as error:  # the right cannot be found out now, and was there before
                logger.debug("the right of a listener is not known: %s", error.message)
        events.end()
