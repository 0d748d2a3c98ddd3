"""What is particular to locks in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.test_locks import Holder
from tusd_py.errors import StateUnavailable
from tusd_py.locks.local import LocalLocker


@pytest.mark.parametrize("in_the_way", ["missing/locks", "a-file/locks", "a-directory"])
async def test_a_lock_file_that_cannot_be_opened(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-directory").mkdir()
    locker = LocalLocker(tmp_path / in_the_way)
    with pytest.raises(StateUnavailable):
        await locker.open()
    await locker.close()


async def test_the_lock_file_does_not_grow(tmp_path: Path) -> None:
    locker = LocalLocker(tmp_path / "locks")
    await locker.open()
    for number in range(100):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        await lock.release()
    await locker.close()
    assert (tmp_path / "locks").stat().st_size == 8
