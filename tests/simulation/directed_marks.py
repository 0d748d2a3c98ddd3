"""Directed scenarios of marks: processes that died in a sync, once and twice, and what it has taken with it."""

from __future__ import annotations

import errno
from collections.abc import Generator
from dataclasses import replace

from tests.simulation.directed_calls import small
from tests.simulation.directed_directory import UPLOAD, Directory, directory
from tests.simulation.machine import EPOCH
from tests.support.upload_records import FixedRecords
from tusd_py.backends.disk import shared as shared_disk, storing_again, sync_marks
from tusd_py.backends.disk.folder_syncs import FolderSyncs
from tusd_py.backends.disk.segment_map import segments
from tusd_py.backends.disk.shared import SharedDiskStorage, segment_path
from tusd_py.backends.disk.sync_marks import Mark
from tusd_py.backends.disk.syncs import SyncUnproven
from tusd_py.core.errors import LockLost, StorageAhead, StorageBehind, StorageFull
from tusd_py.core.upload import Status, Upload

LACKS = ("extents",)  # so that nothing tells which bytes were lost


# One host.


@directory(lacks=LACKS)
async def bytes_of_a_sync_that_died_are_stored_again(disk: Directory) -> None:
    with small(sync_marks, STEP_SIZE=512):
        for _ in range(3):  # in an append, in the end, and after a second death
            await disk.append(900, sync=False)
            disk.mark()
            disk.lose()
            await disk.append(100)
            disk.check(not disk.is_marked(), "the mark stays")
        disk.upload = replace(disk.upload, synced=0)
        disk.mark()
        await disk.finish()


@directory(lacks=LACKS)
async def bytes_that_are_stored_again_are_proven_step_by_step(disk: Directory) -> None:
    """The process dies after one step; the next one goes on from there, and finds an error and a full disk."""
    await disk.append(2000, sync=False)
    disk.mark()
    disk.lose()
    with small(sync_marks, STEP_SIZE=512):
        inode = disk.file().number
        steps = _steps(disk)
        next(steps)
        steps.close()
        disk.check(disk.storage.syncs.marks.read(disk.path, inode) == Mark(512), "the mark does not tell of the step")
        disk.check(bytes(disk.file().durable[:512]) == disk.sent[:512], "the bytes of the step are not stored")
        await disk.open_again()
        disk.files.is_full = True  # which concerns no byte that is there
        await disk.refused(StorageFull, disk.append(100))
        disk.files.is_full = False
        disk.files.failing_syncs = 1
        error = await disk.refused(StorageBehind, disk.append(100))
        disk.check(error is not None and error.stored >= 512, f"{error!r} takes bytes that were proven")
        disk.go_back(error.stored)
        await disk.append(3000 - disk.upload.offset)
        await disk.finish()


def _steps(disk: Directory) -> Generator[None]:
    """Return the steps by which the bytes of a mark are stored again."""
    descriptor = disk.storage.files.open(disk.path, 2)
    try:
        disk.storage.syncs.sync(descriptor, disk.path, 0, acknowledged=disk.upload.offset, names=True)
    except SyncUnproven as error:
        unproven = error.unproven
    else:
        disk.check(False, "a sync of bytes with a mark succeeds")
    finally:
        vars(shared_disk)["os"].close(descriptor)
    return storing_again.stored_again(disk.storage.syncs, disk.storage.files, unproven)


@directory()
async def a_file_system_that_tells_of_lost_bytes_takes_them_back_at_once(disk: Directory) -> None:
    await disk.append(700)
    await disk.append(900, sync=False)
    disk.mark()
    disk.lose()
    error = await disk.refused(StorageBehind, disk.append(100))
    disk.check(error is not None and error.stored == 700, f"{error!r}, where 700 bytes were synced")
    disk.go_back(700)
    await disk.append(2300)
    await disk.finish()


@directory(lacks=LACKS)
async def a_cut_leaves_a_mark_that_calls_nothing_proven(disk: Directory) -> None:
    await disk.append(2000, sync=False)
    for proven in (0, 1900):
        if not disk.is_marked():
            disk.mark()
        inode = disk.file().number
        disk.storage.syncs.marks.note(disk.path, inode, Mark(proven))
        disk.upload, disk.sent = replace(disk.upload, offset=disk.upload.offset - 100), disk.sent[:-100]
        await disk.append(50, sync=False)  # once the file is cut off at the offset of the record
        found = disk.storage.syncs.marks.read(disk.path, inode)
        disk.check(found == Mark(), f"after a cut the mark tells {found}")
    await disk.append(3000 - disk.upload.offset)
    await disk.finish()


@directory(lacks=LACKS)
async def a_file_that_is_shorter_than_its_mark_is_settled_first(disk: Directory) -> None:
    """The process has died between the cut of a file and its sync, or has removed it, and left the mark."""
    await disk.append(1000)
    await disk.append(1000, sync=False)
    disk.mark()
    disk.file().cut(1000)
    stored = await disk.storage.stored_size(disk.upload)
    disk.check(stored == 1000 == len(disk.file().durable), f"{stored} bytes are stored")
    disk.check(not disk.file().pending, "the cut is not synced before the offset goes back")
    error = await disk.refused(StorageBehind, disk.append(10))
    disk.check(error is not None and error.stored == 1000, f"{error!r}, where 1000 bytes are left")
    disk.go_back(1000)
    await disk.append(2000)
    await disk.finish()


@directory()
async def a_file_that_is_shorter_than_what_is_synced_is_not_extended_by_a_cut(disk: Directory) -> None:
    await disk.append(1000)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 500, sync=False)
    disk.file().cut(600)  # by a disk that breaks
    disk.files.failing_syncs = 2
    error = await disk.refused(StorageBehind, writer.flush([], sync=True))
    await writer.close()
    disk.check(error is not None and error.stored == 1000, f"{error!r}, where 1000 bytes were synced")
    stored = await disk.storage.stored_size(disk.upload)
    disk.check(stored == 600 == disk.storage.bytes_held(disk.path), f"{stored} of the 600 bytes that are left count")
    disk.go_back(600)
    await disk.append(2400)
    await disk.finish()


@directory()
async def a_file_that_is_removed_and_not_for_good_counts_for_nothing(disk: Directory) -> None:
    """The first sync fails, then that of the folder without it, and there is no room for an empty file in its place."""
    await disk.append(1000, sync=False)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 500, sync=False)

    def fail(*_: object) -> None:
        disk.files.is_full = True
        raise OSError(errno.EIO, "the sync fails")

    disk.files.failing_syncs = 1
    with small(FolderSyncs, sync=fail):
        error = await disk.refused(StorageBehind, writer.flush([], sync=True))
    disk.check(error is not None and error.stored == 0, f"{error!r}, where nothing was synced")
    disk.files.is_full = False
    await writer.close()
    disk.check(await disk.storage.stored_size(disk.upload) == 0, "bytes count that were lost")
    error = await disk.refused(StorageBehind, disk.append(10))
    disk.check(error is not None and error.stored == 0, f"{error!r}, where nothing was synced")
    disk.go_back(0)
    await disk.append(3000)
    await disk.finish()


# A directory that hosts share.


@directory(SharedDiskStorage, lacks=LACKS)
async def bytes_of_earlier_segments_are_copied_if_their_sync_died(disk: Directory) -> None:
    with small(sync_marks, STEP_SIZE=512):
        await disk.append(300)
        await disk.append(700, 2, predecessors=1, sync=False)
        await disk.append(700, 3, predecessors=1, sync=False)
        for token in (2, 3):
            path = segment_path(disk.path, token)
            disk.mark(path)
            disk.lose(path)
        await disk.append(400, 4, predecessors=1)
        disk.check(disk.upload.synced == 2100, f"{disk.upload.synced} of 2100 bytes are synced")
        disk.check(disk.upload.storage_state == "300:4", f"the segments are {disk.upload.storage_state}")
        await disk.append(900, 4)
        await disk.finish()


@directory(SharedDiskStorage, lacks=LACKS)
async def all_segments_are_copied_in_the_end_if_a_sync_died(disk: Directory) -> None:
    await disk.append(700, 2, sync=False)
    await disk.append(700, 3, predecessors=1, sync=False)
    disk.mark()
    disk.lose()
    writer = disk.storage.writer(disk.upload, 4, unreleased_predecessors=1)
    content = disk.random(1600)
    disk.check(not await writer.finish([content], sync=True), "several files are whole")
    disk.commit(writer, content)
    await writer.close()
    disk.check(disk.upload.synced == 0, f"{disk.upload.synced} bytes count as synced")
    await disk.finish()


@directory(SharedDiskStorage, lacks=LACKS)
async def a_shared_file_with_a_mark_is_replaced_by_a_copy(disk: Directory) -> None:
    await disk.append(3000, sync=False)
    disk.mark()
    disk.lose()
    number = disk.file().number
    await disk.finish()
    disk.check(disk.file().number != number, "a file whose sync may have failed is kept")


@directory(SharedDiskStorage, lacks=LACKS)
async def the_writer_of_a_shared_file_stores_what_it_inherits_again(disk: Directory) -> None:
    """A mark that was there before is of a process that died; one that came since is of a writer with the lease."""
    await disk.append(900, sync=False)
    disk.mark()
    disk.lose()
    await disk.append(100)
    disk.check(disk.upload.synced == 1000, f"{disk.upload.synced} of 1000 bytes are synced")
    await disk.append(1000, sync=False)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 500, sync=False)
    disk.mark()
    await disk.refused(SyncUnproven, writer.flush([], sync=True))
    await writer.close()
    disk.check(disk.upload.synced == 1000, f"{disk.upload.synced} bytes count as synced")
    await disk.append(500)
    await disk.finish()


@directory(SharedDiskStorage)
async def a_loss_of_a_shared_file_is_noted_and_never_less(disk: Directory) -> None:
    """A writer without its lease hears of the loss too: bytes that its successor has proved stay."""
    await disk.append(500)
    first = disk.storage.writer(disk.upload, 2)
    await disk.flush(first, 300, sync=False)
    second = disk.storage.writer(disk.upload, 3)
    await disk.flush(second, 300, sync=True)
    await disk.flush(second, 300, sync=False)
    for writer, kept in ((first, 500), (second, 1100)):
        disk.files.failing_closes = 1  # as that of a directory whose host has lost bytes that were written later
        error = await disk.refused(StorageBehind, writer.close())
        disk.check(error is not None and error.stored == kept, f"{error!r}, where {kept} bytes were synced")
    found = disk.storage.syncs.marks.read(disk.path, disk.file().number)
    disk.check(found == Mark(500, lost=True), f"the mark tells {found}")
    disk.check(disk.shared.file_size(disk.path) == 1400, "bytes of a shared file were cut off")
    disk.check(await disk.storage.stored_size(disk.upload) == 1100, "bytes count that were lost, or proven ones do not")
    for ask in (disk.storage.finish(disk.upload, sync=True), disk.append(10, 4)):
        error = await disk.refused(StorageBehind, ask)
        disk.check(error is not None and error.stored == 1100, f"{error!r}, where 1100 bytes are left")
    disk.go_back(1100)
    await disk.append(1900, 5)
    disk.check(disk.upload.storage_state == "1100:5", f"the segments are {disk.upload.storage_state}")
    await disk.finish()


@directory(SharedDiskStorage)
async def a_shared_file_at_the_end_of_which_bytes_were_lost_has_no_second_writer(disk: Directory) -> None:
    await disk.append(500)
    writer = disk.storage.writer(disk.upload, 2)
    await disk.flush(writer, 300, sync=False)
    disk.files.failing_syncs = 1
    await disk.refused(StorageBehind, writer.flush([], sync=True))
    await writer.close()
    unproven = replace(disk.upload, synced=0)
    sync = disk.shared.sync_segments
    for record in (disk.upload, unproven):
        held = segments(record.storage_state, record.offset)
        error = None
        try:
            sync(disk.path, held, record.synced, names=True)
        except StorageBehind as behind:
            error = behind
        disk.check(error is not None and error.stored == 500, f"a sync of lost bytes ends with {error!r}")
    disk.go_back(500)
    await disk.append(2500, 3)
    await disk.finish()


@directory(SharedDiskStorage)
async def a_segment_without_its_bytes_is_told_before_it_is_synced(disk: Directory) -> None:
    await disk.append(500)
    await disk.append(500, 2, predecessors=1, sync=False)
    path = segment_path(disk.path, 2)
    disk.file(path).cut(700)
    later = disk.storage.writer(disk.upload, 3)
    error = await disk.refused(StorageBehind, later.flush([b"x"], sync=True))
    await later.close()
    disk.check(error is not None and error.stored == 700, f"{error!r}, where 700 bytes are left")
    held = segments(disk.upload.storage_state, 1000)
    for left, stored in ((700, 700), (0, 500)):
        if not left:
            disk.storage.files.unlink(path)
        error = None
        try:
            disk.shared.sync_segments(disk.path, held, 500, names=True)
        except StorageBehind as behind:
            error = behind
        disk.check(error is not None and error.stored == stored, f"a sync with {left} bytes ends with {error!r}")
    disk.go_back(500)
    await disk.append(2500, 4)
    await disk.finish()


@directory(SharedDiskStorage)
async def a_writer_with_an_old_token_or_record_writes_nothing(disk: Directory) -> None:
    await disk.append(500)
    await disk.append(500, 2, predecessors=1)
    old = replace(disk.upload, offset=500, storage_state="")
    again = disk.storage.writer(old, 2, unreleased_predecessors=1)
    await disk.refused(LockLost, again.flush([b"x"], sync=True))
    await again.close()
    before = disk.upload
    await disk.append(2000, 2)
    await disk.finish()
    await disk.storage.save_completion_record(replace(disk.upload, status=Status.COMPLETE))
    behind = disk.storage.writer(replace(before, storage_state=""), 9, unreleased_predecessors=1)
    await disk.refused(StorageAhead, behind.flush([b"x"], sync=True))
    await behind.close()
    disk.check_stored()
    disk.check(disk.names() == {"upload"}, f"the files {disk.names()} are left")


@directory(SharedDiskStorage)
async def orphans_of_a_shared_directory_are_segments_and_marks_that_nobody_needs(disk: Directory) -> None:
    await disk.append(500)
    await disk.append(500, 2, predecessors=1)
    named = ("upload.2", ".upload.sync", ".upload.2.sync")  # that the record needs
    left = ("upload.7", ".upload.7.sync", ".gone.sync", "gone.3", "other.4", ".other.sync")
    strange = ("notes.txt", ".hidden", "upload.xyz")
    for name in (*named, *left, *strange):
        if not disk.shared.files.is_occupied(disk.top / name) and name != "upload.2":
            vars(shared_disk)["os"].close(disk.shared.files.open(disk.top / name, 0o101))
    other = replace(UPLOAD, id="other", status=Status.COMPLETE)
    records = FixedRecords(disk.upload, other)
    before = disk.names()
    found = await disk.shared.clean(records, older_than=EPOCH + 10_000.0)
    disk.check(not found, f"young files {found} are orphans")
    found = await disk.shared.clean(records, older_than=-1.0, dry_run=True)
    names = {orphan.name.rpartition("/")[2] for orphan in found}
    disk.check(names == set(left), f"the orphans are {names}")
    disk.check(disk.names() == before, "a dry run removes files")
    records.in_use = {"gone"}
    found = await disk.shared.clean(records, older_than=-1.0)
    disk.check(len(found) == 4, f"{found} are removed, where the lock of two is held")
    records.in_use = set()
    records.uploads["gone"] = replace(UPLOAD, id="gone", storage_state="5:3")  # as a request that is made now
    found = await disk.shared.clean(_Late(records), older_than=-1.0)
    disk.check(not found, f"{found} are removed, which a request needs now")
    for name in (*left, *strange, ".upload.sync", ".upload.2.sync"):
        disk.shared.files.unlink(disk.top / name)
    await disk.append(2000, 3)
    await disk.finish()


class _Late(FixedRecords):
    """Records that are made between the look without the lock and that with it."""

    def __init__(self, records: FixedRecords) -> None:
        super().__init__(*records.uploads.values())
        self._seen = False

    async def get(self, upload_id: str) -> Upload | None:
        first, self._seen = not self._seen, True
        return None if first else self.uploads.get(upload_id)


@directory()
async def a_whole_file_that_a_dead_process_has_left_is_stored_again(disk: Directory) -> None:
    await disk.append(3000, sync=False)
    syncs = disk.storage.syncs
    syncs.sync_whole(disk.path, 3000)
    disk.check(not disk.is_marked() and bytes(disk.file().durable) == disk.sent, "a whole file is not synced")
    disk.file().write(0, disk.sent)
    disk.mark()
    disk.lose()
    with small(sync_marks, STEP_SIZE=1024):
        syncs.sync_whole(disk.path, 3000)
    disk.check(not disk.is_marked() and bytes(disk.file().durable) == disk.sent, "lost bytes are not stored again")
    disk.file().cut(2000)
    disk.mark()
    try:
        syncs.sync_whole(disk.path, 3000)
    except OSError as error:
        disk.check(disk.is_marked(), f"after {error!r} there is no mark")
    else:
        disk.check(False, "a file without all its bytes is synced as a whole")
    await disk.refused(StorageBehind, disk.storage.finish(disk.upload, sync=True))
    disk.upload, disk.sent = replace(disk.upload, offset=2000), disk.sent[:2000]
    await disk.finish()
