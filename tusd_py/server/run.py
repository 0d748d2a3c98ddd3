"""`tusd-py serve`: the application under uvicorn."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable

import uvicorn

from tusd_py.app import create_app
from tusd_py.server.protocol import upload_protocol
from tusd_py.settings import Settings

KEEP_ALIVE = 75  # seconds an idle connection stays open, longer than the pauses between the PATCHes of most clients
BACKLOG = 2048


class Server(uvicorn.Server):
    """Tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def run_server(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on a bound socket until a signal says to stop."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=upload_protocol(app.state.tus.metrics.connections_changed, settings.header_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again that ended it
        Server(config, ready).run(sockets=[listener])


def bind(address: tuple[str, int], *, shared: bool = False) -> socket.socket:
    """A socket on this host and port, which other processes can bind too if `shared`; raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def reserve(address: tuple[str, int]) -> socket.socket:
    """A shared socket on a host and port that nobody else listens on; raises OSError."""
    with bind(address) as probe:  # a shared one would not notice another server
        name = probe.getsockname()
    return bind((name[0], name[1]), shared=True)
