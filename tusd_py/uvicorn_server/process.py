"""One server process: the application under uvicorn."""

from __future__ import annotations

import contextlib
import math
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from tusd_py.application import admin_application, build_app, metrics_application, with_direct_uploads
from tusd_py.core.option_types import MAX_DURATION
from tusd_py.server import TusServer
from tusd_py.settings import InvalidSettings, Settings
from tusd_py.uvicorn_server.acceptor import Acceptor
from tusd_py.uvicorn_server.connections import Connections
from tusd_py.uvicorn_server.descriptors import (
    RECEIVING_DESCRIPTORS,
    RESERVED_DESCRIPTORS,
    connection_limit,
    raise_descriptor_limit,
)
from tusd_py.uvicorn_server.garbage_collection import tune_garbage_collection
from tusd_py.uvicorn_server.protocol import upload_protocol

# Host and port, and for IPv6 the flow label and the link as well: an address of one link needs that to be bound again.
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

BACKLOG = 2048
LISTEN_TRIES = 5  # for a port that no other server holds yet
LISTEN_PAUSE = 0.02  # seconds between two of them at most
FURTHER_CONNECTIONS = 64  # beyond the limit, so that a server without room can still be looked at
WEBSOCKETS = "none"  # no other protocol class takes their connections over: `UploadProtocol` serves them itself
SENDING_TIMEOUT = 1.0  # seconds that the end of a process waits for a file that its disk does not deliver


class Server(uvicorn.Server):
    """A uvicorn server with a limit of connections, which calls `ready` when it accepts them."""

    def __init__(
        self,
        config: uvicorn.Config,
        shared: Connections,
        limit: int,
        ready: Callable[[], None],
        further: Sequence[tuple[socket.socket, uvicorn.Config]] = (),
    ) -> None:
        """Take the configuration of the sockets that `run` gets, and those of `further` sockets."""
        super().__init__(config)
        self._shared = shared
        self._limit = limit
        self._ready = ready
        self._further = further

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        tune_garbage_collection()
        acceptors = [self._acceptor(listener, self.config, self._limit) for listener in sockets or ()]
        for listener, config in self._further:
            config.load()
            acceptors.append(self._acceptor(listener, config, self._limit + FURTHER_CONNECTIONS))
        for acceptor in acceptors:
            acceptor.start(self.config.backlog)
        self.servers: list[Any] = acceptors
        self.started = True
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections, then the application, then the threads that have sent files for both."""
        await super().shutdown(sockets)
        await self._shared.close(SENDING_TIMEOUT)

    def _acceptor(self, listener: socket.socket, config: uvicorn.Config, limit: int) -> Acceptor:
        def new_protocol() -> Any:
            protocol: Any = config.http_protocol_class
            return protocol(config=config, server_state=self.server_state, app_state=self.lifespan.state)

        return Acceptor(
            listener,
            new_protocol,
            limit=limit,
            open_connections=lambda: len(self.server_state.connections),
            make_room=self._shared.end_longest_idle,
        )


def limit_of(settings: Settings) -> int:
    """Raise the limit of descriptors and return the number of connections of this process; raises `InvalidSettings`."""
    reserved = RESERVED_DESCRIPTORS + (settings.s3.concurrency if settings.s3.bucket else RECEIVING_DESCRIPTORS)
    has_further = settings.admin_port is not None or settings.moves_metrics
    reserved += 2 * FURTHER_CONNECTIONS if has_further else 0
    try:
        return connection_limit(raise_descriptor_limit(), reserved, settings.max_connections, settings.workers)
    except ValueError as error:
        raise InvalidSettings(f"--max-connections is too large: {error}") from None


def run_server(
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[], None],
    admin: socket.socket | None = None,
    metrics: Sequence[socket.socket] = (),
) -> None:
    """Serve on a bound socket until a signal stops the process.

    On `admin`, if that is given, administrators are served, and on the sockets in `metrics` the metrics.
    """
    limit = limit_of(settings)
    app = build_app(TusServer(settings))
    tus = app.state.tus
    shared = Connections(
        header_timeout=settings.header_timeout,
        keep_alive_timeout=settings.keep_alive_timeout,
        idle_timeout=settings.idle_timeout,
        min_rate=settings.min_rate,
        instrumentation=tus.metrics,
    )
    tus.metrics.connections_limited(limit)
    tus.hub.max_listeners = min(settings.max_listeners, max(1, limit // 2))
    make_config = partial(
        uvicorn.Config,
        interface="asgi3",
        http=upload_protocol(shared=shared),
        ws=WEBSOCKETS,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(settings.keep_alive_timeout or MAX_DURATION),  # of stock protocol classes
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
    )
    further = [] if admin is None else [(admin, make_config(admin_application(app)))]
    further += [(one, make_config(metrics_application(app))) for one in metrics]
    config = make_config(with_direct_uploads(app))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal that ended it once more
        Server(config, shared, limit, ready, further).run(sockets=[listener])


def bind(address: Address, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to this address, which others of this user can bind too if `shared`; raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    if "%" in address[0]:  # a pair of host and port loses the link
        address = cast(Address, socket.getaddrinfo(*address[:2], family, flags=socket.AI_NUMERICHOST)[0][4])
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


def reserve(address: Address) -> socket.socket:
    """Return a socket that keeps an address for this process and its children, without listening; raises OSError.

    Listeners are bound beside it, with `bind(shared=True)`. On Linux, one of the servers that start at the same moment
    keeps the address, and the others fail here, at the latest.
    """
    with bind(address) as probe:  # chooses the port if that is 0: a port that the kernel chose is lost with a shutdown
        name: Address = probe.getsockname()
        if sys.platform != "linux":
            probe.close()
            return bind(name, shared=True)
        return _kept(name)


def allow_successor(reserved: socket.socket) -> None:
    """Let another server have the reserved address once nobody listens on it, as while this server drains."""
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _kept(address: Address) -> socket.socket:
    """Return a socket beside which nobody binds this address but with SO_REUSEPORT; blocks, raises OSError.

    Servers that only bind an address with SO_REUSEADDR disturb each other no sooner than when they listen. So this
    socket listens for a moment, which only one can do, and refuses every SO_REUSEADDR from then on; `allow_successor`
    ends that: once a single process listens, and once a supervisor starts no process again.
    """
    tries = LISTEN_TRIES
    while True:
        tries -= 1
        listener = bind(address)
        try:
            listener.listen(1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            listener.close()
            if not tries:
                raise
            time.sleep(random.uniform(0, LISTEN_PAUSE))  # Linux can refuse both of two that listen at one moment
        else:
            return listener
