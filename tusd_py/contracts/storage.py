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
    if not await writer.finish(last_buffers, sync=True):     # then a commit with the status "finishing"
        storage_state = await storage.finish(upload, parts_of_upload, sync=True)
    ...                                                  # a commit with the status "complete"
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

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from tusd_py.core.buffers import Buffer as Buffer
from tusd_py.core.upload import Upload, UploadPart

S = TypeVar("S")
T = TypeVar("T")
Observer: TypeAlias = Callable[[Buffer], object]
PieceSize: TypeAlias = Callable[[int], int]  # bytes to read at a time, at most so many


def largest_piece(most: int) -> int:
    """Return `most`: the `PieceSize` of a caller whose memory is not limited."""
    return most


@dataclass(frozen=True, slots=True)
class WriterSnapshot:
    """The bytes that a writer has stored at one moment, as the record of the upload is to describe them.

    The caller commits all of it in one change of the record.
    """

    offset: int  # bytes are stored up to here without a gap (`Upload.offset`)
    synced: int = 0  # bytes survive a power cut up to here (`Upload.synced`); 0 if the storage does not tell
    storage_state: str = ""  # a text about these bytes that only this storage can read (`Upload.storage_state`)
    # Parts up to `offset` that the part list in the state store may lack, in the order of their numbers.
    new_parts: Sequence[UploadPart] = ()


class Writer(Protocol):
    """Appends to one upload from its committed offset on.

    One lock holder uses a writer, from one task. Invariant: after an error no more bytes are taken, since they would
    not follow those before them; every later call raises an error too, except `snapshot`, `committed`, `discard` and
    `close`.

    Example::

        writer = storage.writer(upload, lock.token)
        try:
            await writer.write([b"hello, "])
            await writer.flush([b"world"], sync=True)
            assert writer.snapshot().offset == upload.offset + 12
        finally:
            await writer.close()
    """

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Take the next bytes, and store them while the caller receives more.

        Returns once the bytes of the call before are stored or copied, so that at most two batches of an upload are in
        memory. The buffers belong to the writer until the next call has returned.

        Args:
            buffers: the bytes, in order; may be empty, or hold empty buffers.

        Raises:
            UploadError: as `flush`, for earlier bytes.
        """

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        """Take more bytes and wait until all are stored.

        Args:
            buffers: the bytes, as for `write`.
            sync: wait until they survive a power cut.

        Raises:
            StorageFull: there is no room; the next snapshot tells how many bytes there was room for.
            StorageUnavailable: the storage cannot be used; the next snapshot tells how far it got.
            StorageBehind: the storage has fewer bytes than were committed, or a sync has failed, once and for all. The
                server takes the offset of the upload back to `StorageBehind.stored`.
            StorageAhead: the storage has the complete upload.
        """

    async def flush_available(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Take more bytes, and store as many as is cheap before a commit.

        A storage for which `flush` costs little does the same as there. S3 commits whole parts only.

        Raises:
            UploadError: as `flush`.
        """

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        """Take the last bytes of the upload and wait until all are stored. No more may follow.

        Returns:
            True if nothing is left to do for `Storage.finish`, which is not called then.

        Raises:
            UploadError: as `flush`.
        """

    def snapshot(self) -> WriterSnapshot:
        """Return what is stored now, to be committed. Does no I/O, and never raises.

        Call it after `flush`, `flush_available` or `finish` with the `sync` that the commit needs: the snapshot counts
        bytes that are stored, and only that call has waited for a sync of them.

        Invariant: what a snapshot describes stays in the storage until `committed` has been called with a later one.
        The change of the record may succeed although its caller is cancelled, or never learns of it.
        """

    def committed(self, snapshot: WriterSnapshot) -> None:
        """Take note that the record describes this snapshot, the last one that was taken. Does no I/O.

        The storage may then remove what only earlier records described, and leave the parts of the snapshot out of the
        next one. Not called if the commit has failed, or if its outcome is not known.
        """

    async def discard(self, offset: int) -> None:
        """Forget every byte from `offset` on, as after a wrong checksum.

        Args:
            offset: at least the offset at which the writer began.
        """

    async def close(self) -> None:
        """Wait for the end of every step, and release all resources. Never raises what a step has raised.

        Invariant: nothing is written any more after this has returned; the next lock holder may already be at work.
        """


class ThreadedWriter(Writer, Protocol):
    """A writer that stores in a thread, in which the commit can follow the last bytes directly.

    Saves the way through the event loop between both; only the built-in disk storage needs it. `snapshot` may be called
    in that thread once the bytes are stored; `committed` is not called after the last bytes.
    """

    def finish_in_thread(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Do what `finish` and `close` do, as the first and only step of the writer. Blocks."""

    def can_finish_by(self, *, with_bytes: bool) -> bool:
        """Return whether `finish_by` can be called, and would leave nothing to do for `Storage.finish`."""

    async def finish_by(
        self, buffers: Sequence[Buffer], run: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        """Do what `finish` does, in a thread of the choice of the caller.

        Args:
            buffers: the last bytes.
            run: is given a function to call in that thread, and returns the future of the outcome.
            sync: see `finish`.

        Returns:
            The result of that future; its error is raised.
        """


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

    async def close(self, patience: float | None = None) -> bool:
        """Wait for the steps under way, and release every resource.

        Args:
            patience: seconds to wait at most; None to wait for ever.

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
            upload: the record, at its full length; bytes beyond it are dropped.
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
        """Remove every byte of the upload, also of one that is not complete; nothing to remove is no error."""

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


@runtime_checkable
class SupportsLocations(Protocol):
    """A storage that finds the bytes of an upload whose record does not say where they are."""

    async def located(self, upload: Upload) -> Upload:
        """Return the record with its location, if the storage can see it; else the record as it is."""


@runtime_checkable
class SupportsIdentity(Protocol):
    """A storage that keeps a random id, so that a wrong mount or bucket is noticed. Methods raise `StorageUnavailable`.

    Once the storage knows which id to expect, it proves it before it reports absent bytes where that would take an
    offset back, end an upload or remove something. If it cannot, it raises `WrongStorage`.
    """

    async def read_identity(self) -> str | None:
        """Return the id; None only if this storage certainly has none."""

    async def create_identity(self, identity: str, *, replace: bool = False) -> None:
        """Store an id durably.

        Args:
            identity: the id.
            replace: overwrite another one; otherwise an id that is there already stays.
        """

    @property
    def what_to_check(self) -> str:
        """Advice for the operator whose storage lacks the id, as the end of a sentence: `the mount of /srv`."""

    def expect_identity(self, identity: str) -> None:
        """Take this id for the one that the records name."""

    async def prove_identity(self) -> None:
        """Raise `WrongStorage` unless the storage has the expected id."""

    async def renew_identity(self) -> None:
        """Make the holder of the id look new, so that cleaners that go by age spare it."""


@runtime_checkable
class SupportsCompletionRecords(Protocol):
    """A storage that keeps a copy of the record of a complete upload beside its bytes.

    A client that was told of the completion finds the upload although its record was lost with the state store.
    """

    async def save_completion_record(self, upload: Upload) -> None:
        """Save the completion record of an upload.

        Called after the state store has the complete upload: that fails without the
        lock.
        """

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        """Return the completion record, if there is one and the bytes are there too."""


@runtime_checkable
class StoresInThreads(Protocol):
    """A storage whose writers are `ThreadedWriter`s; see there."""

    @property
    def stores_in_threads(self) -> bool:
        """Whether its writers can be used as such."""

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> ThreadedWriter:
        """See `Storage.writer`."""

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run blocking work in a thread of the storage."""

    def elsewhere(
        self, run: Callable[[Callable[[], S]], asyncio.Future[T]], step: Callable[[], S]
    ) -> asyncio.Future[T]:
        """Have `run` call a step in a thread of somebody else.

        Invariant: `Storage.close` waits for the end of the step.
        """

    def save_completion_record_in_thread(self, upload: Upload) -> None:
        """Do what `SupportsCompletionRecords.save_completion_record` does. Blocks."""


@runtime_checkable
class SupportsFilePath(Protocol):
    """A storage that keeps every complete upload as one file on a file system of this host."""

    def path(self, upload: Upload) -> Path:
        """Return the file of a complete upload, whether it exists or not. Does no I/O.

        Raises:
            StoredElsewhere: the record names another storage.
        """


@runtime_checkable
class SupportsDownloadRedirect(Protocol):
    """A storage that clients can download from directly."""

    async def download_url(self, upload: Upload, disposition: str, content_type: str) -> str | None:
        """Return a URL of a complete upload that works for a while; None if clients are to download from this server.

        Args:
            upload: the complete upload.
            disposition: the Content-Disposition of the download.
            content_type: its Content-Type.
        """


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Largest uploads in bytes that a storage has room for; None stands for no limit but the free space."""

    declared: int | None = None  # of an upload whose length is known with its first byte
    deferred: int | None = None  # of one whose length is not
    final: int | None = None  # of a concatenation


@runtime_checkable
class SupportsSizeLimits(Protocol):
    """A storage that cannot take uploads of any size."""

    @property
    def size_limits(self) -> SizeLimits:
        """The limits; constant while the storage is open."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something in a storage that belongs to no upload any more."""

    kind: str
    name: str
    upload_id: str
    created_at: float  # seconds since the epoch


class UploadRecords(Protocol):
    """The records by which a storage recognises its orphans. Methods raise `StateUnavailable`."""

    async def get(self, upload_id: str) -> Upload | None:
        """Return the record of an upload."""

    def all(self) -> AsyncIterator[Upload]:
        """Yield every record, in no particular order."""

    def locked(self, upload_id: str) -> AbstractAsyncContextManager[Upload | None]:
        """Hold the lock of an upload for as long as the context lasts; the value is its record.

        Raises:
            LockTimeout: at once, if another request holds it.
        """


@runtime_checkable
class SupportsOrphanCleanup(Protocol):
    """A storage in which crashes can leave something that no record names."""

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove orphans, and return them.

        Invariant: an orphan is named by no record when the storage was listed before the records were asked, nor at a
            second
        look under the lock of its upload.

        Args:
            records: the records of all uploads.
            older_than: age in seconds that an orphan has at least.
            dry_run: only find them.
        """


@runtime_checkable
class SupportsConcatenation(Protocol):
    """A storage that puts partial uploads together (tus 1.0.0, Concatenation)."""

    def interrupt(self) -> None:
        """Have concatenations end soon with `ServerShutdown`, those under way and later ones, until `open`."""

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        """Make the final upload of the bytes of partial ones. May be called again after a failure.

        Args:
            final: the record of the final upload; its length is that of all partial ones.
            partials: the partial uploads in order; one may be there several times. Their bytes stay.
            sync: wait until the final upload survives a power cut.

        Returns:
            The `Upload.storage_state` of the final upload.

        Raises:
            UploadNotFound: the bytes of a partial upload are not there any more.
            PartBehind: the storage has fewer bytes of a partial upload than its record says.
            ServerShutdown: `interrupt` was called.
        """
