"""Tests of the tools that make system calls fail or stall."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.faults.preload import PreloadedFaults
from tests.faults.stalls import OSFaults

WRITE = """
import os, sys
for path in sys.argv[1:]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for call in (lambda: os.pwritev(descriptor, [b"ab", b"cd"], 0), lambda: os.fsync(descriptor)):
        try:
            print(call())
        except OSError as error:
            print(error.errno)
    os.close(descriptor)
"""


@pytest.fixture
def faults(tmp_path: Path, preload_library: Path) -> PreloadedFaults:
    return PreloadedFaults(tmp_path / "faults", preload_library)


def written(faults: PreloadedFaults, *paths: Path) -> list[str]:
    """Return the results of the pwritev and fsync calls of a process, by path."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE, *map(str, paths)], env=os.environ | faults.env, capture_output=True, text=True
    )
    return done.stdout.split()


def test_preloaded_calls_pass_where_no_rule_matches(tmp_path: Path, faults: PreloadedFaults) -> None:
    faults.fail("pwritev", "*/other")
    faults.fail("fdatasync", "*")
    assert written(faults, tmp_path / "file") == ["4", "None"]
    assert (tmp_path / "file").read_bytes() == b"abcd"


def test_preloaded_calls_fail_by_number_and_path(tmp_path: Path, faults: PreloadedFaults) -> None:
    fault = faults.fail("fsync,fdatasync", "*/file*", errno.EIO, skip=1, times=1)
    paths = [tmp_path / "file1", tmp_path / "another", tmp_path / "file2", tmp_path / "file3"]
    assert written(faults, *paths) == ["4", "None", "4", "None", "4", str(errno.EIO), "4", "None"]
    assert fault.hits == [str(tmp_path / "file2")]
    fault.lift()
    assert written(faults, *paths) == ["4", "None"] * 4


def test_preloaded_writes_are_dropped_shortened_and_kill(tmp_path: Path, faults: PreloadedFaults) -> None:
    faults.drop("pwritev", "*/dropped")
    faults.short("pwritev", "*/shortened", 1)
    faults.kill("fsync", "*/killed")
    paths = [tmp_path / name for name in ("dropped", "shortened", "killed", "never")]
    written(faults, *paths)
    assert [path.read_bytes() for path in paths[:3]] == [b"", b"a", b"abcd"]
    assert not paths[3].exists()


def test_a_preloaded_sync_that_loses_leaves_zeros_and_passes_the_next_time(
    tmp_path: Path, faults: PreloadedFaults
) -> None:
    faults.lose("fsync", "*/file", errno.EIO, times=1)
    path = tmp_path / "file"
    assert written(faults, path) == ["4", str(errno.EIO)]
    assert path.read_bytes() == bytes(4)
    faults.clear()
    assert written(faults, path) == ["4", "None"]
    assert path.read_bytes() == b"abcd"


def test_a_preloaded_stall_lasts_until_it_is_lifted(tmp_path: Path, faults: PreloadedFaults) -> None:
    stall = faults.stall("pwritev", "*/file")
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.extend(written(faults, tmp_path / "file")))
    thread.start()
    stall.wait()
    assert (tmp_path / "file").read_bytes() == b""
    assert not stall.ended
    stall.lift()
    thread.join()
    assert outcome == ["4", "None"]
    assert stall.ended == [str(tmp_path / "file")]


async def test_calls_of_this_process_stall_and_fail(tmp_path: Path, os_faults: OSFaults) -> None:
    stall = os_faults.stall("unlink", "*/file")
    os_faults.fail("fsync", "*/file", errno.EIO, times=1)
    path = tmp_path / "file"
    path.write_bytes(b"")
    removal = asyncio.create_task(asyncio.to_thread(path.unlink))
    await asyncio.to_thread(stall.wait)
    assert path.exists()
    stall.lift()
    await removal
    assert not path.exists()
    with path.open("wb") as file:
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file.fileno())
        os.fsync(file.fileno())


SPLICE = """
import os, sys
for path in sys.argv[1:]:
    source, target = os.pipe()
    os.write(target, b"abcd")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        print(os.splice(source, descriptor, 4, offset_dst=0))
    except OSError as error:
        print(error.errno)
"""


def test_a_preloaded_splice_to_a_file_has_the_faults_of_pwritev(tmp_path: Path, faults: PreloadedFaults) -> None:
    faults.drop("pwritev", "*/dropped")
    faults.short("pwritev", "*/shortened", 1)
    faults.fail("pwritev", "*/failed", errno.ENOSPC)
    paths = [tmp_path / name for name in ("dropped", "shortened", "failed", "whole")]
    command = [sys.executable, "-c", SPLICE, *map(str, paths)]
    done = subprocess.run(command, env=os.environ | faults.env, capture_output=True, text=True)
    assert done.stdout.split() == ["4", "1", str(errno.ENOSPC), "4"]
    assert [path.read_bytes() for path in paths] == [b"", b"a", b"", b"abcd"]


def test_a_splice_of_this_process_to_a_file_fails_as_pwritev(tmp_path: Path, os_faults: OSFaults) -> None:
    os_faults.fail("pwritev", "*/file", errno.ENOSPC)
    source, target = os.pipe()
    os.write(target, b"abcd")
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="No space left"):
        os.splice(source, file.fileno(), 4, offset_dst=0)
    os.close(source)
    os.close(target)
