"""The administration API without sockets: its log lines, however a request ends."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tusd_py.admin.app import AdminApp, StreamRoute

PATH = "/admin/api/uploads/events"


class Stream:
    """An answer that ends by an error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def send(self, send: object) -> None:
        raise self._error


class Access:
    """Access for everybody."""

    async def admit(self, context: object) -> Any:
        return SimpleNamespace(owner="ann")

    def told_context(self, context: object, actor: str) -> object:
        return context


def application(error: BaseException) -> AdminApp:
    async def open_stream(request: object) -> Any:
        return Stream(error)

    async def start_error(timeout: float) -> None:
        return None

    access: Any = Access()
    route = StreamRoute("uploads/events", "follow uploads", open_stream, ())
    return AdminApp([route], access, lambda scope, headers: "192.0.2.1", start_error)


async def call(app: AdminApp, scope: dict[str, Any]) -> list[Any]:
    sent = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    root = {"path": PATH, "root_path": "/admin/api", "headers": [], "query_string": b""}
    await app(root | scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (ConnectionResetError("the client has gone"), "code=ERR_CLIENT_DISCONNECTED"),
        (asyncio.CancelledError(), "status=200"),
    ],
)
async def test_stream_that_ends_by_an_error_is_a_line_of_the_log(
    error: BaseException, fields: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    try:
        await call(application(error), {"type": "http", "method": "GET"})
    except asyncio.CancelledError:
        assert isinstance(error, asyncio.CancelledError)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("admin ")]
    assert f"path={PATH}" in line
    assert fields in line


async def test_websocket_is_refused_like_a_request_without_a_route(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    start, body = await call(application(OSError()), {"type": "websocket", "scheme": "ws", "extensions": extensions})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert (b"x-content-type-options", b"nosniff") in start["headers"]
    assert b'"code":"ERR_NOT_FOUND"' in body["body"]
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("admin ")]
    assert "status=404" in line
