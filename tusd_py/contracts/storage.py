"""The contract of a storage: the bytes of uploads.

Implement `Storage` and `Writer`; every other protocol here is an ability that a storage may have, recognised by its
methods. `docs/extending.md` has a complete example, `tusd_py.testing.storage_suite` the tests.

The calls for one upload, all by the holder of its lock::

    writer = storage.writer(upload, lock.token)
    await writer.write(buffers)                          # any number of times
    await writer.flush(sync=True)                        # or `flush_available`; before each commit
    done = writer.snapshot()
    after = replace(upload, offset=done.offset, synced=done.synced, storage_state=done.storage_state)
    upload = await state.update(upload, after, lock.token, parts=done.new_parts)
    writer.committed(done)                               # only if the commit has succeeded
    if await writer.finish(last_buffers, sync=True):
        ...                                              # snapshot and commit as above, with the status "complete"
    else:
        ...                                              # snapshot and commit as above, with the status "finishing"
        storage_state = await storage.finish(upload, parts_of_upload, sync=True)
        ...                                              # a commit of this state with the status "complete"
        await storage.discard_superseded(upload)
    await writer.close()                                 # in every case, also after an error or a cancellation

**Threads.** All methods are called in the event loop, which they must not block, unless they say `Blocks`.

**Cancellation.** A call may be cancelled at every `await`. Work that cannot be stopped, such as a step in a thread,
has to end before `Writer.close` returns.

**Fencing.** A lock can be lost without its holder knowing. Bytes that an earlier writer stores after a later one has
begun must not become part of the upload. `token` grows with every lock, `unreleased_predecessors` counts the writers
that may still be alive.

**Durability.** With `sync`, bytes survive a power cut once the call has returned; without, the death of the process.
A sync that has failed must not be believed when it succeeds the next time: the kernel has dropped the pages.

**Absence.** Nothing follows from the absence of bytes that the storage never had. For a record of another storage
every method raises `StoredElsewhere`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from tusd_py.contracts.storage_abilities import (
    DescribesPlaces as DescribesPlaces,
    MeasuresFreeSpace as MeasuresFreeSpace,
    OpenFile as OpenFile,
    Orphan as Orphan,
    RecognisesFinished as RecognisesFinished,
    SizeLimits as SizeLimits,
    StoresInThreads as StoresInThreads,
    SupportsCompletionRecords as SupportsCompletionRecords,
    SupportsConcatenation as SupportsConcatenation,
    SupportsDownloadRedirect as SupportsDownloadRedirect,
    SupportsFilePath as SupportsFilePath,
    SupportsFileSending as SupportsFileSending,
    SupportsIdentity as SupportsIdentity,
    SupportsLocations as SupportsLocations,
    SupportsOrphanCleanup as SupportsOrphanCleanup,
    SupportsSizeLimits as SupportsSizeLimits,
    SupportsWholeFiles as SupportsWholeFiles,
    SyncsAll as SyncsAll,
    TakesPlaces as TakesPlaces,
    UploadRecords as UploadRecords,
    WholeSync as WholeSync,
)
from tusd_py.contracts.writer import (
    ArrivingBytes as ArrivingBytes,
    LastStepRefused as LastStepRefused,
    Observer as Observer,
    PieceSize as PieceSize,
    ThreadedWriter as ThreadedWriter,
    Writer as Writer,
    WriterSnapshot as WriterSnapshot,
    largest_piece as largest_piece,
)
from tusd_py.core.buffers import Buffer as Buffer
from tusd_py.core.upload import Upload, UploadPart


class Storage(Protocol):
    """The bytes of uploads. Every method may raise `StorageFull` and `StorageUnavailable`.

    Example: see `docs/extending.md`, and `tusd_py.testing.MemoryStorage`::

        tus = TusServer(storage=MemoryStorage())
    """

    async def open(self) -> None:
        """Make the storage ready.

        Called once before any other method, and again after `close` if the server starts again.

        Raises:
            StorageUnavailable: with one sentence for the operator; the server tries again.
        """

    async def close(self, timeout: float | None = None) -> bool:
        """Wait for the steps under way, and release every resource. Called also after `open` has failed.

        Args:
            timeout: seconds to wait at most; None to wait for ever. The call is cancelled if it takes longer.

        Returns:
            False if a step has not ended: then the locks must stay, and `close` may be called again.
        """

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> Writer:
        """Make a writer that appends at the committed offset of the upload. Does no I/O.

        The writer drops bytes beyond that offset, which were never acknowledged, before it stores new ones.

        Args:
            upload: the record, as read under the lock.
            token: the token of the lock.
            observer: is called with every buffer in order, outside the event loop; computes checksums.
            unreleased_predecessors: number of earlier writers that may wake up and write on
                (`Lock.unreleased_predecessors`).

        Raises:
            StoredElsewhere: the record names another storage.
        """

    def locate(self, upload: Upload) -> str:
        """Return the location of the bytes of a new upload under the current settings; may be empty. Does no I/O.

        The server keeps it in `Upload.location`, so that the bytes are found after a change of the settings.
        """

    async def stored_size(self, upload: Upload) -> int:
        """Return the number of contiguous bytes of the upload, committed or not; 0 if there are none.

        Raises:
            StoredElsewhere: the record names another storage.
        """

    async def finish(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        """Make a complete upload of bytes that are all stored. May be called again after a failure or a crash.

        Args:
            upload: the record; its offset is the full length of the upload, and bytes beyond it are dropped.
            parts: the part list of the upload, as the state store has it.
            sync: wait until the complete upload survives a power cut.

        Returns:
            The `Upload.storage_state` of the complete upload.

        Raises:
            StorageBehind: bytes are missing, or a sync of them has failed.
        """

    async def discard_superseded(self, upload: Upload) -> None:
        """Delete data that only `upload`, the last record before completion, referenced.

        Called after completion is committed.
        """

    async def delete(self, upload: Upload) -> None:
        """Remove every byte of the upload, complete or not; missing bytes are no error."""

    def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        """Yield the bytes from `start` up to but not including `end` of a complete upload.

        No piece is empty.

        Between two pieces neither a thread nor a connection is in use: the client may take hours.

        Args:
            upload: the complete upload.
            start: offset of the first byte.
            end: offset after the last byte.
            piece_size: called with the size of the next piece in bytes; returns the size that there is memory for.

        Raises:
            UploadNotFound: the bytes are not there any more.
        """
