"""Particulars of locks in files."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.contracts.parts import TIMEOUT, within
from tusd_py.backends.local_locks import byte_ranges, tokens as counter
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import StateUnavailable
from tusd_py.testing.locker_helpers import Holder, let_go_when_asked


@pytest.mark.parametrize("in_the_way", ["missing/locks", "a-file/locks", "a-directory"])
async def test_a_lock_file_that_cannot_be_opened(tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-directory").mkdir()
    locker = LocalLocker(tmp_path / in_the_way)
    with pytest.raises(StateUnavailable):
        await locker.open()
    await locker.close()


async def test_no_token_is_given_twice_where_calls_write_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: pwrite(file, data[:3], position))
    locker = LocalLocker(tmp_path / "locks")
    await locker.open()
    tokens = []
    for _ in range(300):  # more than fit into the last byte
        lock = await locker.acquire("upload", Holder(), 0)
        tokens.append(lock.token)
        await lock.release()
    await locker.close()
    assert tokens == list(range(tokens[0], tokens[0] + 300))


async def test_the_lock_file_does_not_grow(tmp_path: Path) -> None:
    locker = LocalLocker(tmp_path / "locks")
    await locker.open()
    for number in range(100):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        await lock.release()
    await locker.close()
    assert (tmp_path / "locks").stat().st_size == 16
    assert sum((tmp_path / name).stat().st_size for name in os.listdir(tmp_path)) == 16


async def tokens(path: Path, count: int) -> list[int]:
    """Return the tokens that one process takes before it ends."""
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


async def test_a_server_of_an_earlier_version_that_takes_an_upload_keeps_this_one_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert byte_ranges.try_lock(descriptor, 4096 + (1 << 40))
        locker = LocalLocker(path)
        with pytest.raises(StateUnavailable, match="earlier version"):
            await locker.open()
    finally:
        os.close(descriptor)
    await locker.open()
    await locker.close()


async def test_a_server_of_an_earlier_version_takes_no_upload_beside_this_one(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    locker, other = LocalLocker(path), LocalLocker(path)
    await locker.open()
    await other.open()
    descriptor = os.open(path, os.O_RDWR)
    try:
        for position in (4096, 4096 + (1 << 40), 1 << 62):
            assert not byte_ranges.try_lock(descriptor, position)
        await locker.close()
        assert not byte_ranges.try_lock(descriptor, 4096)
        await other.close()
        assert byte_ranges.try_lock(descriptor, 4096)
    finally:
        os.close(descriptor)


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
    monkeypatch.setattr(counter, "RESERVATION_SIZE", 10)
    path = tmp_path / "locks"
    locker = LocalLocker(path)
    await locker.open()
    for number in range(100):
        lock = await locker.acquire(f"upload-{number}", Holder(), 0)
        newest, reserved = counter.COUNTER_FORMAT.unpack(path.read_bytes())
        assert newest == lock.token
        assert reserved >= lock.token + 5
        await lock.release()
    await locker.close()


@pytest.mark.parametrize(("owner", "call"), [(threading.Thread, "start"), (os, "dup")])
async def test_a_reservation_that_cannot_be_synced_is_tried_again_with_the_next_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many") if owner is os else RuntimeError("can't start new thread")

    monkeypatch.setattr(counter, "RESERVATION_SIZE", 10)
    path = tmp_path / "locks"
    locker = LocalLocker(path)
    await locker.open()
    descriptors, reservation = len(os.listdir("/proc/self/fd")), reserved(path)
    used = []

    async def take(count: int) -> None:
        for _ in range(count):
            lock = await locker.acquire("upload", Holder(), 0)
            used.append(lock.token)
            await lock.release()

    with monkeypatch.context() as patched:
        patched.setattr(owner, call, refuse)
        await take(20)
        assert reserved(path) == reservation
        assert len(os.listdir("/proc/self/fd")) == descriptors
    await take(1)
    assert reserved(path) == used[-1] + 10
    assert used == list(range(used[0], used[0] + 21))
    await locker.close()


def reserved(path: Path) -> int:
    """Return the last token of the reservation."""
    _, last = counter.COUNTER_FORMAT.unpack(path.read_bytes())
    assert isinstance(last, int)
    return last


async def test_a_counter_of_which_nothing_can_be_written_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locker, other = LocalLocker(tmp_path / "locks"), LocalLocker(tmp_path / "locks")
    await locker.open()
    await other.open()
    results = [0] * 3
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: results.pop())  # without a result it fails, instead of going on
        with pytest.raises(StateUnavailable):
            await locker.acquire("upload", Holder(), 0)
    await (await other.acquire("upload", Holder(), 0)).release()
    await locker.close()
    await other.close()


async def test_an_error_that_nobody_expected_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    locker, other = LocalLocker(tmp_path / "locks"), LocalLocker(tmp_path / "locks")
    await locker.open()
    await other.open()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        with pytest.raises(MemoryError):
            await locker.acquire("upload", Holder(), 0)
    await (await other.acquire("upload", Holder(), 0)).release()
    await locker.close()
    await other.close()


async def test_a_lock_outdoes_the_token_of_a_record(tmp_path: Path) -> None:
    locker = LocalLocker(tmp_path / "locks")
    await locker.open()
    lock = await locker.acquire("upload", Holder(), 0)
    await lock.raise_token(1 << 61)
    assert lock.token > 1 << 61
    later = await locker.acquire("other", Holder(), 0)
    assert later.token > lock.token
    await lock.release()
    await later.release()
    await locker.close()


class Calls:
    """A counter of system calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._call = fcntl.fcntl
        monkeypatch.setattr(byte_ranges, "fcntl", SimpleNamespace(**vars(fcntl) | {"fcntl": self._counted}))

    def _counted(self, descriptor: int, command: int, argument: bytes) -> bytes:
        self.count += 1
        return self._call(descriptor, command, argument)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[LocalLocker, LocalLocker]]:
    """The lockers of two processes."""
    lockers = LocalLocker(tmp_path / "locks"), LocalLocker(tmp_path / "locks")
    for locker in lockers:
        await locker.open()
    yield lockers
    for locker in lockers:
        await locker.close()


async def test_looking_at_other_processes_costs_the_same_however_much_is_held(
    pair: tuple[LocalLocker, LocalLocker], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, other = pair
    holders = [Holder() for _ in range(500)]
    for number, holder in enumerate(holders):
        await holding.acquire(f"upload-{number}", holder, 0)
    calls = Calls(monkeypatch)
    for number in range(0, 500, 50):
        async with other.request_commit(f"upload-{number}"):
            await within(holders[number].commit_asked.wait())
    assert calls.count < 500  # ten requests; a look at every lock would be 500 at each
    assert sum(holder.commit_asked.is_set() for holder in holders) == 10


@pytest.mark.parametrize(("held", "wanted"), [(300, 300), (300, 5), (5, 300)])
async def test_many_want_what_many_hold(pair: tuple[LocalLocker, LocalLocker], held: int, wanted: int) -> None:
    """All the right locks are found, whether there are fewer requests or fewer locks."""
    holding, other = pair

    async def hold(number: int) -> None:
        holder = Holder()
        lock: Lock = await holding.acquire(f"upload-{number}", holder, 0)
        if number < wanted:
            await let_go_when_asked(lock, holder)
        else:
            locks.append((lock, holder))

    async def want(number: int) -> None:
        lock = await other.acquire(f"upload-{number}", Holder(), TIMEOUT)
        await lock.release()

    locks: list[tuple[Lock, Holder]] = []
    beyond = [await holding.acquire(f"upload-{number}", Holder(), 0) for number in range(held, wanted)]
    holds = [asyncio.create_task(hold(number)) for number in range(held)]
    await asyncio.sleep(0)
    wants = [asyncio.create_task(want(number)) for number in range(wanted)]
    await within(asyncio.gather(*holds))
    for lock in beyond:
        await lock.release()
    await within(asyncio.gather(*wants))
    for kept, holder in locks:
        assert not holder.release_asked.is_set()
        await kept.release()


async def test_a_wish_that_is_older_than_the_lock_is_known_at_once(pair: tuple[LocalLocker, LocalLocker]) -> None:
    locker, other = pair
    first = await locker.acquire("upload", Holder(), 0)
    waiting = asyncio.create_task(other.acquire("upload", Holder(), TIMEOUT))
    await asyncio.sleep(0)
    await first.release()
    holder = Holder()
    second = await locker.acquire("upload", holder, 0)
    assert holder.release_asked.is_set()
    await second.release()
    await (await within(waiting)).release()


async def test_waiter_is_told_when_the_locker_closes(pair: tuple[LocalLocker, LocalLocker]) -> None:
    locker, other = pair
    lock = await locker.acquire("upload", Holder(), 0)
    waiting = asyncio.create_task(other.acquire("upload", Holder(), TIMEOUT))
    await asyncio.sleep(0)
    await other.close()
    with pytest.raises(StateUnavailable):
        await within(waiting)
    with pytest.raises(StateUnavailable):
        await other.acquire("another", Holder(), 1)
    await lock.release()


def test_every_byte_that_others_have_locked_is_found(tmp_path: Path) -> None:
    ours, theirs, third = (os.open(tmp_path / "locks", os.O_RDWR | os.O_CREAT) for _ in range(3))
    positions = {0, 2, 4, 100, 1 << 40, (1 << 62) + 2}
    for position in positions:
        assert byte_ranges.try_lock(theirs, position, shared=True)
    assert byte_ranges.try_lock(third, 2, shared=True)
    assert byte_ranges.try_lock(ours, 50)
    found = byte_ranges.all_locked_elsewhere(ours, 0, (1 << 63) - 2, limit=10)
    assert found is not None
    assert set(found) == positions
    assert byte_ranges.all_locked_elsewhere(ours, 1, 99, limit=10) in ([2, 4], [4, 2])
    assert byte_ranges.all_locked_elsewhere(ours, 5, 99, limit=0) == []
    assert byte_ranges.all_locked_elsewhere(ours, 0, 1 << 62, limit=4) is None
    for descriptor in (ours, theirs, third):
        os.close(descriptor)
