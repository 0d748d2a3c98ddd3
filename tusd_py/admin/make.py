"""The administration API of a server, if its settings want one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tusd_py.admin.access import AdminAccess, read_admin_token
from tusd_py.admin.app import AdminApp, AnyRoute
from tusd_py.admin.openapi import describe
from tusd_py.admin.overview import OverviewRoutes
from tusd_py.admin.server_routes import ServerRoutes
from tusd_py.admin.streams import StreamRoutes
from tusd_py.admin.uploads import UploadRoutes
from tusd_py.auth.secret_files import SecretFile
from tusd_py.http.cors import CrossOrigin
from tusd_py.server import TusServer
from tusd_py.settings import InvalidSettings, Settings
from tusd_py.settings.sources import is_anyone


def build_admin_token(settings: Settings) -> SecretFile[bytes] | None:
    """Read the token of administrators; None without a file. Blocks. Raises `InvalidSettings`."""
    try:
        return read_admin_token(settings.admin_token_file)
    except ValueError as error:
        raise InvalidSettings(f"admin_token_file: {error}") from error


def build_admin(server: TusServer) -> AdminApp | None:
    """Build the administration API of a server; None unless it has authentication or a token for administrators.

    Blocks: reads the file with the token. Raises `InvalidSettings`.
    """
    token = build_admin_token(server.settings)
    if token is None and server.authenticator is None:
        if server.settings.admin_port is not None:
            raise InvalidSettings("admin_port needs admin_token_file, or authentication")
        return None
    # Any page may upload where the settings say so, but only a page whose owner is known acts for an administrator.
    named = [origin for origin in server.settings.cors_origins if not is_anyone(origin)]
    cross_origin = CrossOrigin(named, credentials=server.settings.cors_credentials)

    def is_own_origin(origin: str, scope: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
        outside = {**scope, "root_path": scope.get("app_root_path", "")}
        scheme, _, rest = server.urls.base(outside, headers).partition("://")
        return origin == f"{scheme}://{rest.partition('/')[0]}" or cross_origin.allows(origin)

    routes: list[AnyRoute] = [*UploadRoutes(server).routes(), *StreamRoutes(server).routes()]
    routes += OverviewRoutes(server).routes()
    routes += ServerRoutes(server, partial(describe, routes)).routes()
    server.is_administrated = True
    return AdminApp(
        routes,
        AdminAccess(token, server.authenticator, is_own_origin),
        server.urls.client,
        server.start_error,
    )
