"""The change feed of the processes of one host: each has a Unix socket in a folder that they share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tusd_py.backends.local_feed.peers import Question, Subscriber, Subscription
from tusd_py.contracts.change_feed import FeedReceiver
from tusd_py.core.lock_reports import Answers
from tusd_py.core.progress import NO_INTERESTS, Change, Interests
from tusd_py.core.progress_codec import decode_change, encode_interests

logger = logging.getLogger("tusd_py.progress")

TELL_INTERVAL = 0.05  # seconds between two lines about the interests of this process
MAX_IDS = 1000  # uploads in one line; beyond it a process wants everything
BACKLOG = 128
NAME = re.compile(r"[0-9]+-[0-9a-f]{8}")
NEW = "new-"  # before the name of a socket that nobody listens on yet
# From Python 3.13 on, event loops remove the socket by its name, and ask for the file with a blocking call.
KEEP_SOCKET_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
NEW_TIME = 60.0  # seconds after which such a socket is what a process that died has left


class LocalFeed:
    """The feed of one process (`tusd_py.contracts.change_feed.ChangeFeed`).

    A process with interests is connected to all others; one without has its socket only, which costs nothing. A socket
    that nobody listens on any more is removed by the next process that connects to it.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder of the sockets, which is made with the first."""
        self._folder = folder
        self._name = ""  # of the socket
        self._descriptor = -1  # of the folder: its path may be too long for the name of a socket
        self._receiver: FeedReceiver | None = None
        self._server: asyncio.Server | None = None
        self._subscribers: set[Subscriber] = set()
        self._subscriptions: dict[str, Subscription | None] = {}  # by name; None while connecting
        self._tasks: set[asyncio.Task[None]] = set()
        self._interests = NO_INTERESTS
        self._timer: asyncio.TimerHandle | None = None
        self._reports: Callable[[], str] = lambda: "[]"  # the locks of this process

    @property
    def works(self) -> bool:
        """Whether this process can hear of the others."""
        return self._server is not None

    @property
    def is_wanted(self) -> bool:
        """Whether another process wants any changes."""
        return any(subscriber.interests for subscriber in self._subscribers)

    def wants(self, upload_id: str, owner: str) -> bool:
        """Return whether another process wants the changes of this upload."""
        return any(subscriber.interests.include(upload_id, owner) for subscriber in self._subscribers)

    async def open(self, receiver: FeedReceiver) -> None:
        """Listen, and tell the other processes of this one."""
        self._receiver = receiver
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            listener = await asyncio.to_thread(self._make_socket)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(
                self._new_subscriber, sock=listener, backlog=BACKLOG, **KEEP_SOCKET_FILE
            )
        except OSError as error:
            logger.warning(
                "live progress of other processes comes a second late: there is no socket in %s (%s)",
                self._folder,
                error.strerror,
            )
            await asyncio.to_thread(self._close_folder)
            return
        await asyncio.to_thread(self._greet)

    def _make_socket(self) -> socket.socket:
        """Make the folder, and a socket in it, which has its name only once others can connect to it.

        Runs in a worker thread.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        new = f"{NEW}{self._name}"
        try:
            listener.bind(self._path(new))
            os.chmod(new, 0o600, dir_fd=self._descriptor)
            listener.listen(BACKLOG)
            os.rename(new, self._name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError:
            listener.close()
            self._remove(new)
            raise
        self._remove_old()
        return listener

    def _remove_old(self) -> None:
        """Remove what processes have left that died between the making of their socket and listening."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._descriptor):
                if not (name.startswith(NEW) and NAME.fullmatch(name.removeprefix(NEW))):
                    continue
                with contextlib.suppress(OSError):
                    made_at = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mtime
                    if time.time() - made_at > NEW_TIME:
                        self._remove(name)

    def _greet(self) -> None:
        """Tell the other processes of this one. Runs in a worker thread."""
        for name in self._others():
            with contextlib.suppress(OSError), self._connected(name) as sock:
                sock.send(f"hello {self._name}\n".encode())

    async def close(self) -> None:
        """End all connections, and remove the socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks:
            task.cancel()
        for connection in [*self._subscribers, *self._subscriptions.values()]:
            if connection is not None:
                connection.abort()
        self._interests = NO_INTERESTS
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await asyncio.to_thread(self._remove, self._name)
        await asyncio.to_thread(self._close_folder)

    def _close_folder(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # Publishing.

    def publish(self, change: Change) -> None:
        """Send a change to those that want it."""
        for subscriber in self._subscribers:
            if subscriber.interests.include(change.id, change.owner):
                subscriber.publish(change)

    def _new_subscriber(self) -> Subscriber:
        subscriber = Subscriber(self._subscriber_ended, self._interest_changed, self._greeted, lambda: self._reports())
        self._subscribers.add(subscriber)
        return subscriber

    def _subscriber_ended(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)
        self._interest_changed()

    def _interest_changed(self) -> None:
        if self._receiver is not None and self.works:
            self._receiver.interest_changed()

    # Listening.

    def want(self, interests: Interests) -> None:
        """Tell the other processes what this one wants, soon."""
        if interests == self._interests or not self.works:
            return
        self._interests = interests
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_INTERVAL, self._tell)

    def _tell(self) -> None:
        self._timer = None
        for subscription in list(self._subscriptions.values()):
            if subscription is not None:
                if self._interests:
                    subscription.send("want", encode_interests(self._interests, MAX_IDS))
                else:
                    subscription.close()
        if self._interests:
            self._start(self._subscribe_to_all())

    async def _subscribe_to_all(self) -> None:
        for name in await asyncio.to_thread(self._others):
            self._subscribe(name)

    def _greeted(self, name: str) -> None:
        if self._interests and NAME.fullmatch(name):
            self._subscribe(name)

    def _subscribe(self, name: str) -> None:
        if name not in self._subscriptions:
            self._subscriptions[name] = None
            self._start(self._connect(name))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, name: str) -> None:
        def ended(subscription: Subscription) -> None:
            if self._subscriptions.get(name) is subscription:
                del self._subscriptions[name]

        try:
            sock = await asyncio.to_thread(self._connected, name)
            try:
                loop = asyncio.get_running_loop()
                _, subscription = await loop.create_unix_connection(
                    lambda: Subscription(ended, self._received), sock=sock
                )
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            logger.debug("process %s cannot be reached: %s", name, error)
            self._subscriptions.pop(name, None)
            return
        self._subscriptions[name] = subscription
        subscription.send("want", encode_interests(self._interests, MAX_IDS))

    def _received(self, kind: str, rest: str) -> None:
        if self._receiver is None:
            return
        if kind == "lost":
            self._receiver.lost_changes()
        elif kind == "change" and (change := decode_change(rest)) is not None:
            self._receiver.changed(change)

    # Questions about locks (`tusd_py.contracts.process_questions.AsksProcesses`).

    def answer_with(self, reports: Callable[[], str]) -> None:
        """Answer questions of other processes with the text that a function returns."""
        self._reports = reports

    async def ask_for_locks(self, timeout: float) -> Answers:
        """Ask all other processes for the locks that they hold."""
        sockets, busy = await asyncio.to_thread(self._connected_to_others)
        answers = await asyncio.gather(*(self._ask(sock, timeout) for sock in sockets))
        texts = [text for text in answers if text is not None]
        return Answers(texts, busy + len(answers) - len(texts))

    async def _ask(self, sock: socket.socket, timeout: float) -> str | None:
        """Return the answer of one process; None if there is none in time."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout):
                loop = asyncio.get_running_loop()
                with sock:
                    transport, question = await loop.create_unix_connection(Question, sock=sock.dup())
                try:
                    question.send("locks")
                    return await question.answer
                finally:
                    transport.abort()
        return None

    # The folder.

    def _connected_to_others(self) -> tuple[Sequence[socket.socket], int]:
        """Return sockets that are connected to the others, and the number of those that are too busy for it.

        Runs in a worker thread.
        """
        sockets, busy = [], 0
        for name in self._others():
            try:
                sockets.append(self._connected(name))
            except OSError as error:
                busy += error.errno == errno.EAGAIN
        return sockets, busy

    def _others(self) -> list[str]:
        """Return the names of the other processes. Runs in a worker thread."""
        with contextlib.suppress(OSError):
            return [name for name in os.listdir(self._descriptor) if name != self._name and NAME.fullmatch(name)]
        return []

    def _path(self, name: str) -> str:
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def _connected(self, name: str) -> socket.socket:
        """Return a socket that is connected to a process; raises `OSError` if that is not possible at once.

        Runs in a worker thread.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path(name))
        except OSError as error:
            sock.close()
            if error.errno == errno.ECONNREFUSED:  # its process has died
                self._remove(name)
            raise
        return sock

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)
