"""The check at the start that a storage and a store of records belong together (`HasIdentity`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage, SupportsIdentity
from tusd_py.core.errors import StateFull, StateUnavailable, StorageFull, StorageUnavailable, UploadError
from tusd_py.core.storage_identity import new_identity
from tusd_py.core.upload import Status, Upload
from tusd_py.uploads.locations import located

logger = logging.getLogger("tusd_py.storage")

IDENTITY = "storage"  # the metadata that holds it
YOUNGER = "younger-than-storage"  # the metadata that says whether the storage was in use before these records
YES, NO = "yes", "no"
ATTEMPTS = 5  # to agree with processes that start at the same time
SAMPLE = 50  # uploads looked for in a storage that has no identity yet
HOW_TO_OVERRULE = (
    "if the uploads of these records are to be given up, run `tusd-py adopt-storage` with the same settings"
)


async def settle_identity(state: StateStore, storage: Storage, *, records_inside: bool) -> None:
    """See that the storage is the one that the records name; a storage and a store that are both new are joined.

    `records_inside` says that the records are kept in the storage itself. Raises `StorageUnavailable` with a sentence
    for the operator.
    """
    if not isinstance(storage, SupportsIdentity):
        return
    try:
        await _settle(state, storage, records_inside=records_inside)
    except (StorageFull, StateFull) as error:  # removing what has expired makes room; the next start makes an identity
        logger.warning("the storage has no identity yet: %s", error.message)


async def _settle(state: StateStore, storage: Storage, *, records_inside: bool) -> None:
    assert isinstance(storage, SupportsIdentity)
    for _ in range(ATTEMPTS):
        known, found = await state.read_metadata(IDENTITY), await storage.read_identity()
        if known is None:
            await _join(state, storage, found, records_inside=records_inside)
        elif known == found:
            storage.expect_identity(known)
            return
        elif found is None and records_inside:  # it was removed, from beside the records
            await storage.create_identity(known)
        else:  # even without records: another server may be at work on the right storage
            raise _refused(storage, "it has no identity" if found is None else "it has the identity of another storage")
    raise StorageUnavailable("other processes keep changing the identity of the storage")


async def _join(state: StateStore, storage: Storage, found: str | None, *, records_inside: bool) -> None:
    """Join records that name no storage, because they are new or of a version without identities, with this one."""
    assert isinstance(storage, SupportsIdentity)
    if not records_inside and not await _looks_right(state, storage):
        raise _refused(storage, "it has none of the uploads of these records")
    younger = found is not None and await anext(state.all(), None) is None
    if found is None:
        await state.write_metadata(YOUNGER, NO, before=await state.read_metadata(YOUNGER))  # first: this may end here
        await storage.create_identity(new_identity())
        found = await storage.read_identity()
    elif younger:
        logger.warning("there are no records yet, but the storage was used before: are these the right records?")
    joined = found is not None and await state.write_metadata(IDENTITY, found, before=None)
    if joined and younger and not records_inside:  # if not joined, another process was faster
        await state.write_metadata(YOUNGER, YES, before=None)  # unless who has just made the identity says otherwise


async def know_all(state: StateStore) -> bool:
    """Whether what these records do not name belongs to nothing.

    A storage that was in use before the records may hold uploads that others name: those of another server, or of a
    backup.
    """
    return await state.read_metadata(YOUNGER) != YES


async def adopt_storage(state: StateStore, storage: Storage) -> str:
    """Join the records and the storage whatever they know of each other; returns the identity."""
    if not isinstance(storage, SupportsIdentity):
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


async def hand_on_identity(source: StateStore, target: StateStore) -> None:
    """Have other records name the same storage; raises `StateUnavailable` if they name another one."""
    known, younger = await source.read_metadata(IDENTITY), await source.read_metadata(YOUNGER)
    if younger is not None:
        await target.write_metadata(YOUNGER, younger, before=None)
    if known is None or await target.write_metadata(IDENTITY, known, before=None):
        return
    if await target.read_metadata(IDENTITY) != known:
        raise StateUnavailable("the records to copy to are of another storage than those to copy")


async def keep_identity(state: StateStore, storage: Storage) -> None:
    """Write the identity of the storage beside the records again, in case the store has lost it."""
    if not isinstance(storage, SupportsIdentity) or await state.read_metadata(IDENTITY) is not None:
        return
    with contextlib.suppress(StorageUnavailable, StateFull):  # the next time, then
        found = await storage.read_identity()
        await storage.prove_identity()
        if found is not None and await state.write_metadata(IDENTITY, found, before=None):
            await state.write_metadata(YOUNGER, YES, before=None)


async def _looks_right(state: StateStore, storage: Storage) -> bool:
    """Whether some of the uploads that should have bytes in the storage have them, if there are any."""
    looked = 0
    async for upload in _with_bytes(state):
        try:
            if await storage.stored_size(await located(storage, upload)) > 0:
                return True
        except UploadError:
            pass  # of this upload there is nothing, or not here
        looked += 1
        if looked == SAMPLE:
            break
    return looked == 0


async def _with_bytes(state: StateStore) -> AsyncIterator[Upload]:
    async for upload in state.all():
        if upload.offset > 0 and upload.status not in (Status.TERMINATED, Status.EXPIRED):
            yield upload


def _refused(storage: SupportsIdentity, what: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{what}, which its records do not name: check {storage.what_to_check}; {HOW_TO_OVERRULE}"
    )
