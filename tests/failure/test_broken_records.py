"""Records with garbage in a field: they stop nobody else, are shown, and can be removed."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.contracts.parts import STATE_STORES, TIMEOUT, prefix_of, within
from tests.support.harness import ServerProcess
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.requests import create, head, patch, request
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.upload import Status, Upload

GARBAGE: dict[str, tuple[str, Any]] = {
    "a status that is none": ("status", "gone"),
    "a role that is none": ("concatenation", "whole"),
    "an offset that is no number": ("offset", "many"),
    "a negative offset": ("offset", -1),
    "a length that is no number": ("length", "long"),
    "a time that is none": ("created_at", "yesterday"),
    "a time that never comes": ("created_at", 9e99),
    "a token that is no number": ("token", "mine"),
}
ONLY_SQLITE: dict[str, tuple[str, Any]] = {
    "metadata that is no text": ("metadata", b"\xff\xfe"),
    "torn metadata": ("metadata", b"name \xc3("),
}
NOW = 1_700_000_000.0
EXPIRED = Upload(id="expired", created_at=NOW - 100, length=9, expires_at=NOW - 10)
LATER = Upload(id="later", created_at=NOW - 100, length=9, expires_at=NOW - 5)

Spoil = Callable[[str, str, Any], None]


def spoil_sqlite(file: Path, upload_id: str, field: str, value: Any) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        statement = f"UPDATE uploads SET {field} = ? WHERE id = ?"
        if isinstance(value, bytes):
            statement = f"UPDATE uploads SET {field} = CAST(? AS TEXT) WHERE id = ?"
        connection.execute(statement, (value, upload_id))


def spoil_redis(prefix: str, upload_id: str, field: str, value: Any) -> None:
    with contextlib.closing(redis.Redis.from_url(shared_redis_url())) as client:
        client.hset(f"{prefix}{{{upload_id}}}:record", field, value)


@pytest.fixture(params=STATE_STORES)
async def state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[StateStore, Spoil]]:
    state = STATE_STORES[request.param](tmp_path)
    await state.open()

    def spoil(upload_id: str, field: str, value: Any) -> None:
        if request.param == "sqlite":
            spoil_sqlite(tmp_path / "uploads.sqlite3", upload_id, field, value)
        elif isinstance(value, bytes):
            pytest.skip("Redis is asked for texts")
        else:
            spoil_redis(prefix_of(tmp_path), upload_id, field, value)

    yield state, spoil
    await state.close()


@pytest.mark.parametrize("kind", [*GARBAGE, *ONLY_SQLITE])
async def test_a_broken_record_is_passed_over_told_of_and_can_be_deleted(
    state: tuple[StateStore, Spoil], kind: str
) -> None:
    store, spoil = state
    for upload in (EXPIRED, replace(EXPIRED, id="broken"), LATER):
        await store.create(upload)
    spoil("broken", *(GARBAGE | ONLY_SQLITE)[kind])
    due = [upload.id for upload in await within(store.due(NOW, 100))]
    assert due == [EXPIRED.id, LATER.id]
    assert sorted([upload.id async for upload in store.all()]) == [EXPIRED.id, LATER.id]
    (broken,) = [error async for error in store.broken()]
    assert broken.upload_id == "broken"
    assert broken.reason
    with pytest.raises(BrokenRecord) as raised:
        await store.get("broken")
    assert isinstance(raised.value.remains, Upload)
    assert raised.value.remains.id == "broken"
    await store.delete("broken", 1)
    assert await store.get("broken") is None
    assert [error async for error in store.broken()] == []


async def test_any_number_of_broken_records_leaves_the_others_due(state: tuple[StateStore, Spoil]) -> None:
    store, spoil = state
    for number in range(30):
        await store.create(replace(EXPIRED, id=f"broken{number}", expires_at=NOW - 1000))
        spoil(f"broken{number}", "status", "gone")
    await store.create(LATER)
    assert [upload.id for upload in await store.due(NOW, 10)] == [LATER.id]


@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize("kind", ["a status that is none", "a token that is no number", "an offset that is no number"])
def test_a_server_goes_on_beside_a_broken_record(tmp_path: Path, store: str, kind: str) -> None:
    uploads, prefix = tmp_path / "uploads", f"{secrets.token_hex(8)}:"
    options: dict[str, Any] = {"expires_after": "3s", "sweep_interval": "1s"}
    if store == "redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": prefix}
    with ServerProcess(uploads, **options) as server:
        broken, other = (create(server.port, 100) for _ in range(2))
        for path in (broken, other):
            assert patch(server.port, path, 0, b"half").status == 204
        upload_id = broken.rpartition("/")[2]
        if store == "redis":
            spoil_redis(prefix, upload_id, *GARBAGE[kind])
        else:
            spoil_sqlite(uploads / ".tusd-py" / "uploads.sqlite3", upload_id, *GARBAGE[kind])
        wait_until(lambda: not (uploads / other.rpartition("/")[2]).exists(), "the other one expires", TIMEOUT)
        assert head(server.port, broken).status == 423
        assert patch(server.port, broken, 4, b"more").status == 500
        wait_until(lambda: any(upload_id in line and "cannot be read" in line for line in server.log), "it is told")
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "tusd_py", "sweep", "--upload-dir", str(uploads), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        assert upload_id in done.stderr
        assert "Traceback" not in done.stderr
        assert (uploads / upload_id).exists()
        assert request(server.port, "DELETE", broken).status == 204
        assert head(server.port, broken).status == 404
        assert not (uploads / upload_id).exists()


async def test_broken_record_still_locates_its_bytes(state: tuple[StateStore, Spoil]) -> None:
    store, spoil = state
    upload = replace(LATER, id="broken", storage_state="4:7", offset=9, status=Status.FINISHING)
    await store.create(upload)
    spoil("broken", "status", "gone")
    with pytest.raises(BrokenRecord) as raised:
        await store.get("broken")
    remains = raised.value.remains
    assert isinstance(remains, Upload)
    assert (remains.created_at, remains.storage_state, remains.offset) == (upload.created_at, "4:7", 9)
