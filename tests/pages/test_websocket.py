"""A WebSocket in a browser: its own page follows an upload, one of another origin does not."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.browser import Browser, Page
from tests.support.harness import serving
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


def follow(page: Page, port: int, path: str) -> None:
    assert page.value(FOLLOW % json.dumps(f"ws://127.0.0.1:{port}{path}/events"))


def test_page_of_the_server_follows_and_another_one_does_not(tmp_path: Path, browser: Browser) -> None:
    with serving(tmp_path / "one", cors_origins="") as server, serving(tmp_path / "other") as other:
        path = create(server.port, 4)
        with browser.page() as own, browser.page() as foreign:
            own.goto(f"{server.origin}/")
            foreign.goto(f"{other.origin}/healthz")  # a page without a policy of its own
            follow(own, server.port, path)
            follow(foreign, server.port, path)
            own.until("window.heard.includes('snapshot')")
            foreign.until("window.heard.length > 0")
            assert foreign.value("window.heard") == [1006]
            assert patch(server.port, path, 0, b"four").status == 204
            own.until("window.heard.includes(1000)")
            assert own.value("window.heard")[-2:] == ["finished", 1000]
