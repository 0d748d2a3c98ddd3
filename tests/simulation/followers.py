"""Listeners to live progress, each at one process, and the checks of what they are told."""

from __future__ import annotations

import asyncio
import functools
import json
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.oracle import Expected, Unreadable
from tests.simulation.servers import Host
from tusd_py import TusServer
from tusd_py.core.errors import UploadError
from tusd_py.core.progress import FINAL_KINDS, ProgressKind
from tusd_py.core.upload import Upload
from tusd_py.progress.listener import Listener
from tusd_py.progress.listeners import TooManyListenersError
from tusd_py.progress.messages import Message

if TYPE_CHECKING:
    from tests.simulation.world import World

LIFETIMES = (0.5, 5.0, 30.0)  # seconds that one listens, at most
ON_ITS_WAY = 40.0  # seconds after a loss in which messages may tell of what was lost
PATIENCE = 20.0  # seconds in which the end of an upload is told, by the comparison with the records at the latest


class Follower:
    """One follower, who listens to one upload after the other, or to several, at any process.

    Attributes:
        heard: the number of the last message about each upload, by its id.
    """

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.heard: dict[str, int] = {}

    async def live(self) -> None:
        """Listen again and again until the faults end."""
        while not self.world.is_calm:
            await asyncio.sleep(self.rng.random() * 4)
            host = self.world.host_for(self.rng)
            uploads = [upload for upload in self.world.oracle.uploads if upload.id]
            if host is None or host.process is None or host.process.paused or not uploads:
                continue
            lifetime = self.rng.choice(LIFETIMES)
            upload = None if self.rng.random() < 0.3 else self.rng.choice(uploads)
            listening = self.start(host, upload, lifetime)
            await asyncio.wait((listening,), timeout=lifetime * 2)

    def start(self, host: Host, upload: Expected | None, lifetime: float) -> asyncio.Task[bool]:
        """Listen to an upload, None for all, on behalf of a process; the result tells whether its end was told."""
        assert host.process is not None
        assert host.server is not None
        listening = self._listen(host.server, upload, lifetime)
        return self.world.loop.create_task(listening, context=host.process.context.copy())  # type: ignore[no-any-return]

    async def _listen(self, server: TusServer, upload: Expected | None, lifetime: float) -> bool:
        listener = Listener(None if upload is None else (upload.id,))
        has_ended = False
        try:
            server.hub.add(listener, "sse", lifetime, self.rng.choice(("", "ann")))
            goes_on = await self._begin(server, listener, upload)
            while goes_on and (messages := await listener.next()) is not None:
                for message in messages:
                    has_ended = await self._check(server, message) or has_ended
                await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.1, 2.0)) * self.rng.random())
            return has_ended or not goes_on
        except (UploadError, TooManyListenersError):  # there is no such upload, or something is away
            return upload is not None and upload.may_be_gone
        finally:
            server.hub.remove(listener)

    async def _begin(self, server: TusServer, listener: Listener, upload: Expected | None) -> bool:
        """Begin to listen; return False if the end was told before."""
        if upload is None:
            await server.hub.watch_owner(listener, None, _may_follow, server.service.list)
        elif self.rng.random() < 0.2:
            await server.hub.watch_several(listener, [upload.id], _may_follow)
        else:
            read = functools.partial(_read, server, upload.id)
            return await server.hub.watch(listener, upload.id, read, self.heard.get(upload.id))
        return True

    # Checks.

    async def _check(self, server: TusServer, message: Message) -> bool:
        """Check a message; return whether it tells that an upload has ended."""
        told: dict[str, Any] = json.loads(message.text)
        self.heard[message.upload_id] = message.number
        self.world.count(f"told of {message.kind}")
        upload = next((each for each in self.world.oracle.uploads if each.id == message.upload_id), None)
        is_end = message.kind in FINAL_KINDS or told["status"] in ("complete", "terminated", "expired")
        if upload is not None and self.world.loop.now - self.world.oracle.lost_at > ON_ITS_WAY:
            self.world.oracle.note_expiry(upload)
            if message.kind in FINAL_KINDS - {ProgressKind.FINISHED}:
                self._expect(upload.may_be_gone, upload, "is told to be gone")
            else:
                await self._check_offset(server, upload, told)
        return is_end

    async def _check_offset(self, server: TusServer, upload: Expected, told: dict[str, Any]) -> None:
        """Check that a HEAD would tell at least the offset that was told, whose bytes are stored."""
        losses = self.world.oracle.losses
        try:
            record = await server.service.find(upload.id)
            stored = self.world.oracle.look(upload.id)
        except (UploadError, Unreadable):
            return
        self.world.oracle.note_expiry(upload)
        if losses != self.world.oracle.losses or upload.may_be_gone:
            return
        offset = told["offset"]
        self._expect(record is not None and record.offset >= offset, upload, f"is told to be at {offset}: {record}")
        if upload.kind != "final" and stored is not None:
            self._expect(len(stored) >= offset, upload, f"is told to be at {offset}, and has {len(stored)} bytes")
        if told["type"] == ProgressKind.FINISHED:
            self._expect(offset == told["length"], upload, f"is told to be finished at {offset}")

    def _expect(self, holds: bool, upload: Expected, text: str) -> None:
        if not holds:
            self.world.complain(f"upload {upload.number} ({upload.id[:8]}) {text}")


class LastLook:
    """Listeners to all uploads once the faults have ended: each must be told of the end of its upload."""

    def __init__(self, world: World, follower: Follower) -> None:
        self._world = world
        self._follower = follower
        self._listening: list[tuple[Expected, asyncio.Task[bool]]] = []

    def begin(self) -> None:
        """Begin to listen, at any process."""
        for upload in self._world.oracle.uploads:
            host = self._world.host_for(self._follower.rng)
            if upload.id and host is not None:
                self._listening.append((upload, self._follower.start(host, upload, 3600.0)))

    async def end(self) -> None:
        """Check that all ends were told, and listen no more."""
        if not self._listening:
            return
        await asyncio.sleep(PATIENCE)
        for upload, listening in self._listening:
            if (upload.complete or upload.was_removed) and not listening.done():
                self._world.complain(f"a listener is not told that upload {upload.number} has ended")
            listening.cancel()
        await asyncio.wait([listening for _, listening in self._listening])
        for _, listening in self._listening:
            if not listening.cancelled() and (error := listening.exception()) is not None:
                self._world.complain(f"a listener meets {error!r}")


async def _may_follow(_: Upload) -> bool:
    return True


async def _read(server: TusServer, upload_id: str) -> Upload:
    return await server.service.get(upload_id)
