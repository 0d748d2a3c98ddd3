"""A tus server as an ASGI application: started by its first request or its lifespan, drained before it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any, TypeVar, Unpack

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Receive, Scope, Send

from tusd_py.composition import Components, build_service, close_service, open_service
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import StateUnavailable, StorageUnavailable, UploadError
from tusd_py.core.metadata import MetadataLimits
from tusd_py.events.bus import EventBus, Subscriber
from tusd_py.http.app import NOT_READY, UNROUTED, UploadApp
from tusd_py.http.cors import CrossOrigin, missing_in_middleware
from tusd_py.http.tus.adapter import TusProtocol
from tusd_py.http.tus.handlers import Features, TusHandlers
from tusd_py.http.urls import TrustedProxies, UrlBuilder
from tusd_py.observability.logging import log_requests
from tusd_py.observability.metrics import Metrics
from tusd_py.plugins import LOCKERS, STATE_STORES, STORAGES, check_component
from tusd_py.settings import InvalidSettings, Settings, SettingsOverrides, cross_check, from_arguments
from tusd_py.transfer.budget import BufferPool
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import sweep_forever

logger = logging.getLogger("tusd_py")

MIN_SHUTDOWN_TIME = 1.0  # seconds that requests have at least to commit, and an earlier service to close
CLOSE_AGAIN = 0.5  # seconds between two attempts to close what hangs
START_TIMEOUT = 20.0  # seconds a request waits for the start of the server
HEAD_TIMEOUT = 1.5  # seconds a HEAD waits for it, which is to be answered within two
START_PAUSE = 1.0  # seconds between two attempts to start, on behalf of requests

E = TypeVar("E")


class TusServer:
    """A tus server as an ASGI application, for mounting in a Starlette or FastAPI application.

    The server starts with the first request; while it cannot (Redis is away), requests are answered with 503, HEAD
    with 423, and later requests try to start it again. Give `lifespan` to the application as well: then the server
    starts with the application, and at its shutdown commits what is in flight and closes everything.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        storage: Storage | None = None,
        state: StateStore | None = None,
        locker: Locker | None = None,
        **overrides: Unpack[SettingsOverrides],
    ) -> None:
        """Build every component.

        Args:
            settings: all settings at once; keyword arguments are refused beside it.
            storage: keeps the bytes, in place of the storage that the settings choose.
            state: keeps the records, in place of SQLite in the upload directory or Redis.
            locker: decides who may write, in place of file locks in the upload directory or Redis. A state store
                that several hosts share needs a locker that they share too.
            **overrides: single settings (`docs/configuration.md`); one that is not given comes from its variable
                TUSD_PY_*, if that is set.

        The server opens the given components when it starts and closes them at shutdown; a server that is started
        again opens them again.

        Raises:
            InvalidSettings: a setting is not accepted, or a component lacks a member of its contract.
        """
        if settings is None:
            settings = from_arguments(overrides)
        elif overrides:
            raise InvalidSettings(f"give {', '.join(overrides)} within the settings, not beside them")
        else:
            cross_check(settings, settings.model_fields_set)
        for group, component in ((STORAGES, storage), (STATE_STORES, state), (LOCKERS, locker)):
            if component is not None:
                check_component(group, component, "the given component")
        self.settings = settings
        self._given = Components(storage, state, locker)
        self.events = EventBus()
        self.metrics = Metrics(self.events)
        log_requests(self.events)
        self._next_attempt = 0.0  # monotonic time before which requests do not try to start the server again
        self._told = ""  # the reason, already logged, why the last attempt to start failed
        self._looked_around = False
        self._signal_handlers: dict[int, Any] = {}
        self._abandoned: list[UploadService] = []
        self._build()

    def _build(self) -> None:
        """Make what belongs to one event loop."""
        self.service = build_service(self.settings, self.events, self.metrics, given=self._given)
        self._application = self._endpoint()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start = asyncio.Lock()
        self._started = False
        self._attempt: asyncio.Task[None] | None = None  # to start, on behalf of requests
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None  # a shutdown that the storage holds up
        self._drain_began: float | None = None
        self.is_draining = False  # a shutdown is about to begin: nobody should send new clients here

    def _leave_closed_loop(self) -> None:
        """Begin anew if the event loop this server was started in is gone: test clients have one for every request."""
        if self._loop is None or self._loop is asyncio.get_running_loop() or not self._loop.is_closed():
            return
        self.service.leave()
        self.events.forget()
        self._abandoned.append(self.service)
        self._restore_signals()
        self._build()

    def _endpoint(self) -> UploadApp:
        settings = self.settings
        self.urls = UrlBuilder(settings.public_url, TrustedProxies(settings.trusted_proxies))
        features = Features(
            creation_with_upload=not settings.disable_creation_with_upload,
            creation_defer_length=not settings.disable_creation_defer_length,
            expiration=settings.expires_after > 0,
            checksum=not settings.disable_checksum,
            termination=not settings.disable_termination,
            concatenation=not settings.disable_concatenation and self.service.can_concatenate,
            concatenation_unfinished=settings.concatenation_unfinished,
            download=not settings.disable_download,
        )
        limits = MetadataLimits(settings.metadata_size, settings.metadata_pairs)
        return UploadApp(
            TusProtocol(TusHandlers(self.service, features, self.urls, limits)),
            self.events,
            self.urls,
            BufferPool(self.service.budget),
            CrossOrigin(settings.cors_origins, credentials=settings.cors_credentials),
            idle_timeout=settings.idle_timeout,
            min_rate=settings.min_rate,
        )

    def on(self, kind: type[E]) -> Callable[[Subscriber[E]], Subscriber[E]]:
        """Call the decorated function, plain or async, for every event of this kind (`tusd_py.UploadFinished`, ...).

        A plain function runs in a worker thread, so that it may block. The upload is not locked any more: the function
        may read or remove it. The client is answered after the function has returned, or after half a minute.
        Exceptions of the function are logged. An event is lost if the process dies between the change of the upload
        and the call.
        """

        def register(subscriber: Subscriber[E]) -> Subscriber[E]:
            self.events.subscribe(kind, subscriber)
            return subscriber

        return register

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Starlette(lifespan=self.lifespan)(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before it is accepted: the client gets 403
            return
        if scope["type"] != "http":
            raise RuntimeError("a tus server speaks HTTP only")
        self._look_around(scope.get("app"))
        self._leave_closed_loop()
        patience = HEAD_TIMEOUT if scope["method"] == "HEAD" else START_TIMEOUT
        if not self._started and await self.start_error(patience) is not None:
            scope = {**scope, NOT_READY: True}
        await self._application(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 to any request, in the format of every other answer."""
        await self({**scope, UNROUTED: True}, receive, send)

    def route(self, path: str) -> BaseRoute:
        """A route for this server that takes the creation URL with and without a slash at its end."""
        return TusMount(path, app=self)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start now, and at the end commit what is in flight and close; for `Starlette(lifespan=...)`."""
        self._look_around(app)
        await self.startup()
        try:
            yield
        finally:
            await self.shutdown()

    async def start_error(self, patience: float) -> UploadError | None:
        """Start unless that has been done; the reason if it failed now or a moment ago, or takes `patience` seconds.

        The attempt is no request's own: one that goes away does not stop it, and many share one.
        """
        if self._started:
            return None
        if self._attempt is None or (self._attempt.done() and time.monotonic() >= self._next_attempt):
            self._attempt = asyncio.create_task(self.startup())
            self._attempt.add_done_callback(self._attempted)
        done, _ = await asyncio.wait((self._attempt,), timeout=patience)
        error = self._attempt.exception() if done and not self._attempt.cancelled() else None
        if error is None:
            return None if self._started else StateUnavailable("the server is starting")
        return error if isinstance(error, UploadError) else StateUnavailable("the server could not start")

    def _attempted(self, attempt: asyncio.Task[None]) -> None:
        """Tell once of a reason not to start, however many requests come upon it."""
        self._next_attempt = time.monotonic() + START_PAUSE
        error = None if attempt.cancelled() else attempt.exception()
        if error is None:
            if self._told:
                logger.info("the server has started")
            self._told = ""
        elif str(error) != self._told:
            self._told = str(error)
            unknown = None if isinstance(error, UploadError) else error
            logger.error("the server could not start, requests try it again: %s", error, exc_info=unknown)

    def _look_around(self, app: object) -> None:
        """Warn, once, of a CORSMiddleware of the application around this server that stops browsers."""
        if self._looked_around or app is None:
            return
        self._looked_around = True
        missing = missing_in_middleware(app)
        if missing:
            logger.warning("browsers cannot upload through the CORSMiddleware of this application: give it %s", missing)

    async def startup(self) -> None:
        """Make every part ready; raises `StorageUnavailable` or `StateUnavailable`, then nothing is left open."""
        self._leave_closed_loop()
        async with self._start:
            if self._started:
                return
            self._loop = asyncio.get_running_loop()
            await self._close_earlier()
            await open_service(self.service, self.settings)
            if self.service.limitations:
                logger.warning("%s", "; ".join(self.service.limitations))
            self.service.open()
            if self.settings.sweep_interval:
                self._sweeper = asyncio.create_task(sweep_forever(self.service, self.settings.sweep_interval))
            self._watch_signals()
            self._closed = asyncio.Event()
            self._keeper = asyncio.create_task(self._close_with_loop(self._closed))
            self._started = True

    async def _close_earlier(self) -> None:
        """Close what an earlier loop or shutdown left; raises `StorageUnavailable` while that is still busy."""
        if self._closing is not None:
            await asyncio.wait((self._closing,), timeout=MIN_SHUTDOWN_TIME)
            if not self._closing.done():
                raise StorageUnavailable("what was under way at the last shutdown has not ended yet")
            self._closing = None
        while self._abandoned:
            closed = True
            with contextlib.suppress(Exception):  # what it had in its loop is gone; its threads and files are not
                closed = await close_service(self._abandoned[-1], MIN_SHUTDOWN_TIME)
            if not closed:
                raise StorageUnavailable("what was under way in an earlier event loop has not ended yet")
            self._abandoned.pop()

    async def _close_with_loop(self, closed: asyncio.Event) -> None:
        """Shut down when the event loop ends without having done so: it cancels what still runs."""
        try:
            await closed.wait()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        async with self._start:
            if not self._started:
                return
            self._started = False
            self._closed.set()
            try:
                async with asyncio.timeout_at(self._end_of_grace()):
                    await self.service.drain()
            except TimeoutError:
                logger.error(
                    "some requests did not end within the shutdown grace of %s s", self.settings.shutdown_grace
                )
            if self._sweeper is not None:
                self._sweeper.cancel()
                await asyncio.wait((self._sweeper,))
            self._restore_signals()
            await self.events.close(max(0.0, self._end_of_grace() - asyncio.get_running_loop().time()))
            patience = self._end_of_grace() - asyncio.get_running_loop().time()
            if not await close_service(self.service, patience):
                logger.error(
                    "the storage has not ended its work: uploads stay locked until it has, or the process ends"
                )
                self._closing = asyncio.create_task(self._close_later())
            self._drain_began = None

    async def _close_later(self) -> None:
        closed = False
        while not closed:
            await asyncio.sleep(CLOSE_AGAIN)
            closed = await close_service(self.service, CLOSE_AGAIN)

    def _watch_signals(self) -> None:
        """Learn of a shutdown when the web server does: it waits for running requests without telling them.

        After SIGTERM the web server itself learns of it only when `drain_delay` is over, or with a second signal.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def watch(number: int) -> None:
            previous = signal.getsignal(number)
            if not callable(previous) or previous is signal.default_int_handler:
                return

            def handle(received: int, frame: FrameType | None) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is in flight
                    if received == signal.SIGTERM and self.settings.drain_delay and not self.is_draining:
                        self.is_draining = True
                        loop.call_soon_threadsafe(loop.call_later, self.settings.drain_delay, stop, received)
                        return
                    loop.call_soon_threadsafe(self._schedule_drain)
                previous(received, frame)

            def stop(received: int) -> None:
                self._schedule_drain()
                previous(received, None)

            self._signal_handlers[number] = previous
            signal.signal(number, handle)

        watch(signal.SIGTERM)
        watch(signal.SIGINT)

    def _restore_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._signal_handlers.items():
                signal.signal(number, handler)
        self._signal_handlers.clear()

    def _schedule_drain(self) -> None:
        self._drain_began = asyncio.get_running_loop().time()
        self._drain = asyncio.ensure_future(self.service.drain())

    def _end_of_grace(self) -> float:
        """The end of the shutdown grace, in the time of the loop, `LAST_MOMENT` away at least."""
        now = asyncio.get_running_loop().time()
        began = now if self._drain_began is None else self._drain_began
        return max(began + self.settings.shutdown_grace, now + MIN_SHUTDOWN_TIME)


class TusMount(Mount):
    """A mount that also matches its own path without a slash at the end, since not every client follows a redirect."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        root_path = scope.get("root_path", "")
        if scope["type"] == "http" and scope["path"].removeprefix(root_path) == self.path:
            child_scope = {"endpoint": self.app, "path_params": {}, "root_path": root_path + self.path}
            return Match.FULL, {**child_scope, "app_root_path": scope.get("app_root_path", root_path)}
        return super().matches(scope)
