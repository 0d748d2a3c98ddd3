"""Scans that a scanner cuts off: one that was stopped is told from one that does not take so many bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from tusd_py.contracts.scanner import ScanImpossible
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import MalwareFound, ScanSizeExceeded, ScanUnavailable, ServerShutdown
from tusd_py.core.upload import Upload
from tusd_py.uploads import scans
from tusd_py.uploads.options import ScanOptions
from tusd_py.uploads.scans import CUT_TOLERANCE, Scans

UPLOAD = Upload("a", 1.0, 5, offset=5)
FAR = CUT_TOLERANCE + 1


class Scripted:
    """A scanner that answers its calls so: cut off after so many bytes, away (None), or with the name of malware."""

    def __init__(self, answers: Sequence[int | str | None]) -> None:
        self.answers = list(answers)
        self.read: list[bytes] = []

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        self.read.append(b"".join([bytes(piece) async for piece in pieces]))
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise ScanImpossible("it is away", cut_at=answer)


async def pieces() -> AsyncGenerator[Buffer, None]:
    yield b"hel"
    yield b"lo"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([""], None),
        ([3, ""], None),
        ([3, "Test.Malware"], MalwareFound),
        ([None], ScanUnavailable),
        ([3, None], ScanUnavailable),
        ([3, 3], ScanSizeExceeded),
        ([3, 3 + CUT_TOLERANCE], ScanSizeExceeded),
        ([3, 3 + FAR], ScanUnavailable),
        ([3 + FAR, 3], ScanUnavailable),
    ],
)
async def test_only_a_second_cut_at_about_the_same_byte_is_a_limit(
    answers: list[int | str | None], expected: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "RETRY_AFTER_CUT", 0)
    scanner = Scripted(answers)
    subject = Scans(scanner, ScanOptions())
    if expected is None:
        await subject.scan(UPLOAD, pieces)
    else:
        with pytest.raises(expected):
            await subject.scan(UPLOAD, pieces)
    assert scanner.answers == []
    assert scanner.read == [b"hello"] * len(answers)


async def test_owner_has_two_scans_at_a_time_and_keeps_no_other_waiting() -> None:
    running, going_on = list[str](), asyncio.Event()

    class Holding:
        async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
            running.append(b"".join([bytes(piece) async for piece in pieces]).decode())
            await going_on.wait()
            return ""

    async def named(upload: Upload) -> AsyncGenerator[Buffer, None]:
        yield upload.id.encode()

    subject = Scans(Holding(), ScanOptions())
    uploads = [replace(UPLOAD, id=name, owner=name[0]) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "b3", "c1")]
    tasks = [asyncio.create_task(subject.scan(upload, partial(named, upload))) for upload in uploads]
    for _ in range(50):
        await asyncio.sleep(0)
    assert running == ["a1", "a2", "b1", "b2"]
    going_on.set()
    await asyncio.gather(*tasks)
    assert running[4] == "c1"
    assert sorted(running) == sorted(upload.id for upload in uploads)


class Hanging:
    """A scanner that never answers."""

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("fails_open", [True, False])
@pytest.mark.parametrize("owners", [("ann", "ann"), ("bob", "bob", "joe", "joe")], ids=["own turns", "all turns"])
async def test_upload_whose_turn_does_not_come_is_not_taken_unscanned(owners: Sequence[str], fails_open: bool) -> None:
    subject = Scans(Hanging(), ScanOptions(timeout=0.05, fails_open=fails_open))
    async with contextlib.AsyncExitStack() as turns:
        for owner in owners:
            await turns.enter_async_context(subject._turns.of(replace(UPLOAD, owner=owner)))
        with pytest.raises(ScanUnavailable):
            await subject.scan(replace(UPLOAD, owner="ann"), pieces)
    with contextlib.nullcontext() if fails_open else pytest.raises(ScanUnavailable):
        await subject.scan(replace(UPLOAD, owner="ann"), pieces)


async def test_scanner_has_the_whole_time_limit_after_the_wait_for_a_turn() -> None:
    limits = list[float | None]()
    subject = Scans(Scripted([""]), ScanOptions(timeout=3600))
    scan_again_if_cut = subject._scan_again_if_cut

    async def noting(open_pieces: scans.OpenPieces) -> str:
        limits.extend(limit.when() for limit in subject._running)
        return await scan_again_if_cut(open_pieces)

    subject._scan_again_if_cut = noting  # type: ignore[method-assign]
    async with contextlib.AsyncExitStack() as turns:
        for _ in range(2):
            await turns.enter_async_context(subject._turns.of(replace(UPLOAD, owner="ann")))
        scanning = asyncio.create_task(subject.scan(replace(UPLOAD, owner="ann"), pieces))
        while not subject._running:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        waiting = [limit.when() for limit in subject._running]
        await asyncio.sleep(0.01)
    await scanning
    assert len(waiting) == len(limits) == 1
    assert waiting[0] is not None
    assert limits[0] is not None
    assert limits[0] > waiting[0]


class Lingering:
    """A scanner that ends some time after it was told to."""

    def __init__(self) -> None:
        self.begun, self.told_to_end, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def scan(self, pieces: AsyncIterator[Buffer]) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told_to_end.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self.may_end.wait()
            raise
        raise AssertionError


async def test_scans_are_interrupted_again_while_they_end() -> None:
    scanner = Lingering()
    subject = Scans(scanner, ScanOptions())
    scanning = asyncio.create_task(subject.scan(UPLOAD, pieces))
    await scanner.begun.wait()
    subject.interrupt()
    await scanner.told_to_end.wait()
    subject.interrupt()
    scanner.may_end.set()
    with pytest.raises(ServerShutdown):
        await scanning
