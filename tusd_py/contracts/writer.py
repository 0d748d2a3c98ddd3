"""The contract of a writer: what a storage appends to one upload, and what is committed of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from tusd_py.core.buffers import Buffer
from tusd_py.core.upload import UploadPart

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
    """An appender to one upload, from its committed offset on.

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
        """Take this snapshot, the last one taken, as the one that the record now describes. Does no I/O.

        The writer may then let go of all that only earlier records described, and leave the parts of the snapshot out
        of the next one. One that keeps nothing for earlier records, and has no parts, does nothing here. Not called if
        the commit has failed, if its outcome is not known, or if the record described the snapshot already.
        """

    async def discard(self, offset: int) -> None:
        """Drop every byte from `offset` on, as after a wrong checksum; later snapshots end there, or before.

        Args:
            offset: at least the offset at which the writer began, and at least that of each committed snapshot.
        """

    async def close(self) -> None:
        """Wait for the end of every step, and release all resources. Never raises what a step has raised.

        Invariant: nothing is written any more after this has returned; the next lock holder may already be at work.
        """


class LastStepRefused(Exception):
    """The last step would take long for the thread it is in: the buffers are stored, and `finish` does the rest."""


class ArrivingBytes(Protocol):
    """The next bytes of a body, which a thread takes from their connection while it stores them."""

    in_use: bool  # set by the writer before it asks for the thread, and cleared once that has left the context
    splices: bool  # cleared if no bytes can be stored in this way
    waited: float  # seconds that the thread has waited for the client

    def __enter__(self) -> None:
        """Begin. Called in the thread, as the context is left there."""

    def __exit__(self, *_: object) -> None: ...

    def receive(self) -> bool:
        """Take the next bytes, unless some are still to be stored; return False if that is all for now.

        Blocks, but not long.
        """
        ...

    def store(self, file: int, position: int) -> int:
        """Store bytes that were taken in a file; return their number, at least 1. Blocks."""
        ...


class ThreadedWriter(Writer, Protocol):
    """A writer that stores in a thread, in which the commit can follow the last bytes directly.

    Saves the way through the event loop between both; only the built-in disk storage needs it. `snapshot` may be called
    in that thread once the bytes are stored; `committed` is not called after the last bytes.
    """

    def finish_in_thread(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Do what `finish` and `close` do, as the first and only step of the writer. Blocks."""

    def can_receive(self) -> bool:
        """Return whether `receive` can be called: a thread is spare, and nobody has to see the bytes."""

    async def receive(self, buffers: Sequence[Buffer], arriving: ArrivingBytes) -> None:
        """Store buffers, and after them the bytes that a connection delivers, in one thread.

        Takes nothing from the connection if there is no thread for it.

        Raises:
            UploadError: as `flush`; the next snapshot tells how far it got.
        """

    def can_finish_by(self, *, with_bytes: bool) -> bool:
        """Return whether `finish_by` can be called, and would leave nothing to do for `Storage.finish`."""

    async def finish_by(
        self, buffers: Sequence[Buffer], submit: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        """Do what `finish` does, in a thread of the choice of the caller.

        Args:
            buffers: the last bytes.
            submit: hands a function over to that thread, and returns the future of the outcome.
            sync: see `finish`.

        Returns:
            The result of that future; its error is raised.

        Raises:
            LastStepRefused: the buffers are stored; call `finish` without them.
        """
