"""The application that `tusd-py serve` runs: a tus server, pages or a text at `/`, health checks and metrics."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Unpack

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tusd_py.admin.app import PATH as ADMIN_PATH
from tusd_py.admin.make import build_admin
from tusd_py.admin.metrics_page import PATH as METRICS_PATH, MetricsPage
from tusd_py.contracts.auth import Authenticator
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import UploadError
from tusd_py.http.app import with_headers
from tusd_py.http.mount import TusMount
from tusd_py.http.security_headers import TEXT_HEADERS
from tusd_py.http.text_route import TextRoute
from tusd_py.http.tus.handlers import VERSION
from tusd_py.http.tus.headers import single_values
from tusd_py.pages.routes import admin_page_routes, page_routes
from tusd_py.server import HEAD_TIMEOUT, TusServer
from tusd_py.settings import InvalidSettings, Settings, SettingsOverrides

WELCOME_HEADERS = [(b"tus-resumable", VERSION.encode()), *TEXT_HEADERS]
PLACES_OF_COMMAND = ("admin_port", "metrics_port", "metrics_socket")  # where only `tusd-py serve` listens
WELCOME = """\
This is a tus server: it takes uploads that can be resumed.

Upload with a tus client, and give it this endpoint:  {url}
Clients for browsers, phones and programs:  https://tus.io/implementations
Is the server ready?  /readyz
"""


def create_app(
    settings: Settings | None = None,
    *,
    storage: Storage | None = None,
    state: StateStore | None = None,
    locker: Locker | None = None,
    authenticator: Authenticator | None = None,
    **overrides: Unpack[SettingsOverrides],
) -> Starlette:
    """Build the application that `tusd-py serve` runs: the tus endpoint, /, /healthz, /readyz, /metrics, pages.

    With authentication, or a token for administrators, /admin/api too.

    The arguments are those of `TusServer`, which is `app.state.tus`. The tus endpoint is at the setting `base_path`.

    Example, with `uvicorn module:app`::

        from tusd_py import create_app

        app = create_app(upload_dir="uploads", max_size="5GiB")

    Raises:
        InvalidSettings: a setting is not accepted, or a component lacks a member of its contract.
    """
    server = TusServer(settings, storage=storage, state=state, locker=locker, authenticator=authenticator, **overrides)
    for name in PLACES_OF_COMMAND:
        if getattr(server.settings, name) is not None:
            raise InvalidSettings(f"{name} is for `tusd-py serve` alone, which listens there: leave it out")
    return build_app(server)


def build_app(server: TusServer) -> Starlette:
    """Build the application around a server; what its settings move is in `admin_application`, `metrics_application`.

    Raises:
        InvalidSettings: nobody could be known as an administrator.
    """
    pages = ServicePages(server)
    admin = build_admin(server)
    metrics = MetricsPage(server, admin)
    routes: list[BaseRoute] = [
        *([] if admin is None or server.settings.admin_port is not None else [TusMount(ADMIN_PATH, app=admin)]),
        server.route(server.settings.base_path),
        TextRoute("/healthz", pages.healthz),
        TextRoute("/readyz", pages.readyz),
    ]
    if not (server.settings.disable_metrics or server.settings.moves_metrics):
        routes.append(TextRoute(METRICS_PATH, metrics.get))
    if server.settings.serves_pages:
        routes += page_routes(server)
    app = Starlette(routes=routes, lifespan=server.lifespan)
    app.router.default = pages.default_page
    app.state.tus = server
    app.state.admin = admin
    app.state.metrics = metrics
    return app


def admin_application(app: Starlette) -> ASGIApp:
    """Return the application of the port of administrators, for one made by `build_app`."""
    routes: list[BaseRoute] = [TusMount(ADMIN_PATH, app=app.state.admin)]
    if app.state.tus.settings.serves_pages:
        routes += admin_page_routes(app.state.tus)
    application = Starlette(routes=routes)
    application.router.default = app.state.tus.not_found
    return application


def metrics_application(app: Starlette) -> ASGIApp:
    """Return the application of the port and the socket of metrics, for one made by `build_app`."""
    application = Starlette(routes=[TextRoute(METRICS_PATH, app.state.metrics.get)])
    application.router.default = app.state.tus.not_found
    return application


class ServicePages:
    """The pages of the application beside the uploads: a text at `/` and health checks."""

    def __init__(self, server: TusServer) -> None:
        """Report on `server`."""
        self._server = server

    async def default_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `/` with a text for people, and every other path with 404."""
        server = self._server
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or path not in ("", "/"):
            await server.not_found(scope, receive, send)
            return
        url = server.urls.base(scope, single_values(scope["headers"])) + server.settings.base_path
        await PlainTextResponse(WELCOME.format(url=url))(scope, receive, with_headers(send, WELCOME_HEADERS))

    async def healthz(self, request: Request) -> Response:
        """Answer 200 while the process runs."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 while requests can be served, 503 and the reason otherwise."""
        server = self._server
        if server.is_draining:
            return PlainTextResponse("the server is about to shut down\n", 503)
        error = await server.start_error(HEAD_TIMEOUT)
        try:
            if error is None:
                await server.service.check()
        except UploadError as failure:
            error = failure
        if error is not None:
            return PlainTextResponse(f"{error.message}\n", 503)
        return PlainTextResponse("\n".join(["ready", *server.service.health.limitations, ""]))


def with_direct_uploads(app: Starlette) -> ASGIApp:
    """Return an application like `app`, made by `create_app`, that passes uploads to the server without the middleware.

    Saves the router's and the middleware's share of the cost of a request. Invariant: no middleware has been added to
    `app`, since it would not see the requests.
    """
    server: TusServer = app.state.tus
    base = server.settings.base_path
    below = f"{base}/"
    has_api = server.is_administrated and server.settings.admin_port is None
    if has_api and f"{ADMIN_PATH}/".startswith(below):  # the API is below the uploads
        return app

    def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] in ("http", "websocket") and (scope["path"].startswith(below) or scope["path"] == base):
            scope["app_root_path"] = scope["root_path"]
            scope["root_path"] = base
            return server(scope, receive, send)
        return app(scope, receive, send)

    return dispatch
