"""Routes whose every answer has the header fields of its kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tusd_py.http.app import with_headers
from tusd_py.http.cors import RawHeaders
from tusd_py.http.errors import HTTPError, error_response_for, render
from tusd_py.http.security_headers import TEXT_HEADERS


class TextRoute(Route):
    """A route whose every answer has these header fields, also that to a method it does not take."""

    def __init__(
        self, path: str, endpoint: Callable[[Request], Awaitable[Response]], headers: RawHeaders = TEXT_HEADERS
    ) -> None:
        """Answer GET and HEAD of `path`; the header fields are those of texts unless others are given."""
        super().__init__(path, endpoint)
        self._headers = headers

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to the path of the route."""
        send = with_headers(send, self._headers)
        if self.methods and scope["method"] not in self.methods:
            allowed = ", ".join(sorted(self.methods))
            error = HTTPError(405, "ERR_METHOD_NOT_ALLOWED", f"the methods here are {allowed}", {"Allow": allowed})
            await error_answer(error, Headers(scope=scope))(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def error_answer(error: HTTPError, headers: Headers) -> Response:
    """Return the answer to a request with these header fields, in the form of errors of uploads."""
    media_type, body = render(error_response_for(error), headers.get("accept", ""))
    return Response(body, error.status, {"Cache-Control": "no-store", **error.headers}, media_type)
