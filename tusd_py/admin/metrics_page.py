"""The metrics of a server as a page, for everybody or for those who may read them."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response

from tusd_py.admin.access import AdminAccess
from tusd_py.admin.app import AdminApp
from tusd_py.contracts.auth import METRICS_SCOPE
from tusd_py.core.errors import CodedError
from tusd_py.core.request_context import RequestContext
from tusd_py.http.errors import error_response_for, render
from tusd_py.http.tus.headers import single_values
from tusd_py.observability.log_fields import ADMIN
from tusd_py.observability.logging import log_line
from tusd_py.observability.metrics import CONTENT_TYPE
from tusd_py.server import TusServer
from tusd_py.settings import InvalidSettings

PATH = "/metrics"


class MetricsPage:
    """The answer to requests for the metrics."""

    def __init__(self, server: TusServer, admin: AdminApp | None) -> None:
        """Serve the metrics of `server`; with the setting `metrics_auth` for those that `admin` knows.

        Raises:
            InvalidSettings: `metrics_auth` is set, and nothing tells administrators from others.
        """
        self._server = server
        self._rendering: asyncio.Task[bytes] | None = None
        self._access: AdminAccess | None = None
        if server.settings.metrics_auth:
            if admin is None:
                raise InvalidSettings("metrics_auth needs admin_token_file, or authentication")
            self._access = admin.access

    async def get(self, request: Request) -> Response:
        """Answer with the metrics of all processes, in the text format of Prometheus."""
        if self._access is not None:
            refusal = await self._refusal(request, self._access)
            if refusal is not None:
                return refusal
        return Response(await self._rendered(), media_type=CONTENT_TYPE)

    async def _rendered(self) -> bytes:
        """Return the metrics; requests at the same time share them, so that any number of these takes one thread."""
        rendering = self._rendering
        if rendering is None or rendering.done() or rendering.get_loop() is not asyncio.get_running_loop():
            rendering = asyncio.create_task(asyncio.to_thread(self._server.metrics.render))
            self._rendering = rendering
        return await asyncio.shield(rendering)

    async def _refusal(self, request: Request, access: AdminAccess) -> Response | None:
        """Return the answer to a request that may not read the metrics, which is logged; None if it may."""
        scope = request.scope
        headers = single_values(list(scope["headers"]))
        client = self._server.urls.client(scope, headers)
        context = RequestContext(scope["method"], scope["path"], headers, client, scope=scope)
        try:
            await access.admit(context, METRICS_SCOPE)
        except CodedError as error:
            answer = error_response_for(error)
            line = {"method": context.method, "path": context.path, "client": client, "code": answer.code}
            log_line(ADMIN, logging.INFO, {**line, "status": answer.status, "refusal": getattr(error, "reason", "")})
            media_type, body = render(answer, headers.get("accept", ""))
            return Response(body, answer.status, dict(answer.headers), media_type)
        return None
