"""`tusd-py` whose requests are cancelled at random by a middleware in front, as an application's own time limits do.

A share of the requests, `CANCEL_SHARE` of the environment, is cancelled after a random time: once, as `asyncio` does,
or at every wait from then on, as an `anyio` cancel scope does. The client is told to come back.
"""

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from tests.support.watched import watch
from tusd_py.cli import main
from tusd_py.uvicorn_server import process

COMMAND = (
    sys.executable,
    "-W",
    "error",
    "-m",
    "tests.support.cancelling",
)  # in place of `tests.support.harness.COMMAND`
MAX_SECONDS = 0.5  # seconds after which a request is cancelled, at most

build_app = vars(process)["build_app"]


class Cancelling:
    """An ASGI middleware that cancels some of the requests of its application."""

    def __init__(self, app: Any, share: float) -> None:
        self._app = app
        self._share = share
        self.state = app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or random.random() >= self._share:
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._run(scope, receive, watched_send)
        if not started:
            status = 423 if scope["method"] == "HEAD" else 503
            headers = [(b"retry-after", b"1"), (b"content-length", b"0"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = random.uniform(0, MAX_SECONDS)
        if random.random() < 0.5:
            with anyio.move_on_after(seconds):
                await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, receive, send)
        except TimeoutError:
            pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of this process."""
    share = float(os.environ.get("CANCEL_SHARE", "0.1"))
    vars(process)["build_app"] = lambda *given: Cancelling(build_app(*given), share)
    watch()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run())
