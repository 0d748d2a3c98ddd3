"""The check at the start that a storage and a store of records belong together (`SupportsIdentity`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage, SupportsIdentity
from tusd_py.core.errors import StateFull, StateUnavailable, StorageFull, StorageUnavailable, UploadError
from tusd_py.core.storage_identity import new_identity
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.locations import Locations

logger = logging.getLogger("tusd_py.storage")

IDENTITY = "storage"  # name of the metadata with the identity of the storage
YOUNGER = "younger-than-storage"  # name of the metadata that tells whether the storage was used before these records
YES, NO = "yes", "no"
ATTEMPTS = 5  # attempts to agree with processes that start at the same time
SAMPLE_SIZE = 50  # uploads looked for in a storage that has no identity yet
HOW_TO_OVERRULE = (
    "if the uploads of these records are to be given up, run `tusd-py adopt-storage` with the same settings"
)


class IdentityCheck:
    """The check that one state store and one storage belong together. A storage without an identity passes it."""

    def __init__(self, state: StateStore, storage: Storage) -> None:
        self._state = state
        self._storage = storage
        self._locations = Locations(storage)
        self._identified = storage if isinstance(storage, SupportsIdentity) else None

    async def settle(self, *, records_inside: bool) -> None:
        """Verify that the storage is the one that the records name; join a storage and records that are both new.

        Args:
            records_inside: whether the records are kept in the storage itself.

        Raises:
            StorageUnavailable: the storage is another one; the message is a sentence for the operator.
        """
        if self._identified is None:
            return
        try:
            await self._settle(self._identified, records_inside=records_inside)
        except (StorageFull, StateFull) as error:  # a sweep makes room, and the next start an identity
            logger.warning("the storage has no identity yet: %s", error.message)

    async def _settle(self, storage: SupportsIdentity, *, records_inside: bool) -> None:
        for _ in range(ATTEMPTS):
            known, found = await self._state.read_metadata(IDENTITY), await storage.read_identity()
            if known is None:
                await self._join(storage, found, records_inside=records_inside)
            elif known == found:
                storage.expect_identity(known)
                return
            elif found is None and records_inside:  # the file was removed from beside the records
                await storage.create_identity(known)
            else:  # refused even without records: another server may work on the right storage
                reason = "it has no identity" if found is None else "it has the identity of another storage"
                raise _refused(storage, reason)
        raise StorageUnavailable("other processes keep changing the identity of the storage")

    async def _join(self, storage: SupportsIdentity, found: str | None, *, records_inside: bool) -> None:
        """Join records that name no storage, because they are new or of an earlier version, with this storage."""
        state = self._state
        if not records_inside and not await self._has_some_uploads():
            raise _refused(storage, "it has none of the uploads of these records")
        younger = found is not None and await anext(state.all(), None) is None
        if found is None:
            # Written before the identity, in case of a crash in between.
            await state.write_metadata(YOUNGER, NO, before=await state.read_metadata(YOUNGER))
            await storage.create_identity(new_identity())
            found = await storage.read_identity()
        elif younger:
            logger.warning("there are no records yet, but the storage was used before: are these the right records?")
        joined = found is not None and await state.write_metadata(IDENTITY, found, before=None)
        if joined and younger and not records_inside:  # if not joined, another process was faster
            # The process that has just made the identity may say otherwise.
            await state.write_metadata(YOUNGER, YES, before=None)

    async def adopt(self) -> str:
        """Join the records and the storage, whatever they name now; return the identity."""
        storage, state = self._identified, self._state
        if storage is None:
            raise StorageUnavailable("the storage has no identity")
        found = await storage.read_identity()
        if found is None:
            await storage.create_identity(new_identity(), replace=True)
            found = await storage.read_identity()
            if found is None:
                raise StorageUnavailable("the storage does not keep its identity")
        await state.write_metadata(IDENTITY, found, before=await state.read_metadata(IDENTITY))
        await state.write_metadata(YOUNGER, NO, before=await state.read_metadata(YOUNGER))
        return found

    async def keep(self) -> None:
        """Write the identity of the storage beside the records again, in case the state store has lost it."""
        storage, state = self._identified, self._state
        if storage is None or await state.read_metadata(IDENTITY) is not None:
            return
        with contextlib.suppress(StorageUnavailable, StateFull):  # the next sweep tries again
            found = await storage.read_identity()
            await storage.prove_identity()
            if found is not None and await state.write_metadata(IDENTITY, found, before=None):
                await state.write_metadata(YOUNGER, YES, before=None)

    async def prove_orphans(self) -> bool:
        """Return whether bytes that these records do not name belong to no upload; raises `StorageUnavailable`.

        A storage that was in use before the records may hold uploads that others name: those of another server, or of
        a backup.
        """
        if self._identified is None:
            return True
        await self._identified.prove_identity()  # another storage may hold the uploads of others
        return await self._state.read_metadata(YOUNGER) != YES

    async def _has_some_uploads(self) -> bool:
        """Return whether some of the uploads that should have bytes in the storage have them, or there are none."""
        looked = 0
        async for upload in self._with_bytes():
            try:
                if await self._storage.stored_size(await self._locations.located(upload)) > 0:
                    return True
            except UploadError:
                pass  # this storage has no bytes of the upload
            looked += 1
            if looked == SAMPLE_SIZE:
                break
        return looked == 0

    async def _with_bytes(self) -> AsyncIterator[Upload]:
        async for upload in self._state.all():
            if upload.offset > 0 and upload.status not in (Status.TERMINATED, Status.EXPIRED):
                yield upload


async def hand_on_identity(source: StateStore, target: StateStore) -> None:
    """Let other records name the same storage; raises `StateUnavailable` if they name another one."""
    known, younger = await source.read_metadata(IDENTITY), await source.read_metadata(YOUNGER)
    if younger is not None:
        await target.write_metadata(YOUNGER, younger, before=None)
    if known is None or await target.write_metadata(IDENTITY, known, before=None):
        return
    if await target.read_metadata(IDENTITY) != known:
        raise StateUnavailable("the records to copy to are of another storage than those to copy")


def _refused(storage: SupportsIdentity, reason: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{reason}, which its records do not name: check {storage.what_to_check}; {HOW_TO_OVERRULE}"
    )
