"""The contract of a storage: where the bytes of uploads live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from tusd_py.core.upload import Upload, UploadPart

S = TypeVar("S")
T = TypeVar("T")
Buffer: TypeAlias = bytes | bytearray | memoryview
Observer: TypeAlias = Callable[[Buffer], object]
PieceSize: TypeAlias = Callable[[int], int]  # bytes to read at a time, at most so many


def largest_piece(most: int) -> int:
    """The `PieceSize` for a caller whose memory is not limited."""
    return most


class Writer(Protocol):
    """Appends to one upload from a given offset on. Used by one lock holder, from one task."""

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Hand over the next bytes. Returns once the buffers before these are no longer needed, so that at most two
        blocks of an upload are in memory. Raises like `flush`, for earlier bytes; after an error no more bytes are
        taken, since they would not follow the ones before them.
        """

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        """Hand over more bytes and wait until all are stored (with `sync`: survive a power cut).

        Raises `StorageFull`, `StorageUnavailable`, `StorageBehind`, `StorageAhead`; `stored` then tells how far it got.
        `StorageBehind` is raised also by a sync that failed, once and for all: what it names is what there is then.
        """

    async def checkpoint(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Hand over more bytes and have as much stored as comes cheap: all of them where `flush` costs little."""

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        """Like `flush`, for the last bytes of the upload; True if nothing is left for `Storage.complete` to do.

        No more bytes may follow.
        """

    @property
    def stored(self) -> int:
        """The offset up to which bytes are stored without a gap."""

    @property
    def synced(self) -> int:
        """The offset up to which bytes survive a power cut (`Upload.synced`)."""

    @property
    def layout(self) -> str:
        """Description of the bytes up to `stored`, for the record (`Upload.layout`)."""

    def parts(self, after: int) -> Sequence[UploadPart]:
        """Parts up to `stored` that the ledger of the committed record, which is at the offset `after`, lacks.

        There may be parts among them that it has.
        """

    async def discard(self, offset: int) -> None:
        """Forget every byte from `offset` on."""

    async def close(self) -> None: ...


class ThreadedWriter(Writer, Protocol):
    """A writer that stores in a thread, in which something else can follow the last bytes directly."""

    def finish_in_thread(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Do what `finish` does, and close, as the first and only step. Blocks."""

    def can_finish_by(self, *, with_bytes: bool) -> bool:
        """Whether `finish_by` can be called, and would leave nothing to do for `Storage.complete`."""

    async def finish_by(
        self, buffers: Sequence[Buffer], run: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        """Do what `finish` does in a thread of the caller's choice: `run` is given what is to be called there.

        Returns or raises as the future of `run` does.
        """


class Storage(Protocol):
    """Bytes by upload. Methods raise `StorageFull` and `StorageUnavailable`.

    Nothing is concluded from the absence of bytes that this storage never had: where an offset would go back because of
    them, `StoredElsewhere` (a `StorageUnavailable`) is raised.
    """

    async def open(self) -> None:
        """Make the storage ready; called once, before any other method."""

    async def close(self, patience: float | None = None) -> bool:
        """Wait for the steps under way, at most `patience` seconds, and let go of every resource.

        False if a step has not ended: then the locks must stay, and this can be called again.
        """

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> Writer:
        """A writer that appends at the upload's committed offset; bytes beyond it are dropped.

        `inherited` earlier writers (`Lock.inherited`) may wake up and write on: they must do no harm. The
        observer sees every byte in order, outside the event loop (a digest, for example).
        """

    def locate(self, upload: Upload) -> str:
        """The location of the bytes of a new upload (`Upload.location`), as the current settings have it."""

    async def stored(self, upload: Upload) -> int:
        """Return the number of contiguous bytes of the upload in the storage."""

    async def complete(self, upload: Upload, parts: Sequence[UploadPart] = (), *, sync: bool) -> str:
        """Every byte was written, the parts are its ledger: make the upload whole; returns its layout then.

        May be called again after a failure. Raises `StorageBehind` where bytes are missing, or their sync has failed.
        """

    async def discard_superseded(self, upload: Upload) -> None:
        """The record says that the upload is whole: remove what only `upload`, the record before that one, needed."""

    async def delete(self, upload: Upload) -> None:
        """Remove every byte; nothing to remove is fine."""

    def read(
        self, upload: Upload, start: int, end: int, piece_size: PieceSize = largest_piece
    ) -> AsyncIterator[Buffer]:
        """The bytes from `start` up to but not including `end` of a complete upload, in pieces.

        Between two pieces neither a thread nor a connection is in use.

        Raises `UploadNotFound` if they are no longer there.
        """


@runtime_checkable
class SupportsLocations(Protocol):
    """A storage that can find the bytes of an upload whose record does not say where they are."""

    async def located(self, upload: Upload) -> Upload:
        """The record with its location, as far as that can be seen."""


@runtime_checkable
class SupportsIdentity(Protocol):
    """A storage with a random id that is kept in it. Methods raise `StorageUnavailable`.

    Once it knows which id is expected, it shows it before it says that bytes are absent, where that would take an
    offset back, end an upload or remove something; if it cannot, it raises `WrongStorage`.
    """

    async def read_identity(self) -> str | None:
        """The id; None if this storage has none, certainly."""

    async def create_identity(self, identity: str, *, replace: bool = False) -> None:
        """Keep an id for good; without `replace`, only if there is none."""

    @property
    def what_to_check(self) -> str:
        """Advice for the operator if the id is missing, as the end of a sentence: `check the mount`."""

    def expect_identity(self, identity: str) -> None:
        """Take this id for the one that the records name."""

    async def prove_identity(self) -> None:
        """Raise `WrongStorage` unless the storage shows the id that is expected."""

    async def renew_identity(self) -> None:
        """Make what holds the id look new, so that cleaners that go by age spare it."""


@runtime_checkable
class SupportsCompletionRecords(Protocol):
    """A storage that can tell of a finished upload although its record was lost."""

    async def remember(self, upload: Upload) -> None:
        """Keep the record of a complete upload."""

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        """The record that was kept, if the bytes are there too."""


@runtime_checkable
class StoresInThreads(Protocol):
    """A storage whose writers are `ThreadedWriter`s."""

    @property
    def stores_in_threads(self) -> bool:
        """Whether they can be used as such."""

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> ThreadedWriter:
        """See `Storage.writer`."""

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run blocking work in a thread of the storage."""

    def elsewhere(
        self, run: Callable[[Callable[[], S]], asyncio.Future[T]], step: Callable[[], S]
    ) -> asyncio.Future[T]:
        """Have `run` call a step in a thread of somebody else; `Storage.close` waits for the end of the step."""

    def remember_in_thread(self, upload: Upload) -> None:
        """Do what `Remembers.remember` does. Blocks."""


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
        """A URL of a complete upload that works for a while; None if clients are to download from this server."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """The most bytes that a storage has room for in one upload; None: no limit but the free space."""

    declared: int | None = None  # of an upload whose length is known with its first byte
    deferred: int | None = None  # of one whose length is not
    final: int | None = None  # of a concatenation


@runtime_checkable
class SupportsSizeLimits(Protocol):
    """A storage that cannot take uploads of any size."""

    @property
    def size_limits(self) -> SizeLimits: ...


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something in a storage that belongs to no upload any more."""

    kind: str
    name: str
    upload_id: str
    created_at: float  # seconds since the epoch


class UploadRecords(Protocol):
    """The records that decide what is an orphan. Methods raise `StateUnavailable`."""

    async def get(self, upload_id: str) -> Upload | None: ...

    def all(self) -> AsyncIterator[Upload]:
        """Every record, in no particular order."""

    def locked(self, upload_id: str) -> AbstractAsyncContextManager[Upload | None]:
        """The record of an upload that nobody writes to for as long as the context lasts.

        Raises `LockTimeout` at once if somebody does.
        """


@runtime_checkable
class SupportsOrphanCleanup(Protocol):
    """A storage in which crashes can leave something that no record names."""

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove orphans at least `older_than` seconds old; with `dry_run` only find them.

        An orphan is named by no record when the storage was listed before the records were asked, nor at a second
        look under the lock of its upload.
        """


@runtime_checkable
class SupportsConcatenation(Protocol):
    """A storage that can put uploads together."""

    def interrupt(self) -> None:
        """Have concatenations end soon with `ServerShutdown`, those under way and later ones, until `open`."""

    async def concatenate(self, final: Upload, partials: Sequence[Upload], *, sync: bool) -> str:
        """Make `final` of the bytes of the partials in this order; returns its layout.

        May be called again after a failure. Raises `UploadNotFound` if the bytes of a partial are no longer there,
        `PartBehind` if there are fewer than its record says.
        """
