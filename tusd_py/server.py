"""The tus server as an ASGI application, started by its lifespan or first request, drained before it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar, Unpack, get_args

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from tusd_py.auth.token_authenticator import TokenAuthenticator
from tusd_py.composition import (
    GivenComponents,
    build_application,
    build_authenticator,
    build_feed,
    build_service,
    build_signing_keys,
    refuse_two_choices,
)
from tusd_py.contracts.auth import Authenticator
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import StateUnavailable, UploadError
from tusd_py.core.upload import Upload
from tusd_py.embedding import UploadReader, Uploads, open_reader
from tusd_py.events.bus import EventBus, Subscriber
from tusd_py.events.types import Event
from tusd_py.http.app import ARRIVED_AT, NOT_READY, UNROUTED
from tusd_py.http.cors import missing_in_middleware
from tusd_py.http.mount import TusMount
from tusd_py.http.urls import TrustedProxies, UrlBuilder
from tusd_py.jobs.duties import scheduler_of
from tusd_py.jobs.scheduler import Scheduler
from tusd_py.late_close import LateClose
from tusd_py.lifecycle import close_service, open_service
from tusd_py.observability.logging import log_requests
from tusd_py.observability.metrics import Metrics
from tusd_py.plugins import LOCKERS, STATE_STORES, STORAGES, check_component
from tusd_py.progress.hub import ProgressHub
from tusd_py.settings import InvalidSettings, Settings, SettingsOverrides, cross_check, from_arguments
from tusd_py.signal_watch import SignalWatch
from tusd_py.sinks import build_hooks, build_relay
from tusd_py.start_attempts import StartAttempts
from tusd_py.uploads.history import HistoryRecorder
from tusd_py.uploads.lock_reports import LockReports
from tusd_py.uploads.queries import RecordQueries
from tusd_py.uploads.service import UploadService

logger = logging.getLogger("tusd_py")

MIN_SHUTDOWN_TIME = 1.0  # seconds that requests have at least to commit
START_TIMEOUT = 20.0  # seconds a request waits for the start of the server
HEAD_TIMEOUT = 1.5  # seconds a HEAD waits for the start: the server answers HEAD within two seconds

E = TypeVar("E", bound=Event)


class TusServer:
    """A tus server as an ASGI application, to be mounted in an application of Starlette, FastAPI or Litestar.

    Example::

        from starlette.applications import Starlette
        from tusd_py import TusServer, UploadFinished

        tus = TusServer(upload_dir="uploads", max_size="5GiB")

        @tus.on(UploadFinished)
        async def finished(event: UploadFinished) -> None:
            print(event.upload.decoded_metadata.get("filename"), "is at", tus.path(event.upload))

        app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)

    The server starts with its lifespan or, without one, with the first request. While it cannot start (Redis is away),
    requests are answered 503, HEAD 423, and later requests try to start it again. At the end of the lifespan it commits
    what is in flight and closes everything. More in `docs/embedding.md`.

    Attributes:
        settings: the settings in effect.
        uploads: looks up and removes uploads.
        is_administrated: whether its records are prepared for the queries of administrators; set before the start.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        storage: Storage | None = None,
        state: StateStore | None = None,
        locker: Locker | None = None,
        authenticator: Authenticator | None = None,
        **overrides: Unpack[SettingsOverrides],
    ) -> None:
        """Build every component, without I/O.

        The server opens the given components when it starts and closes them at shutdown; a server that is started
        again opens them again.

        Args:
            settings: all settings at once; keyword arguments are refused beside it.
            storage: keeps the bytes, in place of the storage that the settings choose.
            state: keeps the records, in place of SQLite in the upload directory or Redis.
            locker: decides who may write, in place of file locks in the upload directory or Redis. A state store
                that several hosts share needs a locker that they share too.
            authenticator: finds the senders of requests, and may decide what they may do (`docs/security.md`), in place
                of the tokens that the settings choose.
            **overrides: single settings (`docs/configuration.md`); one that is not given comes from its variable
                TUSD_PY_*, if that is set. `hooks` may be an object with async methods `pre_create`, `post_finish` and
                so on (`docs/hooks.md`).

        Raises:
            InvalidSettings: a setting is not accepted, a component lacks a member of its contract, or a setting
                chooses the same component.
            StateUnavailable: the settings choose Redis, and its package is not installed.
        """
        given_hooks = overrides.pop("hooks", None)
        if isinstance(given_hooks, str):
            overrides["hooks"], given_hooks = given_hooks, None
        self.settings = _effective(settings, overrides)
        self._hooks = build_hooks(self.settings, given_hooks)
        self._authenticator = build_authenticator(self.settings, authenticator)
        self._signing_keys = build_signing_keys(self.settings)
        for group, component in ((STORAGES, storage), (STATE_STORES, state), (LOCKERS, locker)):
            if component is not None:
                check_component(group, component, "the given component")
        self._given_components = GivenComponents(storage, state, locker)
        refuse_two_choices(self.settings, self._given_components)
        self.events = EventBus()
        self.metrics = Metrics(self.events)
        log_requests(self.events)
        self._start_attempts = StartAttempts(self.startup)
        self._cors_middleware_checked = False
        self._late_close = LateClose()
        self.uploads = Uploads(self._started_service)
        self.is_administrated = False
        self._build()

    def _build(self) -> None:
        """Build the components and all other objects that belong to one event loop."""
        self.service = build_service(
            self.settings, self.events, self.metrics, given=self._given_components, hooks=self._hooks
        )
        self.queries = RecordQueries(self.service.state)
        self.history = HistoryRecorder(self.events, self.service.state)
        self.urls = UrlBuilder(self.settings.public_url, TrustedProxies(self.settings.trusted_proxies))
        self._feed = build_feed(self.settings, self.service)
        self.locks = LockReports(lambda: self.service.held_locks, self.service.state.clock, self._feed)
        self.hub = ProgressHub(
            self.events,
            self.service.find,
            self.service.locker,
            self.service.state.clock,
            self.metrics,
            self._feed,
            max_listeners=self.settings.max_listeners,
        )
        self.service.watch_by(self.hub.watches)
        self.hub.call_when_watching_begins(self.service.watchers_changed)
        self._application = build_application(
            self.settings, self.service, self.events, self.urls, self._authenticator, self._signing_keys, self.hub
        )
        self._relay = build_relay(self.settings, self.service, self._hooks, self.metrics)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifecycle_lock = asyncio.Lock()  # held while the server starts or shuts down
        self._started = False
        self._start_attempts.forget()
        self._scheduler: Scheduler | None = None
        self._drain_started_at: float | None = None
        self._signals = SignalWatch(self._start_draining, self.settings.drain_delay)

    def _rebuild_after_closed_loop(self) -> None:
        """Build everything again if the event loop of the last start is closed, as test clients do after a request."""
        if self._loop is None or self._loop is asyncio.get_running_loop() or not self._loop.is_closed():
            return
        self.metrics.fold()
        self.service.unobserve_events()
        self.hub.forget()
        self.events.drop_queued()
        self._late_close.add_of_closed_loop(self.service)
        self._signals.stop()
        self._build()

    @property
    def authenticator(self) -> Authenticator | None:
        """The part that finds the senders of requests; None if everybody may do everything."""
        return self._authenticator

    def on(self, kind: type[E]) -> Callable[[Subscriber[E]], Subscriber[E]]:
        """Decorate a function, plain or async, that is then called with every event of a kind.

        Example::

            @tus.on(UploadFinished)
            def index(event: UploadFinished) -> None:
                database.add(event.upload.id, tus.path(event.upload), event.upload.decoded_metadata)

        An async function runs in the event loop, a plain one in a thread of its own, so that it may block. Events of
        one upload come one after the other, after its lock is released: the function may read or remove the upload.
        The client is answered after the function has returned, or after 30 s. Exceptions of the function are logged
        and change nothing. An event is lost if the process dies between the change of the upload and the call.

        Args:
            kind: `UploadCreated`, `UploadProgressed`, `UploadFinished`, `PartialFinished`, `UploadTerminated`,
                `UploadExpired`, `RequestFinished`, or another event of `tusd_py`.

        Raises:
            TypeError: `kind` is no class of events.
        """
        if kind not in get_args(Event):
            raise TypeError(f"{kind!r} is no class of events such as UploadFinished")

        def register(subscriber: Subscriber[E]) -> Subscriber[E]:
            self.events.subscribe(kind, subscriber)
            return subscriber

        return register

    @property
    def is_draining(self) -> bool:
        """Whether a shutdown is about to begin (`drain_delay`), so that a load balancer should send no new clients."""
        return self._signals.is_delaying

    async def open(self, upload: Upload) -> UploadReader:
        """Return a reader of the bytes of a complete upload, on any storage.

        Example::

            async with await tus.open(event.upload) as reader:
                async for piece in reader:
                    digest.update(piece)

        Raises:
            UploadNotFound: the upload is not complete, or its bytes are gone.
            StorageUnavailable: the storage cannot be read now.
            StateUnavailable: the server cannot start now.
        """
        return await open_reader(await self._started_service(), upload)

    def path(self, upload: Upload) -> Path | None:
        """Return the file of a complete upload; None on S3, and for an upload that is not complete.

        The file may be read and linked to, never changed or moved: remove an upload with `uploads.terminate`.
        """
        return self.service.downloads.path(upload)

    async def _started_service(self) -> UploadService:
        """Start the server unless it runs, and return its service; raises the reason why it cannot start."""
        self._rebuild_after_closed_loop()
        error = await self.start_error(START_TIMEOUT)
        if error is not None:
            raise error
        return self.service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket, which tells the progress of uploads."""
        if scope["type"] == "lifespan":
            await Starlette(lifespan=self.lifespan)(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError("a tus server speaks HTTP and WebSockets only")
        self._warn_about_cors_middleware(scope.get("app"))
        self._rebuild_after_closed_loop()
        timeout = HEAD_TIMEOUT if scope.get("method") == "HEAD" else START_TIMEOUT
        if not self._started:
            scope = {**scope, ARRIVED_AT: asyncio.get_running_loop().time()}
            if await self.start_error(timeout) is not None:
                scope[NOT_READY] = True
        await self._application(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer any request with 404, in the format and with the header fields of every other error."""
        await self({**scope, UNROUTED: True}, receive, send)

    def route(self, path: str) -> BaseRoute:
        """Return a route for `Starlette(routes=[...])` that takes the creation URL with and without a slash at its end.

        `Starlette.mount` takes the one with the slash only, and redirects the other, which not every client follows.
        """
        return TusMount(path, app=self)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start the server, and shut it down at the end of the context; for `Starlette(lifespan=...)`.

        Within a lifespan of the application: `async with tus.lifespan(app): ...`. Raises as `startup` does.
        """
        self._warn_about_cors_middleware(app)
        await self.startup()
        try:
            yield
        finally:
            await self.shutdown()

    async def start_error(self, timeout: float) -> UploadError | None:
        """Start the server unless it runs; return the reason why it cannot start, or None.

        Waits at most `timeout` seconds. See `StartAttempts`.
        """
        if self._started:
            return None
        error = await self._start_attempts.error(timeout)
        return StateUnavailable("the server is starting") if error is None and not self._started else error

    def _warn_about_cors_middleware(self, app: object) -> None:
        """Log once that a CORSMiddleware of the application around this server stops browsers."""
        if self._cors_middleware_checked or app is None:
            return
        self._cors_middleware_checked = True
        missing = missing_in_middleware(app, authenticates=self._authenticator is not None)
        if missing:
            logger.warning("browsers cannot upload through the CORSMiddleware of this application: give it %s", missing)

    async def startup(self) -> None:
        """Open every component, start the periodic jobs and the delivery of events; do nothing if the server runs.

        Raises:
            StorageUnavailable: the storage cannot be used; the message names place and reason. Nothing stays open.
            StateUnavailable: the state store or the locker cannot be used, as above.
        """
        self._rebuild_after_closed_loop()
        async with self._lifecycle_lock:
            if self._started:
                return
            self._loop = asyncio.get_running_loop()
            await self._late_close.finish()
            await open_service(self.service, self.settings)
            if self.service.health.limitations:
                logger.warning("%s", "; ".join(self.service.health.limitations))
            self.service.open()
            self.hub.open()
            if self.is_administrated:
                await self._prepare_queries()
                self.history.open()
            if self._feed is not None:
                await self._feed.open(self.hub)
            if self.settings.sweep_interval:
                self._scheduler = scheduler_of(self.service, self.settings.sweep_interval)
                self._scheduler.start()
            if self._relay is not None:
                self._relay.start()
            self._signals.start()
            self._shutdown_called = asyncio.Event()
            self._close_with_loop_task = asyncio.create_task(self._close_with_loop(self._shutdown_called))
            self._started = True

    async def _prepare_queries(self) -> None:
        """Make what administrators need; without it they wait longer, and uploads go on as ever."""
        try:
            await self.queries.prepare()
        except UploadError as error:
            logger.warning("the records are not prepared for administrators, who wait longer: %s", error.message)

    async def _close_with_loop(self, closed: asyncio.Event) -> None:
        """Shut down if the event loop ends, and cancels this task, before the application has called `shutdown`."""
        try:
            await closed.wait()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        """Commit running appends, deliver events, and close every component; do nothing if the server is not running.

        Takes at most the setting `shutdown_grace`, and the time that a component needs to close. Uploads that a hanging
        storage still writes to stay locked until the storage has ended its work.
        """
        async with self._lifecycle_lock:
            if not self._started:
                return
            self._started = False
            self._shutdown_called.set()
            self.hub.drain()
            try:
                async with asyncio.timeout_at(self._grace_deadline()):
                    await self.service.drain()
            except TimeoutError:
                logger.error(
                    "some requests did not end within the shutdown grace of %s s", self.settings.shutdown_grace
                )
            if self._scheduler is not None:
                await self._scheduler.stop()
            self._signals.stop()
            if isinstance(self._authenticator, TokenAuthenticator):
                await self._authenticator.close()
            await self.events.close(max(0.0, self._grace_deadline() - asyncio.get_running_loop().time()))
            if self._relay is not None:
                await self._relay.stop(self._grace_deadline() - asyncio.get_running_loop().time())
            self.hub.close()
            if self._feed is not None:
                await self._feed.close()
            await self.history.close()
            timeout = self._grace_deadline() - asyncio.get_running_loop().time()
            if not await close_service(self.service, timeout):
                logger.error(
                    "the storage has not ended its work: uploads stay locked until it has, or the process ends"
                )
                self._late_close.begin(self.service)
            self.metrics.fold()
            self._drain_started_at = None

    def _start_draining(self) -> None:
        """Make running appends commit and end; called when the web server is about to shut down."""
        self._drain_started_at = asyncio.get_running_loop().time()
        self.hub.drain()
        self._drain_task = asyncio.ensure_future(self.service.drain())

    def _grace_deadline(self) -> float:
        """Return the end of the shutdown grace in the time of the event loop, `MIN_SHUTDOWN_TIME` ahead at least."""
        now = asyncio.get_running_loop().time()
        began = now if self._drain_started_at is None else self._drain_started_at
        return max(began + self.settings.shutdown_grace, now + MIN_SHUTDOWN_TIME)


def _effective(settings: Settings | None, overrides: SettingsOverrides) -> Settings:
    """Return the settings of the arguments of a server; raises `InvalidSettings`."""
    if settings is None:
        return from_arguments(overrides)
    if not isinstance(settings, Settings):
        raise InvalidSettings(f"{settings!r} is no Settings object: give single settings by name, as upload_dir=...")
    if overrides:
        raise InvalidSettings(f"give {', '.join(overrides)} within the settings, not beside them")
    cross_check(settings)
    return settings
