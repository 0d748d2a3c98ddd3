"""A WebSocket in a browser: its own page follows an upload, one of another origin does if that is allowed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.browser import Browser, Page
from tests.support.harness import serving
from tests.support.http_endpoint import EndpointHandler, HTTPEndpoint
from tests.support.wire.requests import create, patch

FOLLOW = """
(() => {
  window.heard = []
  const socket = new WebSocket(%s)
  socket.onmessage = ({ data }) => window.heard.push(JSON.parse(data).type)
  socket.onclose = ({ code }) => window.heard.push(code)
  return true
})()
"""


class _Handler(EndpointHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page</title><link rel=icon href=data:,>")


class ForeignSite(HTTPEndpoint):
    """A site whose page has no policy: its browser lets it connect to any server."""

    handler = _Handler

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def follow(page: Page, port: int, path: str) -> None:
    assert page.value(FOLLOW % json.dumps(f"ws://127.0.0.1:{port}{path}/events"))


def test_page_of_the_server_follows_and_another_one_does_not(tmp_path: Path, browser: Browser) -> None:
    with ForeignSite() as site, serving(tmp_path, cors_origins="") as server:
        path = create(server.port, 4)
        with browser.page() as own, browser.page() as foreign:
            own.goto(f"{server.origin}/")
            foreign.goto(f"{site.origin}/")
            follow(own, server.port, path)
            follow(foreign, server.port, path)
            own.until("window.heard.includes('snapshot')")
            foreign.until("window.heard.length > 0")
            assert foreign.value("window.heard") == [1006]
            assert patch(server.port, path, 0, b"four").status == 204
            own.until("window.heard.includes(1000)")
            assert own.value("window.heard")[-2:] == ["finished", 1000]


def test_page_of_an_allowed_origin_follows(tmp_path: Path, browser: Browser) -> None:
    with ForeignSite() as site, serving(tmp_path, cors_origins=site.origin) as server, browser.page() as foreign:
        path = create(server.port, 4)
        foreign.goto(f"{site.origin}/")
        follow(foreign, server.port, path)
        foreign.until("window.heard.includes('snapshot')")
        assert patch(server.port, path, 0, b"four").status == 204
        foreign.until("window.heard.includes(1000)")
        assert foreign.value("window.heard")[-2:] == ["finished", 1000]
