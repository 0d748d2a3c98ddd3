"""Claims of places whose uploads were never created: the next creation takes them over, and no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tusd_py import TusServer
from tusd_py.contracts.hooks import HookAnswer, HookCall, UploadChanges
from tusd_py.core.errors import PathTaken, StateUnavailable
from tusd_py.core.upload import Upload
from tusd_py.uploads.validation import NewUpload

NEW = NewUpload(length=4)


class Placing:
    """A hook that has the bytes of every upload at the same place."""

    async def pre_create(self, call: HookCall) -> HookAnswer:
        return HookAnswer(changes=UploadChanges(path="ann/a.txt"))


def server_of(path: Path) -> TusServer:
    return TusServer(upload_dir=path, hooks=Placing(), sweep_interval=0)


async def test_a_claim_that_a_crash_left_is_taken_over(tmp_path: Path) -> None:
    tus = server_of(tmp_path)
    async with tus.lifespan():
        storage = tus.service.storage
        await storage.claim_place(Upload("crashed", 0.0, 4, location="=ann/a.txt"))  # type: ignore[attr-defined]

        upload = await tus.service.create(NEW)

        assert tus.service.storage.path(upload) == tmp_path / "ann" / "a.txt"  # type: ignore[attr-defined]
        with pytest.raises(PathTaken):
            await tus.service.create(NEW)


async def test_a_claim_with_bytes_is_kept_without_a_record(tmp_path: Path) -> None:
    tus = server_of(tmp_path)
    async with tus.lifespan():
        storage = tus.service.storage
        await storage.claim_place(Upload("lost", 0.0, 4, location="=ann/a.txt"))  # type: ignore[attr-defined]
        (tmp_path / "ann" / "a.txt").write_bytes(b"abcd")

        with pytest.raises(PathTaken):
            await tus.service.create(NEW)

        assert (tmp_path / "ann" / "a.txt").read_bytes() == b"abcd"


async def test_a_creation_is_repeated_after_a_failure_of_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tus = server_of(tmp_path)
    async with tus.lifespan():
        with monkeypatch.context() as patched:

            async def fail(upload: Upload) -> None:
                raise StateUnavailable

            patched.setattr(tus.service.state, "create", fail)
            with pytest.raises(StateUnavailable):
                await tus.service.create(NEW)

        assert (await tus.service.create(NEW)).location == "=ann/a.txt"


async def test_a_cancelled_creation_has_the_place_if_its_record_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tus = server_of(tmp_path)
    async with tus.lifespan():
        create, begun, go_on = tus.service.state.create, asyncio.Event(), asyncio.Event()

        async def late(upload: Upload) -> None:
            begun.set()
            await go_on.wait()
            await create(upload)

        monkeypatch.setattr(tus.service.state, "create", late)
        first = asyncio.create_task(tus.service.create(NEW))
        await begun.wait()
        first.cancel()
        second = asyncio.create_task(tus.service.create(NEW))
        with pytest.raises(asyncio.CancelledError):
            await first
        go_on.set()

        with pytest.raises(PathTaken):
            await second
        assert len((await tus.uploads.list()).uploads) == 1
