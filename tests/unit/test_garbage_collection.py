"""The garbage collector of a server process: rarely needed, since requests leave no cycles of references behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.asgi_calls import TIMEOUT, ask, create, offset_stream
from tusd_py import TusServer

ROUNDS = 50
SHOW = """
import gc
from tusd_py.uvicorn_server.garbage_collection import YOUNG_OBJECTS, tune_garbage_collection

tune_garbage_collection()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
assert gc.get_threshold()[0] == YOUNG_OBJECTS
cycle = []
cycle.append(cycle)
del cycle
assert gc.isenabled() and gc.collect() == 1
"""


async def uploaded(app: TusServer) -> None:
    """Create an upload of 1 KiB, append its bytes, and ask how far it got."""
    path = await create(app, 1024)
    assert (await ask(app, "PATCH", path, offset_stream(0), bytes(1024))).status == 204
    assert (await ask(app, "HEAD", path)).offset == 1024


async def created_with_upload(app: TusServer) -> None:
    """Create an upload with its bytes and terminate it."""
    fields = {"Upload-Length": "1024", "Content-Type": "application/offset+octet-stream"}
    created = await ask(app, "POST", "/", fields, bytes(1024))
    assert created.status == 201
    assert (await ask(app, "DELETE", "/" + created.headers["location"].rpartition("/")[2])).status == 204


async def refused(app: TusServer) -> None:
    """Send bytes at a wrong offset, with a wrong checksum, to an upload that is not there, and for more than fit."""
    path = await create(app, 1024)
    assert (await ask(app, "PATCH", path, offset_stream(3), bytes(8))).status == 409
    checksum = {"Upload-Checksum": "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk="}
    assert (await ask(app, "PATCH", path, offset_stream(0, **checksum), bytes(8))).status == 460
    assert (await ask(app, "PATCH", "/missing", offset_stream(0), bytes(8))).status == 404
    assert (await ask(app, "PATCH", path, offset_stream(0), bytes(2048))).status == 413


@pytest.mark.parametrize("requests", [uploaded, created_with_upload, refused])
async def test_requests_leave_no_cycles_of_references(
    tmp_path: Path, requests: Callable[[TusServer], Awaitable[None]]
) -> None:
    app = TusServer(upload_dir=tmp_path, durability="never")
    async with asyncio.timeout(TIMEOUT):
        await app.startup()
        try:
            await requests(app)  # fills caches
            gc.collect()
            gc.disable()
            try:
                for _ in range(ROUNDS):
                    await requests(app)
                await asyncio.sleep(0)
                found = gc.collect()
            finally:
                gc.enable()
        finally:
            await app.shutdown()
    assert found < ROUNDS, f"{found} objects in cycles"


def test_tuned_collector_skips_objects_of_the_start_and_finds_new_cycles() -> None:
    subprocess.run([sys.executable, "-c", f"import tusd_py.cli\n{SHOW}"], check=True, timeout=TIMEOUT)
