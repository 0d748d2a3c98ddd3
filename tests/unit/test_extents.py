"""The type of a file system by the text of /proc/self/mountinfo, and gaps by extents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tusd_py.backends.disk.extents import file_system_type, first_gap, has_mount_below, tells_gaps

MOUNTS = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:40 / /srv rw,relatime shared:1 master:2 - zfs tank/srv rw
24 23 0:41 / /srv/up\040loads rw - xfs /dev/vdb rw
25 22 0:42 / /mnt rw - ext4 /dev/vdc rw
26 25 0:43 / /mnt rw - fuse.sshfs host: rw
a line of another kind
"""
BLOCK = 1 << 16


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/", "ext4"),
        ("/home/uploads", "ext4"),
        ("/srv", "zfs"),
        ("/srv/uploads", "zfs"),
        ("/srv/up loads", "xfs"),
        ("/srv/up loads/2026/11", "xfs"),
        ("/srvx", "ext4"),
        ("/mnt/x", "fuse.sshfs"),
    ],
)
def test_the_nearest_and_last_mount_above_a_folder_tells_its_type(folder: str, expected: str) -> None:
    assert file_system_type(folder, MOUNTS) == expected


def test_no_mounts_no_type() -> None:
    assert file_system_type("/srv", b"") == ""


@pytest.mark.parametrize(("folder", "expected"), [("/", True), ("/srv", True), ("/srv/up loads", False), ("/m", False)])
def test_mounts_below_a_folder_are_found(folder: str, expected: bool) -> None:
    assert has_mount_below(folder, MOUNTS) is expected


def descriptor_of(path: Path) -> int:
    if not tells_gaps(path):
        pytest.skip("the file system does not tell which blocks were written")
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_written_bytes_have_no_gap(tmp_path: Path) -> None:
    descriptor = descriptor_of(tmp_path / "file")
    os.pwrite(descriptor, b"x" * (3 * BLOCK + 5), 0)
    assert first_gap(descriptor, 0, 3 * BLOCK + 5) == 3 * BLOCK + 5
    assert first_gap(descriptor, 7, 3 * BLOCK) == 3 * BLOCK
    assert first_gap(descriptor, 9, 9) == 9
    os.close(descriptor)


def test_a_hole_is_a_gap(tmp_path: Path) -> None:
    descriptor = descriptor_of(tmp_path / "file")
    os.pwrite(descriptor, b"x" * BLOCK, 0)
    os.pwrite(descriptor, b"x" * BLOCK, 2 * BLOCK)
    assert first_gap(descriptor, 0, 3 * BLOCK) == BLOCK
    assert first_gap(descriptor, BLOCK + 1, 3 * BLOCK) == BLOCK + 1
    assert first_gap(descriptor, 2 * BLOCK, 3 * BLOCK) == 3 * BLOCK
    os.ftruncate(descriptor, 9 * BLOCK)
    assert first_gap(descriptor, 2 * BLOCK, 9 * BLOCK) == 3 * BLOCK
    os.close(descriptor)


def test_an_extent_that_was_never_written_is_a_gap_although_it_can_be_read(tmp_path: Path) -> None:
    descriptor = descriptor_of(tmp_path / "file")
    os.pwrite(descriptor, b"x" * BLOCK, 0)
    os.posix_fallocate(descriptor, BLOCK, 4 * BLOCK)
    assert os.pread(descriptor, 5 * BLOCK, 0)[BLOCK:] == bytes(4 * BLOCK)
    assert first_gap(descriptor, 0, 5 * BLOCK) == BLOCK
    os.close(descriptor)


def test_gaps_of_many_extents_are_found(tmp_path: Path) -> None:
    descriptor = descriptor_of(tmp_path / "file")
    for number in range(400):  # more than one answer has room for
        os.pwrite(descriptor, b"x" * BLOCK, 2 * number * BLOCK)
    os.fsync(descriptor)
    for number in range(300):
        os.pwrite(descriptor, b"x" * BLOCK, (2 * number + 1) * BLOCK)
    assert first_gap(descriptor, 0, 800 * BLOCK) == 601 * BLOCK
    os.close(descriptor)
