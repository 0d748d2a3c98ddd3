"""`tusd-py serve`: the application under uvicorn."""

from __future__ import annotations

import socket
import sys

import uvicorn

from tusd_py.app import create_app
from tusd_py.server.protocol import UploadProtocol
from tusd_py.settings import Settings

KEEP_ALIVE = 75  # seconds an idle connection stays open, longer than the pauses between the PATCHes of most clients


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        http=UploadProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.shutdown_grace) + 1,
    )


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve on a bound socket until a signal says to stop; returns the exit code."""
    config = uvicorn_config(settings)
    server = uvicorn.Server(config)
    assert not isinstance(config.app, str)
    config.app.state.tus.metrics.connections = lambda: len(server.server_state.connections)  # type: ignore[union-attr]
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"tusd-py is listening on http://{host}:{port}{settings.base_path}", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    return 0


def bind(settings: Settings) -> socket.socket:
    """A socket on the host and port of the settings; raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
