"""The tus server as an ASGI application: started by its lifespan or first request, drained before it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar, Unpack

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from tusd_py.composition import Components, build_application, build_service, close_service, open_service
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.core.errors import StateUnavailable, StorageUnavailable, UploadError
from tusd_py.core.upload import Upload
from tusd_py.embedding import UploadReader, Uploads, open_reader
from tusd_py.events.bus import EventBus, Subscriber
from tusd_py.events.types import Event
from tusd_py.http.app import NOT_READY, UNROUTED
from tusd_py.http.cors import missing_in_middleware
from tusd_py.http.mount import TusMount
from tusd_py.http.urls import TrustedProxies, UrlBuilder
from tusd_py.jobs.duties import scheduler_of
from tusd_py.jobs.scheduler import Scheduler
from tusd_py.observability.logging import log_requests
from tusd_py.observability.metrics import Metrics
from tusd_py.plugins import LOCKERS, STATE_STORES, STORAGES, check_component
from tusd_py.settings import InvalidSettings, Settings, SettingsOverrides, cross_check, from_arguments
from tusd_py.signal_watch import SignalWatch
from tusd_py.uploads.service import UploadService

logger = logging.getLogger("tusd_py")

MIN_SHUTDOWN_TIME = 1.0  # seconds that requests have at least to commit, and an earlier service to close
CLOSE_AGAIN = 0.5  # seconds between two attempts to close what hangs
START_TIMEOUT = 20.0  # seconds a request waits for the start of the server
HEAD_TIMEOUT = 1.5  # seconds a HEAD waits for it, which is to be answered within two
START_PAUSE = 1.0  # seconds between two attempts to start, on behalf of requests

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
        """Build every component, without I/O.

        The server opens the given components when it starts and closes them at shutdown; a server that is started
        again opens them again.

        Args:
            settings: all settings at once; keyword arguments are refused beside it.
            storage: keeps the bytes, in place of the storage that the settings choose.
            state: keeps the records, in place of SQLite in the upload directory or Redis.
            locker: decides who may write, in place of file locks in the upload directory or Redis. A state store
                that several hosts share needs a locker that they share too.
            **overrides: single settings (`docs/configuration.md`); one that is not given comes from its variable
                TUSD_PY_*, if that is set.

        Raises:
            InvalidSettings: a setting is not accepted, or a component lacks a member of its contract.
        """
        self.settings = _effective(settings, overrides)
        for group, component in ((STORAGES, storage), (STATE_STORES, state), (LOCKERS, locker)):
            if component is not None:
                check_component(group, component, "the given component")
        self._given = Components(storage, state, locker)
        self.events = EventBus()
        self.metrics = Metrics(self.events)
        log_requests(self.events)
        self._next_attempt = 0.0  # monotonic time before which requests do not try to start the server again
        self._told = ""  # the reason, already logged, why the last attempt to start failed
        self._looked_around = False
        self._abandoned: list[UploadService] = []  # of event loops that are closed
        self.uploads = Uploads(self._started_service)
        self._build()

    def _build(self) -> None:
        """Build the objects that belong to one event loop."""
        self.service = build_service(self.settings, self.events, self.metrics, given=self._given)
        self.urls = UrlBuilder(self.settings.public_url, TrustedProxies(self.settings.trusted_proxies))
        self._application = build_application(self.settings, self.service, self.events, self.urls)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start = asyncio.Lock()  # held while the server starts or shuts down
        self._started = False
        self._attempt: asyncio.Task[None] | None = None  # to start, on behalf of requests
        self._scheduler: Scheduler | None = None
        self._closing: asyncio.Task[None] | None = None  # a shutdown that the storage holds up
        self._drain_began: float | None = None
        self._signals = SignalWatch(self._begin_drain, self.settings.drain_delay)

    def _leave_closed_loop(self) -> None:
        """Build everything again if the event loop of the last start is closed: test clients use one for a request."""
        if self._loop is None or self._loop is asyncio.get_running_loop() or not self._loop.is_closed():
            return
        self.service.leave()
        self.events.forget()
        self._abandoned.append(self.service)
        self._signals.stop()
        self._build()

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
        """

        def register(subscriber: Subscriber[E]) -> Subscriber[E]:
            self.events.subscribe(kind, subscriber)
            return subscriber

        return register

    @property
    def is_draining(self) -> bool:
        """Whether a shutdown is about to begin (`drain_delay`): no new clients should be sent here."""
        return self._signals.is_delaying

    async def open(self, upload: Upload) -> UploadReader:
        """Return a reader of the bytes of a complete upload, from whatever storage.

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
        return self.service.path(upload)

    async def _started_service(self) -> UploadService:
        """Return the service for a call of the application; raises why the server cannot start."""
        self._leave_closed_loop()
        error = await self.start_error(START_TIMEOUT)
        if error is not None:
            raise error
        return self.service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; refuses a WebSocket before it is accepted."""
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
        """Answer any request with 404, in the format and with the headers of every other answer."""
        await self({**scope, UNROUTED: True}, receive, send)

    def route(self, path: str) -> BaseRoute:
        """Return a route for `Starlette(routes=[...])` that takes the creation URL with and without a slash at its end.

        `Starlette.mount` takes the one with the slash only, and redirects the other, which not every client follows.
        """
        return TusMount(path, app=self)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start now, and at the end commit what is in flight and close everything; for `Starlette(lifespan=...)`.

        Within a lifespan of the application: `async with tus.lifespan(app): ...`. Raises as `startup` does.
        """
        self._look_around(app)
        await self.startup()
        try:
            yield
        finally:
            await self.shutdown()

    async def start_error(self, patience: float) -> UploadError | None:
        """Start the server unless it runs; return why it cannot start, or None.

        Many callers share one attempt, which goes on if a caller is cancelled. After a failed attempt the next one is
        made a second later at the earliest. Waits at most `patience` seconds.
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
        """Log why an attempt to start failed, once for each reason."""
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
        """Log once that a CORSMiddleware of the application around this server stops browsers."""
        if self._looked_around or app is None:
            return
        self._looked_around = True
        missing = missing_in_middleware(app)
        if missing:
            logger.warning("browsers cannot upload through the CORSMiddleware of this application: give it %s", missing)

    async def startup(self) -> None:
        """Open every component and start the periodic duties; does nothing if the server runs.

        Raises:
            StorageUnavailable: the storage cannot be used; the message says where and why. Nothing stays open.
            StateUnavailable: the same of the state store or the locker.
        """
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
                self._scheduler = scheduler_of(self.service, self.settings.sweep_interval)
                self._scheduler.start()
            self._signals.start()
            self._closed = asyncio.Event()
            self._keeper = asyncio.create_task(self._close_with_loop(self._closed))
            self._started = True

    async def _close_earlier(self) -> None:
        """Close the components that an earlier event loop or shutdown left open.

        Raises `StorageUnavailable` while one of them is still busy.
        """
        if self._closing is not None:
            await asyncio.wait((self._closing,), timeout=MIN_SHUTDOWN_TIME)
            if not self._closing.done():
                raise StorageUnavailable("what was under way at the last shutdown has not ended yet")
            self._closing = None
        while self._abandoned:
            closed = True
            with contextlib.suppress(Exception):  # its tasks are gone with their loop; its threads and files are not
                closed = await close_service(self._abandoned[-1], MIN_SHUTDOWN_TIME)
            if not closed:
                raise StorageUnavailable("what was under way in an earlier event loop has not ended yet")
            self._abandoned.pop()

    async def _close_with_loop(self, closed: asyncio.Event) -> None:
        """Shut down when the end of the event loop cancels this task before anybody has called `shutdown`."""
        try:
            await closed.wait()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        """Commit what is in flight, deliver events, and close every component; does nothing if the server is not up.

        Takes the setting `shutdown_grace`, longer only by the time that a component needs to close. Uploads that a
        hanging storage still writes to stay locked until it has ended its work.
        """
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
            if self._scheduler is not None:
                await self._scheduler.stop()
            self._signals.stop()
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

    def _begin_drain(self) -> None:
        """Have running requests commit and end, when the web server is about to shut down."""
        self._drain_began = asyncio.get_running_loop().time()
        self._drain = asyncio.ensure_future(self.service.drain())

    def _end_of_grace(self) -> float:
        """The end of the shutdown grace, in the time of the loop, `MIN_SHUTDOWN_TIME` away at least."""
        now = asyncio.get_running_loop().time()
        began = now if self._drain_began is None else self._drain_began
        return max(began + self.settings.shutdown_grace, now + MIN_SHUTDOWN_TIME)


def _effective(settings: Settings | None, overrides: SettingsOverrides) -> Settings:
    """Return the settings of the arguments of a server; raises `InvalidSettings`."""
    if settings is None:
        return from_arguments(overrides)
    if overrides:
        raise InvalidSettings(f"give {', '.join(overrides)} within the settings, not beside them")
    cross_check(settings, settings.model_fields_set)
    return settings
