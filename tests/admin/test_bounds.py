"""Requests to the administration API hold no more of the server than they need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.asgi_calls import create, http_scope
from tusd_py import TusServer
from tusd_py.admin import server_routes
from tusd_py.admin.requests import AdminRequest
from tusd_py.admin.server_routes import ServerRoutes
from tusd_py.admin.uploads import UploadRoutes
from tusd_py.contracts.storage import Orphan
from tusd_py.core.request_context import RequestContext
from tusd_py.uploads.sweeping import OrphanCleaner

SCOPE = http_scope("GET", "/admin/api")
REQUEST = AdminRequest(RequestContext("GET", "/admin/api", {"host": "testserver"}, scope=SCOPE))


async def test_orphans_that_are_not_told_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def clean(self: OrphanCleaner, *, dry_run: bool) -> Sequence[Orphan]:
        return [Orphan("file", f"{number}", f"{number}", 1.0) for number in range(10)]

    monkeypatch.setattr(OrphanCleaner, "clean", clean)
    monkeypatch.setattr(server_routes, "MAX_LISTED", 3)
    server = TusServer(upload_dir=tmp_path, sweep_interval=0)
    async with server.lifespan():
        routes = ServerRoutes(server, dict)
        answer = await routes.orphans(REQUEST)
        assert routes._search is not None
        kept = routes._search.result()
    assert [orphan["name"] for orphan in answer.document["orphans"]] == ["0", "1", "2"]
    assert len(kept) == 3


async def test_locks_of_a_page_are_looked_at_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    async def is_held(upload_id: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return upload_id == held

    server = TusServer(upload_dir=tmp_path, sweep_interval=0)
    async with server.lifespan():
        ids = [(await create(server, 1))[1:] for _ in range(40)]
        held = ids[20]
        monkeypatch.setattr(server.service.locker, "is_held", is_held)
        answer = await UploadRoutes(server).list(REQUEST)
    locked = {upload["id"]: upload["locked"] for upload in answer.document["uploads"]}
    assert locked == {upload_id: upload_id == held for upload_id in ids}
    assert 1 < most <= 16
