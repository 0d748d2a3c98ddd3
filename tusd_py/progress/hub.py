"""The hub of live progress: hears of changes, and tells the listeners of this process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

from tusd_py.contracts.change_feed import ChangeFeed
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import Locker
from tusd_py.core.clock import Clock
from tusd_py.core.errors import ServerShutdown, UploadError, UploadNotFound
from tusd_py.core.progress import Change, ProgressKind, change_of
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.progress.bus_changes import BusChanges
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import RETRY, Listeners
from tusd_py.progress.message_numbers import MessageNumbers
from tusd_py.progress.messages import Message
from tusd_py.progress.place import ListsUploads, MayFollow
from tusd_py.progress.reconciler import Reconciler
from tusd_py.progress.streams import StreamsOfSeveral

LAST_WRITE_TIMEOUT = 0.5  # seconds in which a listener has to take the end


class ProgressHub:
    """The listeners of one process, and the uploads that they watch.

    Observes the bus while somebody listens, so that nobody's listening costs nothing. Every method runs in the event
    loop.
    """

    def __init__(
        self,
        events: EventBus,
        find: Callable[[str], Awaitable[Upload | None]],
        locker: Locker,
        clock: Clock,
        instrumentation: Instrumentation = NO_INSTRUMENTATION,
        feed: ChangeFeed | None = None,
        *,
        max_listeners: int,
    ) -> None:
        """Prepare the hub.

        Args:
            events: the bus of the server.
            find: returns the record of an upload, also of one that has ended; None if there is none.
            locker: tells whether an append still runs.
            clock: the clock of the records.
            instrumentation: is told of the number of listeners, and of messages.
            feed: brings the changes of other processes; without one the records are compared more often.
            max_listeners: most listeners at a time.
        """
        self._locker = locker
        self._clock = clock
        self._feed = feed
        self._wanting: asyncio.Handle | None = None  # the call that tells the feed what is wanted
        self._listeners = Listeners(instrumentation, max_listeners, MessageNumbers(clock))
        self._listeners.interests_changed = self._want_soon
        self._watched = self._listeners.watched
        self._several = StreamsOfSeveral(find, clock, self._watched, self._listeners)
        self._ticker: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._reconciler = Reconciler(find, locker, clock, self._watched.listened)
        self._reconciler.hears_all = self._hears_all
        self._bus = BusChanges(events, self._take)

    @property
    def max_listeners(self) -> int:
        """Most listeners at a time."""
        return self._listeners.max_listeners

    @max_listeners.setter
    def max_listeners(self, limit: int) -> None:
        self._listeners.max_listeners = limit

    def call_when_watching_begins(self, call: Callable[[], object]) -> None:
        """Have a function called whenever somebody begins to watch uploads, here or in another process."""
        self._listeners.watching_began = call

    # Listening.

    def add(self, listener: Listener, kind: str, seconds: float, sender: str = "") -> None:
        """Add a listener.

        Args:
            listener: the listener.
            kind: the kind of its stream, `sse` or `websocket`.
            seconds: the time after which its stream ends.
            sender: the name of its sender, who may have a part of the places; empty if there is none.

        Raises:
            ServerShutdown: the server is about to end.
            TooManyListenersError: there can be no other listener now.
        """
        if self._is_draining:
            raise ServerShutdown
        self._listeners.add(listener, kind, seconds, sender)
        self._start()

    def remove(self, listener: Listener) -> None:
        """Remove a listener, and end it; do nothing for one that has been removed."""
        self._listeners.remove(listener)

    async def watch(
        self, listener: Listener, upload_id: str, read: Callable[[], Awaitable[Upload]], last_number: int | None
    ) -> bool:
        """Let a listener watch an upload, and begin with what it has missed, or with a snapshot.

        Args:
            listener: the listener, which has been added.
            upload_id: the id of the upload.
            read: returns the record, if it may be read. Its errors are raised.
            last_number: the number of the last message that the client has got before; None if there is none.

        Returns:
            False if the client has got the last message about the upload.

        Raises:
            UploadNotFound: the upload has ended, and its id is that of another one.
        """
        watched = self._watched.state_of(upload_id)
        watched.readers += 1
        try:
            version = watched.version
            upload = await read()
            if watched.version == version or watched.last is None:
                watched.reconcile(upload, self._time())
            if upload.status is Status.ACTIVE and not watched.appending:
                with contextlib.suppress(UploadError):
                    if await self._locker.is_held(upload_id):
                        watched.appending = True
            if not watched.is_of(upload):
                raise UploadNotFound
            if watched.has_ended and last_number is not None and last_number % 2:
                return False
            missed = watched.since(last_number)
            listener.begin([watched.snapshot(self._time())] if missed is None else missed)
            if missed is not None and not missed:
                listener.ping()
            if watched.has_ended:
                listener.upload_ended(upload_id)
            else:
                self._listeners.watch(listener, watched)
            return True
        finally:
            watched.readers -= 1
            self._listeners.keep(watched)

    async def watch_several(self, listener: Listener, upload_ids: Sequence[str], may_follow: MayFollow) -> None:
        """Let a listener watch the uploads of these ids, see `StreamsOfSeveral.watch_named`."""
        await self._several.watch_named(listener, upload_ids, may_follow)

    async def watch_owner(
        self, listener: Listener, owner: str | None, may_follow: MayFollow, list_uploads: ListsUploads
    ) -> None:
        """Let a listener watch all uploads of an owner, see `StreamsOfSeveral.watch_owner`."""
        await self._several.watch_owner(listener, owner, may_follow, list_uploads)

    def snapshots(self, listener: Listener) -> Sequence[Message]:
        """Return the state of every upload that a listener watches, as far as it is known."""
        place = self._listeners.place_of(listener)
        return [] if place is None else [one.snapshot(self._time()) for one in place.watched if one.last is not None]

    # Other processes.

    def watches(self, upload: Upload) -> bool:
        """Return whether anybody listens to the changes of an upload, here or in another process."""
        if self._listeners.has_listeners(upload.id, upload.owner):
            return True
        return self._feed is not None and self._feed.wants(upload.id, upload.owner)

    def changed(self, change: Change) -> None:
        """Take a change, of another process too."""
        if self._listeners.has_owners:
            self._several.introduce(change)
        watched = self._watched.get(change.id)
        if watched is not None:
            watched.take(change)

    def lost_changes(self) -> None:
        """Compare with the records."""
        self._reconciler.look_now()

    def interest_changed(self) -> None:
        """Observe the bus while another process wants changes."""
        if self._feed is not None and self._feed.is_wanted:
            self._start()
            self._listeners.watching_began()

    def _hears_all(self) -> bool:
        return self._feed is not None and self._feed.works

    def _want_soon(self) -> None:
        if self._feed is not None and self._wanting is None:
            self._wanting = asyncio.get_running_loop().call_soon(self._want)

    def _want(self) -> None:
        self._wanting = None
        if self._feed is not None:
            self._feed.want(self._listeners.interests)

    def _time(self) -> float:
        return self._clock.wall()

    # Running.

    def open(self) -> None:
        """Accept listeners, again after `drain` and `close`, in another event loop too."""
        self._is_draining = False
        self._several.open()

    def drain(self) -> None:
        """End all listeners, and tell them to come back in some seconds; accept no new ones."""
        self._is_draining = True
        for listener in self._listeners:
            listener.end(random.randint(*RETRY))
        if self._listeners:
            asyncio.get_running_loop().call_later(LAST_WRITE_TIMEOUT, self._give_up)

    def close(self) -> None:
        """End everything at once."""
        self.drain()
        self._give_up()
        self._watched.close()
        self._stop()

    def forget(self) -> None:
        """Stop observing; called after the event loop of the listeners has been closed."""
        self._bus.unobserve()

    def _give_up(self) -> None:
        """End the listeners that have not taken the end; after a new start there are only new ones."""
        for listener in [listener for listener in self._listeners if listener.ended]:
            if listener.give_up is not None:
                listener.give_up()

    def _start(self) -> None:
        if self._ticker is not None:
            return
        self._bus.observe()
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(1, self._tick, loop.time() + 1)

    def _stop(self) -> None:
        self.forget()
        self._reconciler.stop()
        self._several.stop()
        for handle in (self._ticker, self._wanting):
            if handle is not None:
                handle.cancel()
        self._ticker = self._wanting = None

    def _tick(self, due: float) -> None:
        """Ping some of the listeners, and drop what has been kept for long; runs every second while there is any."""
        loop = asyncio.get_running_loop()
        self._listeners.wheel.turn()
        self._watched.drop_old()
        is_wanted = self._feed is not None and self._feed.is_wanted
        if not (self._watched or self._listeners or is_wanted):
            self._stop()
            return
        self._reconciler.tick()
        due = max(due + 1, loop.time())
        self._ticker = loop.call_at(due, self._tick, due)

    # Changes, as the bus tells of them.

    def _take(self, upload: Upload, kind: ProgressKind, code: str = "") -> None:
        feed = self._feed
        is_wanted = feed is not None and feed.wants(upload.id, upload.owner)
        if self._watched.get(upload.id) is None and not is_wanted and not self._listeners.has_owners:
            return
        change = change_of(upload, kind, self._time(), code)
        self.changed(change)
        if feed is not None and is_wanted:
            feed.publish(change)
