"""What is particular to locks in a file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.contracts.test_locks import Holder
from tusd_py.errors import StateUnavailable
from tusd_py.locks import tokens as counter
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
    assert (tmp_path / "locks").stat().st_size == 16


async def tokens(path: Path, count: int) -> list[int]:
    """Tokens given out by one process that is then gone."""
    locker = LocalLocker(path)
    await locker.open()
    found = []
    for number in range(count):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        found.append(lock.token)
        await lock.release()
    await locker.close()
    return found


async def test_tokens_grow_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    first = await tokens(tmp_path / "locks", 10)
    assert first == sorted(set(first))
    assert min(await tokens(tmp_path / "locks", 1)) > max(first)


async def test_tokens_go_on_beyond_those_of_the_version_before(tmp_path: Path) -> None:
    (tmp_path / "locks").write_bytes((1 << 61).to_bytes(8))
    assert min(await tokens(tmp_path / "locks", 1)) > 1 << 61


async def test_a_counter_that_a_power_cut_took_back_goes_on_beyond_what_was_used(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    locker = LocalLocker(path)
    await locker.open()
    synced = path.read_bytes()
    used = []
    for number in range(1000):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        used.append(lock.token)
        await lock.release()
    await locker.close()
    path.write_bytes(synced)  # the device has no more than this
    assert min(await tokens(path, 1)) > max(used)


async def test_a_reservation_is_renewed_before_it_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "BLOCK", 10)
    path = tmp_path / "locks"
    locker = LocalLocker(path)
    await locker.open()
    for number in range(100):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        newest, reserved = counter.NUMBERS.unpack(path.read_bytes())
        assert newest == lock.token
        assert reserved >= lock.token + 5
        await lock.release()
    await locker.close()


async def test_a_lock_outdoes_the_token_of_a_record(tmp_path: Path) -> None:
    locker = LocalLocker(tmp_path / "locks")
    await locker.open()
    lock = await locker.acquire("upload", Holder(), 0)
    await lock.outdo(1 << 61)
    assert lock.token > 1 << 61
    later = await locker.acquire("other", Holder(), 0)
    assert later.token > lock.token
    await lock.release()
    await later.release()
    await locker.close()
