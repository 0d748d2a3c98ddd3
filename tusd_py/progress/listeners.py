"""The listeners of one process, their places, and the uploads that each of them watches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.core.progress import Interests
from tusd_py.progress.listener import Listener
from tusd_py.progress.ping_wheel import PingWheel
from tusd_py.progress.place import MayFollow, Place
from tusd_py.progress.watched import Numbers, Watched
from tusd_py.progress.watched_uploads import WatchedUploads

SHARE = 4  # one sender has at most one of so many places of listeners
MIN_SHARE = 8  # places that one sender may have of any number: the tabs of a browser
RETRY = (1000, 5000)  # milliseconds between which listeners of a server that ends choose when to come back


class TooManyListenersError(Exception):
    """The hub has as many listeners as it may have, or as many of one sender."""


class Listeners:
    """The register of listeners.

    Attributes:
        max_listeners: most listeners at a time.
        watched: the uploads whose state is known.
        wheel: pings idle streams.
        interests_changed: is called after what this process wants to hear of may have changed.
        watching_began: is called when somebody begins to watch uploads.
    """

    def __init__(self, instrumentation: Instrumentation, max_listeners: int, numbers: Numbers) -> None:
        """Take what is told of listeners and of messages, the limit of listeners, and the numbers of messages."""
        self.max_listeners = max_listeners
        self.watched = WatchedUploads(numbers, self._upload_ended, instrumentation.progress_told)
        self.wheel = PingWheel()
        self.interests_changed: Callable[[], object] = lambda: None
        self.watching_began: Callable[[], object] = lambda: None
        self._instrumentation = instrumentation
        self._places: dict[Listener, Place] = {}
        self._senders: Counter[str] = Counter()  # of the listeners
        self._owners: dict[str | None, set[Listener]] = {}  # of streams of all uploads; None: of every owner

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Listener]:
        return iter(list(self._places))

    def add(self, listener: Listener, kind: str, seconds: float, sender: str) -> None:
        """Add a listener whose stream lasts so many seconds; raises `TooManyListenersError`."""
        most = max(MIN_SHARE, self.max_listeners // SHARE)
        if len(self._places) >= self.max_listeners or (sender and self._senders[sender] >= most):
            raise TooManyListenersError
        self._senders[sender] += 1
        end = asyncio.get_running_loop().call_later(seconds, listener.end, RETRY[0])
        self.wheel.add(listener, len(self._places))
        self._places[listener] = Place(kind, end, sender)
        self._instrumentation.listeners_changed(kind, 1)

    def remove(self, listener: Listener) -> None:
        """Remove a listener, and end it; do nothing for one that has been removed."""
        listener.close()
        place = self._places.pop(listener, None)
        if place is None:
            return
        place.end.cancel()
        self._senders[place.sender] -= 1
        if not self._senders[place.sender]:
            del self._senders[place.sender]
        self._instrumentation.listeners_changed(place.kind, -1)
        self.wheel.remove(listener)
        for watched in place.watched:
            watched.listeners.discard(listener)
            self.keep(watched)
        for owner in [owner for owner, listeners in self._owners.items() if listener in listeners]:
            self._owners[owner].discard(listener)
            if not self._owners[owner]:
                del self._owners[owner]
                self.interests_changed()

    def place_of(self, listener: Listener) -> Place | None:
        """Return the place of a listener; None for one that has been removed."""
        return self._places.get(listener)

    # Watching.

    def watch(self, listener: Listener, watched: Watched) -> None:
        """Let a listener watch an upload, unless it has been removed."""
        place = self._places.get(listener)
        if place is None:
            return
        watched.listeners.add(listener)
        place.watched.add(watched)
        self.interests_changed()
        self.watching_began()

    def watch_owner(self, listener: Listener, owner: str | None, may_follow: MayFollow) -> Place:
        """Let a listener watch what will happen to the uploads of an owner, None for every owner; return its place."""
        place = self._places[listener]
        place.may_follow = may_follow
        self._owners.setdefault(owner, set()).add(listener)
        self.interests_changed()
        self.watching_began()
        return place

    def of_owner(self, owner: str) -> Sequence[tuple[Listener, Place]]:
        """Return the listeners to all uploads of an owner, and those to the uploads of everybody."""
        found = [*self._owners.get(owner, ()), *self._owners.get(None, ())]
        return [(listener, self._places[listener]) for listener in found]

    def has_listeners(self, upload_id: str, owner: str) -> bool:
        """Return whether anybody listens to the changes of an upload."""
        watched = self.watched.get(upload_id)
        return (watched is not None and bool(watched.listeners)) or owner in self._owners or None in self._owners

    @property
    def has_owners(self) -> bool:
        """Whether anybody listens to all uploads of an owner."""
        return bool(self._owners)

    @property
    def interests(self) -> Interests:
        """The changes that anybody wants to hear of."""
        ids = frozenset(watched.upload_id for watched in self.watched.listened())
        owners = frozenset(owner for owner in self._owners if owner is not None)
        return Interests(ids, owners, None in self._owners)

    def keep(self, watched: Watched) -> None:
        """Keep the state of an upload for a while if nobody watches it any more."""
        if not (watched.listeners or watched.readers):
            self.interests_changed()
            self.watched.keep(watched)

    def _upload_ended(self, watched: Watched, listeners: Collection[Listener]) -> None:
        """Take an upload that has ended from those who watched it: streams of all uploads go on without it."""
        for listener in listeners:
            if (place := self._places.get(listener)) is not None:
                place.watched.discard(watched)
        self.keep(watched)
