"""Bytes that an unfinished sync may have lost, written once more.

Reading tells no lost page from a stored one, but a page that is written again is stored by the next sync, or makes that
fail. An error of reading may pass, and proves no loss.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Iterator

from tusd_py.backends.disk.errors import file_errors
from tusd_py.backends.disk.files import FileTree
from tusd_py.backends.disk.sync_calls import sync_data
from tusd_py.backends.disk.sync_marks import Mark, MissingBytes, read_steps
from tusd_py.backends.disk.syncs import Syncs, Unproven, inode_of
from tusd_py.core.errors import StorageUnavailable
from tusd_py.transfer.whole_writes import write_at

logger = logging.getLogger("tusd_py.storage")


def stored_again(syncs: Syncs, files: FileTree, unproven: Unproven) -> Generator[None]:
    """Write bytes once more, and sync them, in steps; the mark keeps the progress, and is removed in the end.

    Yields after each step. Runs in a worker thread, while the caller holds the lock of the upload.

    Raises `StorageBehind`, `StorageFull`, `StorageUnavailable`.
    """
    path, start, end = unproven.path, unproven.start, unproven.end
    with contextlib.ExitStack() as stack:
        with file_errors():
            descriptor = stack.enter_context(files.opened(path, os.O_RDWR))
            inode = inode_of(descriptor)
            done = max(unproven.kept, (syncs.marks.read(path, inode[1]) or Mark()).proven)
        logger.warning("the bytes of %s from %d to %d are stored again after an unfinished sync", path, done, end)
        try:
            for position, data in _read_or_later(descriptor, done, end):
                with file_errors():  # of a full disk, for example: the bytes are as they were
                    write_at(descriptor, data, position)
                sync_data(descriptor)  # after each step, or dirty pages would pile up
                done = position + len(data)
                with contextlib.suppress(OSError):  # the next process begins further ahead
                    syncs.marks.note(path, inode[1], Mark(done))
                yield
        except OSError as error:
            syncs.lost(path, done, error, start=start, inode=inode, acknowledged=end)
    syncs.marks.remove(path)


def _read_or_later(descriptor: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield as `read_steps` does; raises `MissingBytes`, and `StorageUnavailable` for an error of reading."""
    steps = read_steps(descriptor, start, end)
    while True:
        try:
            step = next(steps)
        except StopIteration:
            return
        except MissingBytes:
            raise
        except OSError as error:
            raise StorageUnavailable from error
        yield step
