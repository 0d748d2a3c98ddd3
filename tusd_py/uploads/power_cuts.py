"""Power cuts: bytes that were acknowledged without a sync are proven by nothing once the machine has gone down.

A file system may store the size of a file before its bytes, so that a file as long as its record can have zeros at any
place after the last sync, and no look at it tells. While servers run, the id of the boot therefore stands beside the
records; the last one that stops cleanly syncs everything and takes it away. A server that finds the id of an earlier
boot sets every unfinished upload back to the bytes that were synced, before it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

from tusd_py.asyncutil.futures import settle
from tusd_py.contracts.locks import CountsServers, Lock, Locker, named_lock
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage, SyncsAll, WholeSync
from tusd_py.core.durability import BOOT
from tusd_py.core.errors import LockLost, LockTimeout, StateFull, StateUnavailable, UploadError
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.lifetimes import Lifetimes
from tusd_py.uploads.lock_holders import NonInterruptibleHolder

logger = logging.getLogger("tusd_py.storage")

SYNCED = "synced"  # in place of the note of a server, after a clean stop
UNKNOWN = "-"  # in a note, in place of the id of a mount
SETTLE_TIMEOUT = 60.0  # seconds to wait for another server that sets uploads back
LEAVE_TIMEOUT = 1.0  # seconds to wait for another server that starts or stops
MAX_LOOKED_AT = 1000  # records that are read to find out whether there is anything to sync


def has_lost_pages(note: str | None, era: str, mount: str, *, same_kernel: bool = False) -> bool:
    """Return whether bytes that were not synced may be gone: the machine was down, or the file system was unmounted.

    Args:
        note: the note of the last server, "BOOT MOUNT TOKEN"; None if there is none.
        era: the id of this boot.
        mount: the id of this mount of the file system; empty if it is unknown, which proves nothing.
        same_kernel: whether a running server proves that the note is of this boot, although its id may be another here.
    """
    if note is None or note == SYNCED:
        return False
    if note.partition(" ")[0] != era and not same_kernel:
        return True
    return bool(mount) and _mount_of(note) not in (mount, UNKNOWN)


def _mount_of(note: str) -> str:
    """Return the id of the mount in a note, which means something in the boot of the note only, or `UNKNOWN`."""
    words = note.split(" ")
    return words[1] if len(words) == 3 else UNKNOWN


def _mount_to_note(before: str | None, era: str, mount: str, *, same_kernel: bool) -> str:
    """Return the id of the mount for a new note: that of the note before where this server knows none."""
    if mount or before is None or not (same_kernel or before.partition(" ")[0] == era):
        return mount or UNKNOWN
    return _mount_of(before)


class PowerCuts:
    """The account of one server of whether bytes may have been lost by a power cut.

    Does nothing where several machines share the records, or the system has no id of its boot.
    """

    def __init__(self, state: StateStore, locker: Locker, storage: Storage, lifetimes: Lifetimes) -> None:
        self._state = state
        self._locker = locker
        self._storage = storage
        self._lifetimes = lifetimes
        self._sync: WholeSync | None = None  # while this server counts
        self._lacks_note = False  # for which the disk has had no room

    async def settle(self, *, syncs: bool = True) -> None:
        """Note that this server may leave bytes that are not synced, after the account of an earlier boot is settled.

        A server that `syncs` nothing, by its settings, leaves that account to the next one that does.

        Raises:
            StateFull, StateUnavailable: the records cannot be changed now.
        """
        era = await asyncio.to_thread(self._state.clock.era)
        if not isinstance(self._storage, SyncsAll) or not isinstance(self._locker, CountsServers):
            return
        if not era:
            logger.info("the system has no id of its boot: after a power cut nothing tells which bytes are lost")
            return
        sync = await asyncio.to_thread(self._storage.whole_sync)
        if sync is None:
            return
        try:
            async with self._locked(SETTLE_TIMEOUT) as lock:
                await self._settle(era, await asyncio.to_thread(sync.mount_id), lock, syncs=syncs)
        except BaseException as error:
            sync.close()
            if isinstance(error, LockTimeout):
                raise StateUnavailable("another server is setting uploads back after a power cut") from None
            raise
        if self._sync is not None:
            self._sync.close()  # of a life of this service that has ended without a stop
        self._sync = sync if syncs else None
        if not syncs:
            sync.close()

    @contextlib.asynccontextmanager
    async def _locked(self, timeout: float) -> AsyncIterator[Lock]:
        lock = await self._locker.acquire(named_lock(BOOT), NonInterruptibleHolder(), timeout, to_remove=True)
        try:
            yield lock
        finally:
            await lock.release()

    async def _settle(self, era: str, mount: str, lock: Lock, *, syncs: bool) -> None:
        assert isinstance(self._locker, CountsServers)
        before = await self._state.read_metadata(BOOT)
        # That server proves that the kernel has not gone down, and nothing about the mount that this one sees.
        same_kernel = self._locker.another_has_settled()
        is_unclean = has_lost_pages(before, era, mount, same_kernel=same_kernel)
        if is_unclean and not syncs:
            return
        if is_unclean:
            await self._go_back(lock)
        try:
            # With a token that no server had before: the note of one that gave up waiting for it changes nothing then.
            note = f"{era} {_mount_to_note(before, era, mount, same_kernel=same_kernel)} {lock.token}"
            if not await self._state.write_metadata(BOOT, note, before=before):
                raise StateUnavailable("another server has just stopped; try again")
        except StateFull:
            if is_unclean:  # the next server would set back what was uploaded since
                raise
            self._lacks_note = before in (None, SYNCED)
            if self._lacks_note:
                logger.warning("the disk is full: until it has room nothing tells which bytes a power cut takes")
        else:
            self._lacks_note = False
        self._locker.settled()

    async def keep(self) -> None:
        """Write the note that a full disk has prevented, if there is room by now."""
        if not self._lacks_note:
            return
        era = self._state.clock.era()
        mount = "" if self._sync is None else await asyncio.to_thread(self._sync.mount_id)
        with contextlib.suppress(UploadError):  # the next sweep tries again
            async with self._locked(0) as lock:
                await self._settle(era, mount, lock, syncs=False)

    async def _go_back(self, lock: Lock) -> None:
        unproven = [upload async for upload in self._state.all() if _is_unproven(upload)]
        count = 0
        for upload in unproven:
            if lock.token < upload.token:
                await lock.raise_token(upload.token)
            with contextlib.suppress(LockLost):  # another program has changed or removed it
                await self._state.update(upload, self._at_synced(upload), lock.token)
                count += 1
        if count:
            logger.warning("after a power cut %d unfinished uploads go back to the bytes that were synced", count)

    def _at_synced(self, upload: Upload) -> Upload:
        expires_at = self._lifetimes.extended(upload) if upload.status is Status.FINISHING else upload.expires_at
        return replace(upload.at(upload.synced), status=Status.ACTIVE, expires_at=expires_at)

    async def leave(self, timeout: float) -> None:
        """Sync everything if this server, which writes nothing more, is the last one; for `timeout` seconds at most.

        If that fails, or takes longer, uploads go back after the next boot, and only then. Raises nothing.
        """
        sync, self._sync = self._sync, None
        self._lacks_note = False
        if sync is None:
            return
        assert isinstance(self._locker, CountsServers)
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT + timeout), self._locked(LEAVE_TIMEOUT):
                if self._locker.leave():
                    if await self._may_have_unproven():
                        await _run(sync, timeout)
                    await self._state.write_metadata(BOOT, SYNCED, before=await self._state.read_metadata(BOOT))
        except Exception as error:  # whatever it is: uploads go back after the next boot, and only then
            logger.info("not everything is synced at the end: %s", str(error) or type(error).__name__)
        finally:
            sync.close()

    async def _may_have_unproven(self) -> bool:
        """Return whether an upload has bytes that are not synced, or there are too many to look at."""
        looked = 0
        async for upload in self._state.all():
            looked += 1
            if looked > MAX_LOOKED_AT or _is_unproven(upload):
                return True
        return False


def _is_unproven(upload: Upload) -> bool:
    is_unfinished = upload.status in (Status.ACTIVE, Status.FINISHING) and not upload.is_final
    return is_unfinished and upload.offset > upload.synced


async def _run(sync: WholeSync, timeout: float) -> None:
    """Sync everything; raises `TimeoutError` if that takes too long, and `StorageUnavailable`.

    Runs in a thread that nothing waits for, since a device may take minutes.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            sync.run()
        except Exception as failure:  # raised in `_run`
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, done, None, error)

    threading.Thread(target=run, name="tusd-py-last-sync", daemon=True).start()
    await asyncio.wait_for(done, timeout)
