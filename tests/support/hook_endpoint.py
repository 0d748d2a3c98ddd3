"""An HTTP endpoint of an application: its answers are set by the test, what it was asked is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_endpoint import EndpointHandler, HTTPEndpoint

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An answer; `raw` takes the place of everything, and the connection is closed after it."""

    body: bytes = b"{}"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    raw: bytes | None = None


def told(**answer: Any) -> Reply:
    """Return an answer in the form of tusd."""
    return Reply(json.dumps(answer).encode())


SILENCE = Reply(raw=b"")
NO_OPINION = Reply()


@dataclass(frozen=True)
class Asked:
    """A request of a hook. The names of the header fields are in lower case."""

    path: str
    headers: Mapping[str, str]
    payload: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.payload["Type"])


class HookEndpoint(HTTPEndpoint):
    """An endpoint in threads of this process; use as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.reply: Reply | Callable[[Asked], Reply] = NO_OPINION
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks"

    def of_type(self, hook: str) -> list[Asked]:
        return [asked for asked in list(self.asked) if asked.type == hook]


class _Handler(EndpointHandler):
    protocol_version = "HTTP/1.1"
    endpoint: HookEndpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.path, headers, json.loads(body))
        self.endpoint.asked.append(asked)
        self.endpoint.hold.wait()
        reply = self.endpoint.reply
        self._answer(reply(asked) if callable(reply) else reply)

    def _answer(self, reply: Reply) -> None:
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


HookEndpoint.handler = _Handler
