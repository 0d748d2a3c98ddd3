"""The streams of several uploads: which uploads each follows, and how it hears of new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from tusd_py.core.clock import Clock
from tusd_py.core.errors import UploadError
from tusd_py.core.listing import UploadFilter
from tusd_py.core.progress import Change, ProgressKind
from tusd_py.core.upload import Status, Upload
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import RETRY, Listeners
from tusd_py.progress.messages import Message
from tusd_py.progress.place import MAX_ASKING, Key, ListsUploads, MayFollow, Place
from tusd_py.progress.watched_uploads import WatchedUploads

MAX_FOLLOWED = 1000  # uploads of one stream that are not finished; those that stand still make room for others
ROOM = 0.1  # part of them that makes room at a time
JOINS_AT_ONCE = 16  # uploads of streams of several, of this process, after which others have their turn
LISTS_AT_ONCE = 2  # pages of records, of this process, that are looked at for streams that begin
LISTED_PAGES = 3  # pages of records in which the unfinished uploads of an owner are looked for at the beginning


class StreamsOfSeveral:
    """The streams of named uploads, and those of all uploads of an owner, of one process."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Upload | None]],
        clock: Clock,
        watched: WatchedUploads,
        listeners: Listeners,
    ) -> None:
        """Take the function that returns a record, the clock of the records, the known uploads and the listeners."""
        self._find = find
        self._clock = clock
        self._watched = watched
        self._listeners = listeners
        self._introductions: set[asyncio.Task[None]] = set()
        self.open()

    def open(self) -> None:
        """Begin, in another event loop too."""
        self._joins = asyncio.Semaphore(JOINS_AT_ONCE)
        self._lists = asyncio.Semaphore(LISTS_AT_ONCE)

    def stop(self) -> None:
        """End the decisions that are under way."""
        for task in self._introductions:
            task.cancel()

    async def watch_named(self, listener: Listener, upload_ids: Sequence[str], may_follow: MayFollow) -> None:
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
        place = self._listeners.watch_owner(listener, owner, may_follow)
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
                watched.reconcile(upload, self._clock.wall())
            if self._listeners.place_of(listener) is None or not watched.is_of(upload):
                return None
            if watched.has_ended:
                listener.upload_ended(upload_id)
            else:
                self._listeners.watch(listener, watched)
            return watched.snapshot(self._clock.wall())
        finally:
            watched.readers -= 1
            self._listeners.keep(watched)

    # New uploads of an owner.

    def introduce(self, change: Change) -> None:
        """Ask whether the listeners to all uploads of an owner that do not know this one yet may follow it."""
        for listener, place in self._listeners.of_owner(change.owner):
            key = (change.id, change.created_at)
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
        """Let a stream leave uploads that stand still; `introduce` brings them back with their next changes."""
        for watched in place.leave_still(max(1, int(MAX_FOLLOWED * ROOM))):
            watched.listeners.discard(listener)
            self._listeners.keep(watched)

    def _come_back(self, listener: Listener, place: Place, key: Key) -> bool:
        """Let a stream watch an upload that it has left; its right lasts as long as it. Return False for any other."""
        watched = self._watched.get(key[0])
        is_of_another = watched is not None and watched.last is not None and watched.last.created_at != key[1]
        if key not in place.left or is_of_another:
            return False
        place.left.discard(key)
        self._listeners.watch(listener, self._watched.state_of(key[0]))
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
            listener.put(watched.snapshot(self._clock.wall(), kind))
