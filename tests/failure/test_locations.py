"""Where the bytes of an upload are belongs to its record: settings that change, or differ, lose nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.failure.test_identity import TUS, begun, finishes, offset, patch, redis_options, run, s3_options
from tests.support.harness import ServerProcess
from tests.support.redis_server import RedisServer, shared_redis_url
from tests.support.s3_server import CREDENTIALS
from tests.support.wire.requests import request
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.core.errors import StoredElsewhere
from tusd_py.core.upload import Upload

__all__ = ["redis_options"]  # a fixture

FOLDERS = [False, True]


def folders(wanted: bool) -> dict[str, Any]:
    return {"date_folders": True} if wanted else {}


@pytest.mark.parametrize("records", ["sqlite", "redis"])
@pytest.mark.parametrize("before", FOLDERS, ids=["from plain to dated", "from dated to plain"])
def test_date_folders_are_switched_without_losing_an_upload(
    tmp_path: Path, redis_options: dict[str, Any], records: str, before: bool
) -> None:
    options = redis_options if records == "redis" else {}
    with ServerProcess(tmp_path / "uploads", **options, **folders(before)) as server:
        unfinished, complete, deleted = begun(server), begun(server), begun(server)
        assert finishes(server, complete)
    with ServerProcess(tmp_path / "uploads", **options, **folders(not before)) as server:
        assert offset(server, unfinished) == 100
        assert finishes(server, unfinished)
        assert request(server.port, "GET", complete).status == 200
        assert request(server.port, "DELETE", deleted, TUS).status == 204
        assert finishes(server, begun(server))
    ids = {file.name for file in (tmp_path / "uploads").rglob("*") if ".tusd-py" not in file.parts and file.is_file()}
    assert deleted.rpartition("/")[2] not in ids
    assert len(ids) == 3


def test_hosts_whose_settings_differ_continue_each_others_uploads(
    tmp_path: Path, redis_options: dict[str, Any]
) -> None:
    uploads = tmp_path / "uploads"
    with (
        ServerProcess(uploads, **redis_options) as plain,
        ServerProcess(uploads, date_folders=True, **redis_options) as dated,
    ):
        for one, other in ((plain, dated), (dated, plain)):
            path = begun(one)
            assert offset(other, path) == 100
            assert patch(other, path, 100, 200) == 204
            assert offset(one, path) == 200
            assert finishes(one, path, 200)
            assert request(other.port, "GET", path).status == 200


@pytest.mark.parametrize("records", ["sqlite", "redis"])
@pytest.mark.parametrize("before", FOLDERS, ids=["from plain to dated", "from dated to plain"])
def test_a_record_without_location_is_looked_for_in_both_places(
    tmp_path: Path, redis_options: dict[str, Any], records: str, before: bool
) -> None:
    options = redis_options if records == "redis" else {}
    with ServerProcess(tmp_path / "uploads", **options, **folders(before)) as server:
        unfinished, complete, deleted = begun(server), begun(server), begun(server)
        assert finishes(server, complete)
    forget_locations(tmp_path / "uploads", redis_options if records == "redis" else None)
    with ServerProcess(tmp_path / "uploads", **options, **folders(not before)) as server:
        assert offset(server, unfinished) == 100
        assert finishes(server, unfinished)
        assert request(server.port, "GET", complete).status == 200
        assert request(server.port, "DELETE", deleted, TUS).status == 204
    ids = {file.name for file in (tmp_path / "uploads").rglob("*") if ".tusd-py" not in file.parts and file.is_file()}
    assert ids == {path.rpartition("/")[2] for path in (unfinished, complete)}


def forget_locations(uploads: Path, redis_options: dict[str, Any] | None) -> None:
    """Remove the locations from the records, as an earlier version left them."""
    if redis_options is None:
        connection = sqlite3.connect(uploads / ".tusd-py" / "uploads.sqlite3")
        assert connection.execute("UPDATE uploads SET location = ''").rowcount
        connection.commit()
        connection.close()
        return
    redis = RedisServer(port=int(shared_redis_url().rpartition(":")[2].partition("/")[0]))
    for key in redis.command("KEYS", f"{redis_options['redis_prefix']}*:record"):
        assert redis.command("HDEL", key, "location") == 1


@pytest.mark.parametrize("changed", ["key", "prefix"])
def test_another_key_or_prefix_in_s3_is_for_new_uploads_only(tmp_path: Path, changed: str) -> None:
    options = s3_options(tmp_path)
    with ServerProcess(tmp_path / "uploads", env=CREDENTIALS, **options) as server:
        unfinished, complete = begun(server), begun(server)
        assert finishes(server, complete)
    if changed == "key":
        options["s3_key_template"] = "{prefix}other/{id}"
    else:
        options["s3_prefix"] += "other/"
        code, text = run(tmp_path / "uploads", "adopt-storage", options, CREDENTIALS)
        assert code == 0, text
    with ServerProcess(tmp_path / "uploads", env=CREDENTIALS, **options) as server:
        assert offset(server, unfinished) == 100
        assert finishes(server, unfinished)
        assert request(server.port, "GET", complete).status == 200
        assert finishes(server, begun(server))


@pytest.mark.parametrize(
    "location",
    ["..", "../..", "/etc", "2026/01/../..", "2026/01/31/..", "./..", "2026/01", ".tusd-py", "a", "2026/01/31\n"],
)
def test_a_hostile_location_leads_nowhere(tmp_path: Path, location: str) -> None:
    storage = DiskStorage(tmp_path / "uploads")
    upload = Upload(id="upload", created_at=0.0, location=location)
    with pytest.raises(StoredElsewhere):
        storage.path(upload)
    for good, folder in ((".", ""), ("2026/01/31", "2026/01/31")):
        assert storage.path(replace(upload, location=good)) == tmp_path / "uploads" / folder / "upload"
