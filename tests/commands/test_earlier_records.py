"""Records and files of an earlier version (revision bca8838, before records had an owner and stores an index of ids).

`recorded/` holds the state that its server left after uploads of every kind: the records as SQL or as keys of Redis,
and the files of the upload directory. The server was killed while a client was sending to the upload `killed`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.contracts.parts import redis as connection
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.promised import content_of, head, offset_of, patch
from tusd_py.backends.redis.state import RedisState
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.state import StateStore
from tusd_py.core.listing import UploadFilter
from tusd_py.core.upload import Status, Upload
from tusd_py.core.upload_codec import FIELDS, decode_upload, encode_upload

RECORDED = Path(__file__).with_name("recorded")
DATA = b"0123456789" * 10
STORED = {  # the bytes of uploads that the earlier server had acknowledged
    "active": DATA[:45],
    "complete": DATA[:20],
    "deferred": DATA[:10],
    "empty": b"",
    "partial": DATA[:10],
    "unfinished_partial": DATA[10:35],
    "final": DATA[:20],
}


@dataclass(frozen=True)
class Earlier:
    """The records and files of the earlier server, restored in a place of this test."""

    kind: str
    folder: Path
    paths: dict[str, str]  # of the uploads by their names
    prefix: str  # of the keys in Redis

    @property
    def options(self) -> dict[str, Any]:
        if self.kind == "sqlite":
            return {}
        return {"redis_url": shared_redis_url(), "redis_prefix": self.prefix, "lock_ttl": "2s"}

    def state(self) -> StateStore:
        if self.kind == "sqlite":
            return SQLiteState(self.folder / "uploads" / ".tusd-py" / "uploads.sqlite3")
        return RedisState(connection(), self.prefix)


@pytest.fixture(params=["sqlite", "redis"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Earlier:
    recorded = json.loads((RECORDED / f"{request.param}.json").read_text(encoding="utf-8"))
    uploads = tmp_path / "uploads"
    for name, content in recorded["files"].items():
        (uploads / name).parent.mkdir(parents=True, exist_ok=True)
        (uploads / name).write_bytes(content.encode("latin-1"))
    found = Earlier(request.param, tmp_path, recorded["paths"], f"{secrets.token_hex(8)}:")
    if found.kind == "sqlite":
        restore_database(uploads / recorded["database"], recorded["sql"])
    else:
        restore_keys(recorded["redis"], found.prefix)
    return found


def restore_database(path: Path, statements: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    database = sqlite3.connect(path)
    database.executescript("\n".join(statements))
    database.close()


def restore_keys(keys: dict[str, Any], prefix: str) -> None:
    with Redis.from_url(shared_redis_url()) as client:
        for recorded, value in keys.items():
            key = prefix + recorded.removeprefix("tus:")
            if isinstance(value, dict):
                client.hset(key, mapping=value)
            elif isinstance(value, list):
                client.zadd(key, dict(value))
            else:
                client.set(key, value, px=500)  # the lease of the server that was killed


def test_uploads_of_an_earlier_version_are_read_and_go_on(earlier: Earlier) -> None:
    with serving(earlier.folder, **earlier.options) as server:
        urls = {name: server.origin + path for name, path in earlier.paths.items()}
        assert {name: offset_of(urls[name]) for name in STORED} == {name: len(data) for name, data in STORED.items()}
        assert "Upload-Length" not in head(urls["deferred"])
        assert head(urls["terminated"]).status == 404
        assert {name: content_of(urls[name]) for name in ("complete", "empty", "final")} == {
            name: STORED[name] for name in ("complete", "empty", "final")
        }
        assert patch(urls["active"], 45, DATA[45:]).status == 204
        offset = offset_of(urls["killed"])
        assert offset >= 10
        assert patch(urls["killed"], offset, DATA[offset:]).status == 204
        assert content_of(urls["active"]) == content_of(urls["killed"]) == DATA
        assert patch(urls["unfinished_partial"], 25, DATA[35:40]).status == 204
        wait_until(lambda: head(urls["waiting_final"]).get("Upload-Offset") == "40")
        assert content_of(urls["waiting_final"]) == DATA[:40]


async def test_records_of_an_earlier_version_are_listed_without_an_owner(earlier: Earlier) -> None:
    state = earlier.state()
    await state.open()
    try:
        page = await state.list(limit=100)
        assert page.after is None
        assert {path.rpartition("/")[2] for name, path in earlier.paths.items() if name != "terminated"} <= {
            upload.id for upload in page.uploads
        }
        assert {upload.owner for upload in page.uploads} == {""}
        assert {(upload.client, upload.updated_at) for upload in page.uploads} == {("", None)}
        assert all(upload.changed_at == upload.created_at for upload in page.uploads)
        assert [one async for one in state.broken()] == []
        active = await state.list(condition=UploadFilter(status=Status.ACTIVE, owner=""))
        assert {upload.id for upload in active.uploads} == {
            earlier.paths[name].rpartition("/")[2] for name in ("active", "deferred", "unfinished_partial", "killed")
        }
    finally:
        await state.close()


def test_a_record_keeps_the_names_of_fields_that_earlier_versions_wrote() -> None:
    upload = Upload(id="upload", created_at=1.0, storage_state="0:7", commit_requests_served=2)
    values = encode_upload(upload)
    assert (values["layout"], values["checkpoint"]) == ("0:7", "2")
    assert decode_upload(values) == upload
    assert {"layout", "checkpoint"} <= set(FIELDS)
