"""Abilities that a storage may have beside those of `Storage`, recognised by their methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from tusd_py.contracts.writer import Observer, ThreadedWriter
from tusd_py.core.upload import Upload

S = TypeVar("S")
T = TypeVar("T")


@runtime_checkable
class SupportsLocations(Protocol):
    """A storage that finds the bytes of an upload whose record does not say where they are."""

    async def located(self, upload: Upload) -> Upload:
        """Return the record with its location if the storage finds the bytes, else the record as it is."""


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
        """Expect this id, which the records name, from now on."""

    async def prove_identity(self) -> None:
        """Raise `WrongStorage` unless the storage has the expected id."""

    async def renew_identity(self) -> None:
        """Renew the age of the object that holds the id, so that tools that remove old ones spare it."""


@runtime_checkable
class SupportsCompletionRecords(Protocol):
    """A storage that keeps a copy of the record of a complete upload beside its bytes.

    A client that was told of the completion finds the upload although its record was lost with the state store.
    """

    async def save_completion_record(self, upload: Upload) -> None:
        """Save the completion record of an upload.

        Called after the state store has accepted the complete upload, which fails if the lock was lost.
        """

    async def load_completion_record(self, upload_id: str) -> Upload | None:
        """Return the completion record, if there is one and the bytes are there too."""


@runtime_checkable
class RecognisesFinished(Protocol):
    """A storage without completion records that recognises a finished upload by its bytes.

    A state store that lost its last changes says of such an upload that it is unfinished.
    """

    async def finished_since(self, upload: Upload) -> Upload | None:
        """Return an unfinished upload as it has to be for `Storage.finish`, if it was finished after its record.

        The result has the length, the offset and the storage state that `finish` needs. None unless it is certain that
        the bytes are those of this very upload, and all of them.
        """


@runtime_checkable
class StoresInThreads(Protocol):
    """A storage whose writers are `ThreadedWriter`s; see there."""

    @property
    def stores_in_threads(self) -> bool:
        """Whether an upload is complete once its writer has stored the last bytes in a thread.

        Otherwise `Storage.finish` may be needed: the writer has a `storage_state` then.
        """

    def writer(
        self, upload: Upload, token: int, observer: Observer | None = None, *, unreleased_predecessors: int = 0
    ) -> ThreadedWriter:
        """Return a threaded writer, see `Storage.writer`."""

    def run(self, work: Callable[[], T], *, brief: bool = False) -> asyncio.Future[T]:
        """Run blocking work in a thread of the storage.

        With `brief` the work is expected to take less time than a change of threads: it may share a thread with others.
        """

    def run_external(
        self, submit: Callable[[Callable[[], S]], asyncio.Future[T]], step: Callable[[], S]
    ) -> asyncio.Future[T]:
        """Run blocking work of the storage in a thread of another component.

        Invariant: `Storage.close` waits for the end of the step.

        Args:
            submit: hands a function over to such a thread, and returns the future of the outcome. Once that has a
                result or an error, the function is not called any more.
            step: the work.

        Returns:
            The future that `submit` returned.
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
class MeasuresFreeSpace(Protocol):
    """A storage with a limited space, for the setting `reserve_disk`."""

    def free_space(self) -> int:
        """Return the number of bytes that can still be stored. Blocks; raises `OSError`, `StorageUnavailable`."""


@runtime_checkable
class DescribesPlaces(Protocol):
    """A storage that describes the place of the bytes of an upload, for the receivers of events."""

    def describe(self, upload: Upload) -> Mapping[str, str]:
        """Return the place: `type`, and `path` or `bucket` and `key`. Empty if it is not known; does no I/O."""


@runtime_checkable
class TakesPlaces(Protocol):
    """A storage that keeps the bytes of an upload at a place that the application chooses."""

    def place(self, path: str) -> str:
        """Return the `Upload.location` of a place. Does no I/O.

        Raises:
            PathTaken: uploads without a chosen place may be there.
            ValueError: there can be no upload at this place; the text says why, for the operator.
        """

    def files_above(self, location: str) -> Sequence[tuple[str, str]]:
        """Return the uploads without a chosen place whose files would be in the way of a place. Does no I/O.

        Each has an id and a location, whether there is such an upload or not.
        """

    async def claim_place(self, upload: Upload) -> None:
        """Claim the location of a new upload, so that it belongs to no other upload until this one ends.

        Raises:
            PathTaken: the place belongs to the upload `holder`, or something is there.
        """

    async def give_up_place(self, upload: Upload) -> None:
        """Undo `claim_place` for an upload that has no record; do nothing for one without such a place.

        A file with bytes stays, and keeps its place.
        """

    async def is_occupied(self, upload: Upload) -> bool:
        """Return whether bytes, or something else than a file, are where those of a new upload are to be."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open for reading."""

    descriptor: int
    close: Callable[[], object]  # to be called once; does not block


@runtime_checkable
class SupportsFileSending(Protocol):
    """A storage whose complete uploads are files that the kernel can send to a socket by itself."""

    async def open_file(self, upload: Upload) -> OpenFile:
        """Open the file of a complete upload.

        Raises:
            UploadNotFound: the bytes are not there any more.
            StorageUnavailable: the file is shorter than the upload.
        """


@runtime_checkable
class SupportsWholeFiles(Protocol):
    """A storage whose complete uploads are files that a proxy in front can send by itself."""

    async def whole_file(self, upload: Upload) -> Path | None:
        """Return the file of a complete upload; None if it holds other bytes too.

        Raises:
            UploadNotFound: the bytes are not there any more.
            StorageUnavailable: the file is shorter than the upload.
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
    """Largest uploads in bytes that a storage can take; None stands for no limit but the free space."""

    declared: int | None = None  # of an upload whose length is known with its first byte
    deferred: int | None = None  # of one whose length is not
    final: int | None = None  # of a concatenation


@runtime_checkable
class SupportsSizeLimits(Protocol):
    """A storage with limits for the size of uploads."""

    @property
    def size_limits(self) -> SizeLimits:
        """The limits; constant while the storage is open."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A remainder in a storage that belongs to no upload."""

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
    """A storage in which crashes can leave files or objects that no record names."""

    async def clean(self, records: UploadRecords, *, older_than: float, dry_run: bool = False) -> Sequence[Orphan]:
        """Remove orphans, and return them.

        Invariant: no record names an orphan, neither of those that are read after the storage was listed, nor at a
        second look under the lock of its upload.

        Args:
            records: the records of all uploads.
            older_than: age in seconds that an orphan has at least.
            dry_run: only find them.
        """


@runtime_checkable
class SupportsConcatenation(Protocol):
    """A storage that can concatenate partial uploads (tus 1.0.0, Concatenation)."""

    def interrupt(self) -> None:
        """Make concatenations end soon with `ServerShutdown`, those under way and later ones, until `open`."""

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


class WholeSync(Protocol):
    """A sync of everything that is written to a storage from now on. Every method blocks, and works in any thread."""

    def run(self) -> None:
        """Sync; raises `StorageUnavailable` if any byte may be missing on the device."""

    def mount_id(self) -> str:
        """Return a word that differs after each mount of the file system; empty if that is unknown."""

    def close(self) -> None:
        """Release the resources; a second call has no effect."""


@runtime_checkable
class SyncsAll(Protocol):
    """A storage that can sync the bytes of all uploads at once, whoever wrote them."""

    def whole_sync(self) -> WholeSync | None:
        """Return a new sync; None if that is not possible here. Blocks. Raises `StorageUnavailable`."""
