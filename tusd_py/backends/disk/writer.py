"""The writer of the file of one upload."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tusd_py.asyncutil.serial_task import SerialTask
from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.files import AnyPath
from tusd_py.backends.disk.storing_again import stored_again
from tusd_py.backends.disk.sync_calls import sync_data, sync_file
from tusd_py.backends.disk.syncs import SyncUnproven, have_cut_again, inode_of
from tusd_py.contracts.storage import ArrivingBytes, Buffer, LastStepRefused, Observer, WriterSnapshot
from tusd_py.core.errors import StorageAhead, StorageBehind, StorageUnavailable
from tusd_py.core.upload import Upload

if TYPE_CHECKING:
    from tusd_py.backends.disk.storage import DiskStorage

T = TypeVar("T")

MAX_BUFFERS = 1024  # IOV_MAX


class DiskWriter:
    """A writer at explicit offsets; one batch is written while the caller receives the next one."""

    def __init__(self, storage: DiskStorage, file: AnyPath, upload: Upload, observer: Observer | None) -> None:
        self._storage = storage
        self._file = file  # that is written to
        self._upload_id = upload.id
        self._file_start = 0  # position of its first byte
        self._start = upload.offset
        self._observer = observer
        self._descriptor = -1
        self._jobs = SerialTask()
        self._stored = upload.offset
        self._synced = min(upload.synced, upload.offset)
        self._acknowledged = upload.offset  # end of the bytes that a record may count
        self._storage_state = ""

    @property
    def _path(self) -> Path:
        return Path(self._file)  # takes 4 us, so that small uploads do without

    def snapshot(self) -> WriterSnapshot:
        self._acknowledged = self._stored
        return WriterSnapshot(self._stored, self._synced, self._storage_state)

    def committed(self, snapshot: WriterSnapshot) -> None:
        """Do nothing: earlier records described the same files."""

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._jobs.settle()
        if buffers:
            self._jobs.start(self._storage.run(lambda: self._write(buffers)))

    def can_receive(self) -> bool:
        return self._observer is None and self._storage.receiving.is_possible

    async def receive(self, buffers: Sequence[Buffer], arriving: ArrivingBytes) -> None:
        await self._jobs.settle()
        if not (self.can_receive() and self._start_receiving(list(buffers), arriving)):
            # Others have taken the last thread meanwhile, or none can be started: the client must not wait for one.
            await self.write(buffers)
            await self._jobs.settle()
            return
        await self._jobs.settle()
        self._storage.receiving.splices &= arriving.splices

    def _start_receiving(self, rest: list[Buffer], arriving: ArrivingBytes) -> bool:
        """Have a thread store the buffers and what arrives; return False if no thread can be started."""
        arriving.in_use = True
        try:
            job = self._storage.receiving.run(lambda: self._receive(rest, arriving))
        except RuntimeError:
            arriving.in_use = False
            return False
        self._jobs.start(job)
        return True

    async def flush(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> None:
        await self._jobs.settle()
        if buffers or (sync and self._descriptor >= 0):
            rest = list(buffers)
            await self._run_proving(lambda: self._flush(rest, sync))

    async def _run_proving(self, work: Callable[[], None]) -> None:
        """Run a job that syncs; repeat it once, after the steps of `_prove`, if its sync is unproven."""
        attempt = self._storage.run(work)
        self._jobs.start(attempt)
        try:
            await asyncio.shield(attempt)
        except SyncUnproven as error:
            self._jobs.start(self._prove_and_run(error, work))
        except Exception:  # raised by `settle`
            pass
        await self._jobs.settle()

    async def _prove_and_run(self, error: SyncUnproven, work: Callable[[], None]) -> None:
        await self._storage.run_steps(self._prove(error))
        await self._storage.run(work)

    def _prove(self, error: SyncUnproven) -> Generator[None]:
        """Return the steps after which an unproven sync can be repeated."""
        return stored_again(self._storage.syncs, self._storage.files, error.unproven)

    async def flush_available(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        await self.flush(buffers, sync=sync)

    async def finish(self, buffers: Sequence[Buffer] = (), *, sync: bool) -> bool:
        await self._jobs.settle()
        if not buffers and self._descriptor < 0:
            return False  # this writer has not opened the file
        rest = list(buffers)
        await self._run_proving(lambda: self._finish(rest, sync))
        return not self._storage_state

    def finish_in_thread(self, buffers: Sequence[Buffer], *, sync: bool) -> None:
        try:
            self._finish(list(buffers), sync)
        finally:
            if self._descriptor >= 0:
                with file_errors():
                    self._close()

    def can_finish_by(self, *, with_bytes: bool) -> bool:
        return with_bytes or self._descriptor >= 0

    async def finish_by(
        self, buffers: Sequence[Buffer], submit: Callable[[Callable[[], None]], asyncio.Future[T]], *, sync: bool
    ) -> T:
        await self._jobs.settle()
        finished = False

        def store() -> None:
            nonlocal finished
            self._finish(list(buffers), sync)
            finished = True

        result = self._storage.run_external(submit, store)
        self._jobs.start(result)
        try:
            await asyncio.shield(result)
        except SyncUnproven as error:
            self._jobs.detach()
            raise LastStepRefused from error
        except Exception:  # raised by `result.result()` below
            pass
        if finished:
            self._jobs.detach()  # a failure after the last byte does not concern the storage
        await self._jobs.settle()
        return result.result()

    async def discard(self, offset: int) -> None:
        await self._jobs.wait()
        if self._descriptor >= 0:
            await self._storage.run(lambda: self._truncate(offset))
        self._stored = offset

    async def close(self) -> None:
        await self._jobs.wait()
        if self._descriptor >= 0:
            await self._storage.run(self._close)

    # The methods below run in a thread of the storage, one call at a time.

    def _write(self, buffers: Sequence[Buffer]) -> None:
        with file_errors():
            self._ensure_open()
            if self._observer is not None:
                for buffer in buffers:
                    self._observer(buffer)
            for first in range(0, len(buffers), MAX_BUFFERS):
                self._write_all(list(buffers[first : first + MAX_BUFFERS]))

    def _ensure_open(self) -> None:
        if self._descriptor < 0:
            self._storage.check_identity()
            self._open()

    def _receive(self, rest: list[Buffer], arriving: ArrivingBytes) -> None:
        try:
            with arriving, file_errors():
                self._write_rest(rest)
                while arriving.receive():
                    self._ensure_open()
                    self._stored += arriving.store(self._descriptor, self._stored)
        finally:
            arriving.in_use = False

    def _write_all(self, buffers: list[Buffer]) -> None:
        while buffers:
            written = os.pwritev(self._descriptor, buffers, self._stored)
            self._stored += written
            while buffers and written >= len(buffers[0]):
                written -= len(buffers[0])
                del buffers[0]
            if written:
                buffers[0] = memoryview(buffers[0])[written:]

    def _open(self) -> None:
        if self._start == 0:
            with contextlib.suppress(FileExistsError):
                self._descriptor = self._storage.files.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                self._storage.syncs.clear_distrust(self._file)
                return
        try:
            descriptor = self._storage.files.open(self._file, os.O_RDWR | (os.O_CREAT if self._start == 0 else 0))
        except FileNotFoundError:
            self._refuse_short_file()
        try:
            status = os.fstat(descriptor)
            trusted_size = self._storage.syncs.trusted_size(self._path, status)
            if trusted_size < self._start:
                self._refuse_short_file()
            if status.st_size > self._start:
                # Bytes that were never committed, unless the record is older than they are.
                if self._storage.read_completion_record(self._upload_id) is not None:
                    raise StorageAhead
                self._cut_at_start(descriptor)
            elif self._storage.syncs.is_distrusted(self._path, status):
                self._cut_at_start(descriptor)
            self._storage.syncs.clear_distrust(self._file)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _refuse_short_file(self) -> NoReturn:
        """Raise `StorageBehind` for a file that has fewer bytes than the record, once a cut of it is durable."""
        self._storage.check_identity()
        held = self._storage.bytes_held(self._path)
        self._storage.syncs.settle_cut(self._path, held)
        if (self._storage.files.size(self._path) or 0) <= self._synced:  # no byte is left that could be in doubt
            self._storage.syncs.marks.remove(self._path)
        raise StorageBehind(held)

    def _cut_at_start(self, descriptor: int) -> None:
        """Cut the file off at the offset of the record, see `_cut`."""
        self._cut(descriptor, self._start)
        if self._start <= self._synced:
            self._storage.syncs.marks.remove(self._path)  # of an earlier process: the bytes that it concerned are gone

    def _cut(self, descriptor: int, end: int) -> None:
        """Cut the file off, for good before other bytes follow; raises `StorageBehind` if the sync fails.

        A power cut could undo a cut that is not synced: the size of the file would then count bytes that were refused,
        such as those of a wrong checksum, in place of those that were sent and acknowledged after them.
        """
        os.ftruncate(descriptor, end)
        try:
            self._storage.syncs.sync(
                descriptor,
                self._path,
                min(self._synced, end),
                start=self._file_start,
                acknowledged=min(self._acknowledged, end),
                names=end <= self._file_start,  # the file may stand for one whose removal was not synced
                with_call=sync_data,
                proves=False,
            )
        except StorageBehind:
            raise
        except BaseException:
            have_cut_again(descriptor, end)
            raise

    def _write_rest(self, rest: list[Buffer]) -> None:
        """Write buffers, and take them from the list: the caller may be repeated."""
        if rest:
            self._write(rest)
            rest.clear()

    def _flush(self, rest: list[Buffer], sync: bool) -> None:
        self._write_rest(rest)
        if sync:
            # Until a sync has included the folders, a power cut can take the name of the file with all its bytes.
            self._sync(names=self._synced <= self._file_start, with_call=sync_data)

    def _finish(self, rest: list[Buffer], sync: bool) -> None:
        self._write_rest(rest)
        if sync:
            self._sync(names=True)
        self._close()

    def _sync(self, *, names: bool, with_call: Callable[[int], None] = sync_file) -> None:
        self._storage.syncs.sync(
            self._descriptor,
            self._path,
            self._synced,
            start=self._file_start,
            acknowledged=min(self._acknowledged, self._stored),
            names=names,
            with_call=with_call,
        )
        self._synced = self._stored

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        inode = inode_of(descriptor)
        try:
            os.close(descriptor)
        except OSError as error:  # NFS stores bytes, and reports failures, when a file is closed
            acknowledged = min(self._acknowledged, self._stored)
            if acknowledged > max(self._synced, self._file_start):
                with contextlib.suppress(OSError, StorageUnavailable):  # for other processes, in case the cut fails too
                    self._storage.check_identity()
                    self._storage.syncs.marks.make(self._path)
            self._storage.syncs.lost(
                self._path, self._synced, error, start=self._file_start, inode=inode, acknowledged=acknowledged
            )

    def _truncate(self, offset: int) -> None:
        with file_errors():
            if os.fstat(self._descriptor).st_size > offset:  # never extended: a failed sync may have cut it off
                self._cut(self._descriptor, offset)
        self._synced = min(self._synced, offset)
