"""The hub of live progress: hears of changes, and tells the listeners of this process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence

from tusd_py.contracts.change_feed import ChangeFeed
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import Locker
from tusd_py.core.clock import Clock
from tusd_py.core.errors import ServerShutdown, UploadError, UploadNotFound
from tusd_py.core.listing import UploadFilter
from tusd_py.core.progress import Change, Interests, ProgressKind, change_of
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.progress.bus_changes import BusChanges
from tusd_py.progress.listener import Listener
from tusd_py.progress.message_numbers import MessageNumbers
from tusd_py.progress.messages import Message
from tusd_py.progress.ping_wheel import PingWheel
from tusd_py.progress.place import MAX_ASKING, Key, ListsUploads, MayFollow, Place
from tusd_py.progress.reconciler import Reconciler
from tusd_py.progress.watched import Watched
from tusd_py.progress.watched_uploads import WatchedUploads

MAX_FOLLOWED = 1000  # uploads of one stream that are not finished; those that stand still make room for others
SHARE = 4  # one sender has at most one of so many places of listeners
MIN_SHARE = 8  # places that one sender may have of any number: the tabs of a browser
ROOM = 0.1  # part of them that makes room at a time
JOINS_AT_ONCE = 16  # uploads of streams of several, of this process, after which others have their turn
LISTS_AT_ONCE = 2  # pages of records, of this process, that are looked at for streams that begin
LISTED_PAGES = 3  # pages of records in which the unfinished uploads of an owner are looked for at the beginning
RETRY = (1000, 5000)  # milliseconds between which listeners of a server that ends choose when to come back
LAST_WRITE_TIMEOUT = 0.5  # seconds in which a listener has to take the end


class TooManyListenersError(Exception):
    """The hub has as many listeners as it may have, or as many of one sender."""


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
        self.max_listeners = max_listeners
        self._find = find
        self._locker = locker
        self._clock = clock
        self._feed = feed
        self.watching_began: Callable[[], object] = lambda: None  # called when somebody begins to watch uploads
        self._wanting: asyncio.Handle | None = None  # the call that tells the feed what is wanted
        self._instrumentation = instrumentation
        self._watched = WatchedUploads(MessageNumbers(clock), self._ended, instrumentation.progress_told)
        self._listeners: dict[Listener, Place] = {}
        self._senders: Counter[str] = Counter()  # of the listeners
        self._owners: dict[str | None, set[Listener]] = {}  # of streams of all uploads; None: of every owner
        self._introductions: set[asyncio.Task[None]] = set()
        self._joins = asyncio.Semaphore(JOINS_AT_ONCE)
        self._lists = asyncio.Semaphore(LISTS_AT_ONCE)
        self._wheel = PingWheel()
        self._ticker: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._reconciler = Reconciler(find, locker, clock, self._watched.listened)
        self._reconciler.hears_all = self._hears_all
        self._bus = BusChanges(events, self._take)

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
        most = max(MIN_SHARE, self.max_listeners // SHARE)
        if len(self._listeners) >= self.max_listeners or (sender and self._senders[sender] >= most):
            raise TooManyListenersError
        self._senders[sender] += 1
        end = asyncio.get_running_loop().call_later(seconds, listener.end, RETRY[0])
        self._wheel.add(listener, len(self._listeners))
        self._listeners[listener] = Place(kind, end, sender)
        self._instrumentation.listeners_changed(kind, 1)
        self._start()

    def remove(self, listener: Listener) -> None:
        """Remove a listener, and end it; do nothing for one that has been removed."""
        listener.close()
        place = self._listeners.pop(listener, None)
        if place is None:
            return
        place.end.cancel()
        self._senders[place.sender] -= 1
        if not self._senders[place.sender]:
            del self._senders[place.sender]
        self._instrumentation.listeners_changed(place.kind, -1)
        self._wheel.remove(listener)
        for watched in place.watched:
            watched.listeners.discard(listener)
            self._keep(watched)
        for owner in [owner for owner, listeners in self._owners.items() if listener in listeners]:
            self._owners[owner].discard(listener)
            if not self._owners[owner]:
                del self._owners[owner]
                self._want_soon()

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
            elif (place := self._listeners.get(listener)) is not None:
                watched.listeners.add(listener)
                place.watched.add(watched)
                self._want_soon()
                self.watching_began()
            return True
        finally:
            watched.readers -= 1
            self._keep(watched)

    # Several uploads.

    async def watch_several(self, listener: Listener, upload_ids: Sequence[str], may_follow: MayFollow) -> None:
        """Let a listener watch the uploads of these ids that exist and that it may follow, each from a snapshot on."""
        snapshots: list[Message] = []
        for upload_id in upload_ids:
            message = None
            with contextlib.suppress(UploadError):  # an upload that cannot be read is left out too
                message = await self._join_in_turn(listener, upload_id, may_follow)
            if message is None:
                listener.upload_ended(upload_id)
            else:
                snapshots.append(message)
        listener.begin(snapshots)
        if not upload_ids:
            listener.end()

    async def watch_owner(
        self, listener: Listener, owner: str | None, may_follow: MayFollow, list_uploads: ListsUploads
    ) -> None:
        """Let a listener watch all uploads of an owner, None for every owner, that it may follow.

        Begins with snapshots of the unfinished ones, as far as a look at some thousand records finds them.
        """
        place = self._listeners[listener]
        place.may_follow = may_follow
        self._owners.setdefault(owner, set()).add(listener)
        self._want_soon()
        self.watching_began()
        snapshots: list[Message] = []
        after: str | None = ""
        for _ in range(LISTED_PAGES):
            condition = UploadFilter(status=Status.ACTIVE, owner=owner)
            async with self._lists:
                page = await list_uploads(after=after or "", limit=MAX_FOLLOWED, condition=condition)
            for upload in page.uploads[: MAX_FOLLOWED - len(snapshots)]:
                place.note((upload.id, upload.created_at))
                with contextlib.suppress(UploadError):
                    message = await self._join_in_turn(listener, upload.id, may_follow)
                    if message is not None:
                        snapshots.append(message)
            after = page.after
            if after is None or len(snapshots) >= MAX_FOLLOWED:
                break
        listener.begin(snapshots)
        if not snapshots:
            listener.ping()

    async def _join_in_turn(self, listener: Listener, upload_id: str, may_follow: MayFollow) -> Message | None:
        """Do as `_join`, which may run without a pause, so that others have their turn after some of them."""
        async with self._joins:
            await asyncio.sleep(0)
        return await self._join(listener, upload_id, may_follow)

    async def _join(self, listener: Listener, upload_id: str, may_follow: MayFollow) -> Message | None:
        """Let a listener watch one of several uploads; return its snapshot, None if it may not or there is none."""
        watched = self._watched.state_of(upload_id)
        watched.readers += 1
        try:
            version = watched.version
            upload = await self._find(upload_id)
            if upload is None or not await may_follow(upload) or upload.has_ended:
                return None
            if watched.version == version or watched.last is None:
                watched.reconcile(upload, self._time())
            place = self._listeners.get(listener)
            if place is None or not watched.is_of(upload):
                return None
            if watched.has_ended:
                listener.upload_ended(upload_id)
            else:
                watched.listeners.add(listener)
                place.watched.add(watched)
                self._want_soon()
                self.watching_began()
            return watched.snapshot(self._time())
        finally:
            watched.readers -= 1
            self._keep(watched)

    def snapshots(self, listener: Listener) -> Sequence[Message]:
        """Return the state of every upload that a listener watches, as far as it is known."""
        place = self._listeners.get(listener)
        return [] if place is None else [one.snapshot(self._time()) for one in place.watched if one.last is not None]

    def _introduce(self, change: Change) -> None:
        """Ask whether the listeners to all uploads of an owner that do not know this one yet may follow it."""
        for listener in [*self._owners.get(change.owner, ()), *self._owners.get(None, ())]:
            place, key = self._listeners[listener], (change.id, change.created_at)
            if key in place.known or place.may_follow is None:
                continue
            if place.asking >= MAX_ASKING:
                listener.end(RETRY[0])
                continue
            if len(place.watched) + place.asking >= MAX_FOLLOWED:
                self._make_room(listener, place)
            if not self._come_back(listener, place, key):
                self._ask(listener, place, place.may_follow, change)
            place.note(key)

    def _make_room(self, listener: Listener, place: Place) -> None:
        """Let a stream leave uploads that stand still; `_introduce` brings them back with their next changes."""
        for watched in place.leave_still(max(1, int(MAX_FOLLOWED * ROOM))):
            watched.listeners.discard(listener)
            self._keep(watched)

    def _come_back(self, listener: Listener, place: Place, key: Key) -> bool:
        """Let a stream watch an upload that it has left; its right lasts as long as it. Return False for any other."""
        watched = self._watched.get(key[0])
        is_of_another = watched is not None and watched.last is not None and watched.last.created_at != key[1]
        if key not in place.left or is_of_another:
            return False
        place.left.discard(key)
        watched = self._watched.state_of(key[0])
        watched.listeners.add(listener)
        place.watched.add(watched)
        self._want_soon()
        return True

    def _ask(self, listener: Listener, place: Place, may_follow: MayFollow, change: Change) -> None:
        def done(task: asyncio.Task[None]) -> None:
            place.asking -= 1
            self._introductions.discard(task)

        place.asking += 1
        task = asyncio.get_running_loop().create_task(self._introduce_to(listener, may_follow, change))
        self._introductions.add(task)
        task.add_done_callback(done)

    async def _introduce_to(self, listener: Listener, may_follow: MayFollow, change: Change) -> None:
        with contextlib.suppress(UploadError):
            message = await self._join_in_turn(listener, change.id, may_follow)
            watched = self._watched.get(change.id)
            if message is None or watched is None or watched.last is None:
                return
            kind = watched.last.kind if watched.has_ended else message.kind
            if change.kind is ProgressKind.CREATED and not watched.has_ended:
                kind = ProgressKind.CREATED
            listener.put(watched.snapshot(self._time(), kind))

    def _ended(self, watched: Watched, listeners: Collection[Listener]) -> None:
        """Take an upload that has ended from those who watched it: streams of all uploads go on without it."""
        for listener in listeners:
            if (place := self._listeners.get(listener)) is not None:
                place.watched.discard(watched)
        self._keep(watched)

    def _keep(self, watched: Watched) -> None:
        """Keep the state of an upload for a while if nobody watches it any more."""
        if not (watched.listeners or watched.readers):
            self._want_soon()
            self._watched.keep(watched)

    # Other processes.

    def watches(self, upload: Upload) -> bool:
        """Return whether anybody listens to the changes of an upload, here or in another process."""
        watched = self._watched.get(upload.id)
        if (watched is not None and watched.listeners) or upload.owner in self._owners or None in self._owners:
            return True
        return self._feed is not None and self._feed.wants(upload.id, upload.owner)

    def changed(self, change: Change) -> None:
        """Take a change, of another process too."""
        if self._owners:
            self._introduce(change)
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
            self.watching_began()

    def _hears_all(self) -> bool:
        return self._feed is not None and self._feed.works

    def _want_soon(self) -> None:
        if self._feed is not None and self._wanting is None:
            self._wanting = asyncio.get_running_loop().call_soon(self._want)

    def _want(self) -> None:
        self._wanting = None
        if self._feed is not None:
            ids = frozenset(watched.upload_id for watched in self._watched.listened())
            owners = frozenset(owner for owner in self._owners if owner is not None)
            self._feed.want(Interests(ids, owners, None in self._owners))

    def _time(self) -> float:
        return self._clock.wall()

    # Running.

    def open(self) -> None:
        """Accept listeners, again after `drain` and `close`, in another event loop too."""
        self._is_draining = False
        self._joins = asyncio.Semaphore(JOINS_AT_ONCE)
        self._lists = asyncio.Semaphore(LISTS_AT_ONCE)

    def drain(self) -> None:
        """End all listeners, and tell them to come back in some seconds; accept no new ones."""
        self._is_draining = True
        for listener in list(self._listeners):
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
        for task in self._introductions:
            task.cancel()
        for handle in (self._ticker, self._wanting):
            if handle is not None:
                handle.cancel()
        self._ticker = self._wanting = None

    def _tick(self, due: float) -> None:
        """Ping some of the listeners, and drop what has been kept for long; runs every second while there is any."""
        loop = asyncio.get_running_loop()
        self._wheel.turn()
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
        if self._watched.get(upload.id) is None and not is_wanted and not self._owners:
            return
        change = change_of(upload, kind, self._time(), code)
        self.changed(change)
        if feed is not None and is_wanted:
            feed.publish(change)
