"""The fields of events that tell why something ended: a refused upload, an interrupted append."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi_calls import Call, ask, create, offset_stream
from tusd_py import AppendEnded, TusServer, UploadTerminated
from tusd_py.contracts.hooks import HookAnswer, HookCall


def observed(server: TusServer, kind: type[Any]) -> list[Any]:
    events: list[Any] = []
    server.events.observe(kind, events.append)
    return events


async def test_code_of_an_upload_that_its_client_removes_is_empty(tmp_path: Path) -> None:
    server = TusServer(upload_dir=tmp_path)
    ended = observed(server, UploadTerminated)
    async with server.lifespan():
        await ask(server, "DELETE", await create(server, 5))
    assert [event.code for event in ended] == [""]


async def test_code_of_an_upload_with_another_digest_is_that_of_the_refusal(tmp_path: Path) -> None:
    server = TusServer(upload_dir=tmp_path)
    ended = observed(server, UploadTerminated)
    async with server.lifespan():
        path = await create(server, 5, **{"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"})
        assert (await ask(server, "PATCH", path, offset_stream(0), b"hello")).status == 460
    assert [event.code for event in ended] == ["ERR_DIGEST_MISMATCH"]


async def test_code_of_an_upload_that_the_application_rejects_is_that_of_the_refusal(tmp_path: Path) -> None:
    class Rejecting:
        async def pre_finish(self, call: HookCall) -> HookAnswer:
            return HookAnswer(reject=True)

    server = TusServer(upload_dir=tmp_path, hooks=Rejecting())
    ended = observed(server, UploadTerminated)
    async with server.lifespan():
        path = await create(server, 5)
        assert (await ask(server, "PATCH", path, offset_stream(0), b"hello")).status == 400
    assert [event.code for event in ended] == ["ERR_UPLOAD_REJECTED"]


@pytest.mark.parametrize("size", [5, 200_000])
async def test_append_that_comes_to_its_end_is_not_interrupted(tmp_path: Path, size: int) -> None:
    server = TusServer(upload_dir=tmp_path)
    ended = observed(server, AppendEnded)
    async with server.lifespan():
        path = await create(server, 2 * size)
        assert (await ask(server, "PATCH", path, offset_stream(0), b"x" * size)).status == 204
    assert [event.interrupted for event in ended] == [False]


async def test_append_whose_client_leaves_is_interrupted(tmp_path: Path) -> None:
    server = TusServer(upload_dir=tmp_path)
    ended = observed(server, AppendEnded)
    async with server.lifespan():
        path = await create(server, 10)
        call = Call(server, "PATCH", path, {**offset_stream(0), "content-length": "10"})
        call.give(b"four")
        call.leave()
        await call.answer()
    assert [(event.interrupted, event.upload.offset) for event in ended] == [(True, 4)]
