"""Clocks that are wrong, jump, and differ between hosts: nothing is removed, expired or locked out because of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.faults.clocks import DAY, FakeClock, HostClock
from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.core.clock import Clock
from tusd_py.core.errors import StorageUnavailable, UploadNotFound
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import AppendRequest, NewUpload

HOUR = 3600.0
DATA = bytes(range(100))

# One process: a service with a clock of its own, on the same records and files as those before it.
Process: TypeAlias = Callable[[Clock], AbstractAsyncContextManager[UploadService]]


def processes(folder: Path, **options: Any) -> Process:
    settings = {"upload_dir": folder / "uploads", "expires_after": "1d", "partial_retention": "1h"} | options

    def process(clock: Clock) -> AbstractAsyncContextManager[UploadService]:
        return running_service(settings, clock=clock)

    return process


@pytest.fixture
def one_host(tmp_path: Path) -> Process:
    return processes(tmp_path)


@pytest.fixture
def many_hosts(tmp_path: Path) -> Process:
    """Hosts with one Redis, whose clock is right."""
    return processes(tmp_path, redis_url=shared_redis_url(), redis_prefix=f"{tmp_path.name}:")


async def begun(service: UploadService, **options: Any) -> Upload:
    """Return an unfinished upload with ten bytes."""
    upload = await service.create(NewUpload(length=len(DATA), **options))
    return await appended(service, upload.id, 0, 10)


async def appended(service: UploadService, upload_id: str, start: int, end: int) -> Upload:
    return await service.append(upload_id, AppendRequest(start, Body(DATA[start:end])))


async def is_there(service: UploadService, upload: Upload) -> bool:
    """Return whether a HEAD, a sweep and another HEAD find the upload."""
    try:
        before = await service.inspect(upload.id)
        await Sweeper(service).sweep()
        return await service.inspect(upload.id) == before
    except UploadNotFound:
        return False


# One host.


async def test_an_upload_expires_a_day_after_its_last_byte(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
        clock.advance(DAY - 60)
        assert await is_there(service, upload)
        await appended(service, upload.id, 10, 20)
        clock.advance(DAY - 60)
        assert await is_there(service, upload)
        clock.advance(120)
        assert (await Sweeper(service).sweep()).total == 1
        assert not await is_there(service, upload)


async def test_a_clock_two_days_ahead_for_a_moment_removes_nothing(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
        clock.jump(2 * DAY)
        assert await is_there(service, upload)
        clock.advance(5)
        assert await is_there(service, upload)
        clock.jump(-2 * DAY)
        assert await is_there(service, upload)


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY])
async def test_a_removal_that_failed_is_finished_by_the_sweeper_whatever_the_clock_said(
    one_host: Process, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock = FakeClock()

    async def fail(upload: Upload) -> None:
        raise StorageUnavailable

    async with one_host(clock) as service:
        upload = await begun(service)
        clock.jump(jump)
        await Sweeper(service).sweep()
        if jump < 0:  # the steady clock stays behind for a while after the wall clock has come back
            clock.jump(-jump)
        with monkeypatch.context() as patch:
            patch.setattr(service.storage, "delete", fail)
            with pytest.raises(StorageUnavailable):
                await service.terminate(upload.id)
        if jump > 0:
            clock.jump(-jump)
        assert (await Sweeper(service).sweep()).total == 1
        assert await service.state.get(upload.id) is None


async def test_a_process_that_starts_while_the_clock_is_ahead_removes_nothing(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
    clock.advance(60)
    clock.jump(2 * DAY)
    async with one_host(clock) as service:
        assert await is_there(service, upload)


async def test_a_clock_behind_at_boot_that_is_corrected_later_ends_no_active_upload(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
    clock.reboot("second boot")
    clock.jump(-2 * DAY)
    async with one_host(clock) as service:
        later = await appended(service, upload.id, 10, 20)
        assert upload.expires_at is not None
        assert later.expires_at is not None
        assert later.expires_at >= upload.expires_at
        new = await begun(service)
        clock.advance(HOUR)
        clock.jump(2 * DAY)
        assert await is_there(service, upload)
        assert await is_there(service, new)
        clock.advance(HOUR)
        assert await is_there(service, new)


async def test_a_clock_far_ahead_at_boot_ends_no_upload_of_a_client_that_comes_back(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
    clock.reboot("second boot", off_for=10 * DAY)
    async with one_host(clock) as service:
        assert await is_there(service, upload)
        clock.advance(HOUR)
        assert await is_there(service, upload)
        clock.advance(DAY)
        assert (await Sweeper(service).sweep()).total == 1


async def test_a_jump_does_not_prolong_for_ever(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        await begun(service)
        clock.jump(-400 * DAY)
        await begun(service)  # it expires a year too early, by the stamp
        clock.advance(60)
        clock.jump(400 * DAY)
        assert (await Sweeper(service).sweep()).total == 0
        clock.advance(DAY - 600)
        assert (await Sweeper(service).sweep()).total == 0
        clock.advance(HOUR)
        assert (await Sweeper(service).sweep()).total == 2


async def test_a_complete_partial_upload_keeps_its_expiry_when_the_clock_goes_back(one_host: Process) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service, concatenation=UploadKind.PARTIAL)
        clock.jump(-2 * DAY)
        complete = await appended(service, upload.id, 10, 100)
        assert complete.is_complete
        assert complete.expires_at == upload.expires_at


@pytest.mark.parametrize("wrong_by", [-400 * DAY, -DAY, DAY])
async def test_a_lost_token_counter_locks_nobody_out_whatever_the_clock_says(
    one_host: Process, tmp_path: Path, wrong_by: float
) -> None:
    clock = FakeClock()
    async with one_host(clock) as service:
        upload = await begun(service)
    (tmp_path / "uploads" / ".tusd-py" / "locks").unlink()
    clock.reboot("second boot")
    clock.jump(wrong_by)
    async with one_host(clock) as service:
        later = await appended(service, upload.id, 10, 20)
        assert later.token > upload.token
        await service.terminate(upload.id)


# Several hosts.


@pytest.mark.parametrize("wrong_by", [DAY * 1.5, -DAY * 1.5, 400 * DAY])
async def test_hosts_that_disagree_by_days_remove_nothing_of_each_other(many_hosts: Process, wrong_by: float) -> None:
    async with many_hosts(HostClock(0)) as right, many_hosts(HostClock(wrong_by)) as wrong:
        for one, other in ((right, wrong), (wrong, right)):
            upload = await begun(one)
            assert upload.expires_at == pytest.approx(time.time() + DAY, abs=120)
            assert upload.created_at == pytest.approx(time.time(), abs=120)
            for service in (other, one):
                assert await is_there(service, upload)
            later = await appended(other, upload.id, 10, 20)
            assert later.expires_at == pytest.approx(time.time() + DAY, abs=120)
            assert await is_there(one, later)
            assert (await appended(one, upload.id, 20, 100)).completed_at == pytest.approx(time.time(), abs=120)


async def test_a_host_whose_clock_jumps_goes_on_by_that_of_redis(many_hosts: Process) -> None:
    clock = HostClock(0)
    async with many_hosts(clock) as service:
        for clock.wrong_by in (3 * DAY, -3 * DAY, 0):
            upload = await begun(service)
            assert upload.expires_at == pytest.approx(time.time() + DAY, abs=120)
            assert await is_there(service, upload)


async def test_an_upload_that_another_host_has_just_made_is_there_although_the_clock_of_redis_was_set_back(
    many_hosts: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host learns of it with its next lock only, and judges the record by the clock as it was."""
    clock = FakeClock()
    async with many_hosts(clock) as one, many_hosts(clock) as other:

        async def ask_for_time() -> None:
            one.state.clock.synchronize(other.state.clock.wall(), clock.monotonic())  # type: ignore[attr-defined]

        one.state.clock.synchronize(clock.wall() + 2 * DAY, clock.monotonic())  # type: ignore[attr-defined]
        monkeypatch.setattr(one.state, "refresh_clock", ask_for_time)
        upload = await other.create(NewUpload(100, None))
        assert (await one.inspect(upload.id)).id == upload.id
