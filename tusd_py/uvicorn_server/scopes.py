"""The ASGI scope and the application of a request whose head is complete."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tusd_py.uvicorn_server.framing import request_target


def http_scope(connection: HttpToolsProtocol, version: str) -> Any:
    """Return the ASGI scope of the request that the parser of a connection has read."""
    path, raw_path, query = request_target(connection.url)
    root_path = connection.root_path
    return {
        "type": "http",
        "asgi": {"version": connection.asgi_version, "spec_version": "2.3"},
        "http_version": version,
        "server": connection.server,
        "client": connection.client,
        "scheme": connection.scheme,
        "method": connection.parser.get_method().decode("ascii"),
        "root_path": root_path,
        "path": root_path + path,
        "raw_path": root_path.encode("ascii") + raw_path,
        "query_string": query,
        "headers": connection.headers,
        "state": connection.app_state.copy(),
    }


def application_of(connection: HttpToolsProtocol) -> Any:
    """Return the application, or the one that answers 503 beyond uvicorn's `--limit-concurrency`."""
    limit = connection.limit_concurrency
    if limit is None or (len(connection.connections) < limit and len(connection.tasks) < limit):
        return connection.app
    connection.logger.warning("Exceeded concurrency limit.")
    return service_unavailable
