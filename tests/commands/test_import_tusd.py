"""`tusd-py import-tusd` of directories as tusd writes them, and mistakes of the operator."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import assert_refused_in_one_line
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.tusd_directory import (
    CONTENT,
    COUNT,
    DEFERRED,
    EMPTY,
    FINAL,
    HALF,
    MIDDLE,
    OTHER_PARTIAL,
    PARTIAL,
    WHOLE,
    assert_imported,
    assert_served,
    files_of,
    imported,
    settings_of,
    write_upload,
)
from tests.support.wire.promised import content_of, create, head, offset_of, patch
from tusd_py.core.errors import StorageFull
from tusd_py.core.upload import Status
from tusd_py.migration.report import Summary
from tusd_py.migration.tusd import files as tusd_files
from tusd_py.migration.tusd.files import import_tusd

HOUR = 3600.0


@pytest.mark.parametrize("options", [(), ("--copy",), ("--date-folders",)], ids=["link", "copy", "by date"])
def test_import_of_every_kind_of_upload_is_served(tmp_path: Path, tusd: Path, options: tuple[str, ...]) -> None:
    before = files_of(tusd)
    assert_imported(tusd, tmp_path / "uploads", *options)
    assert_served(tmp_path, **({"date_folders": True} if "--date-folders" in options else {}))
    assert files_of(tusd) == before
    assert not list((tmp_path / "uploads").rglob(".*.import"))


def test_import_of_the_upload_directory_itself_adds_records_only(tmp_path: Path, tusd: Path) -> None:
    uploads = tmp_path / "uploads"
    tusd.rename(uploads)
    before = files_of(uploads)
    files = {path.name: path.stat().st_ino for path in uploads.iterdir()}
    assert_imported(uploads, uploads)
    assert {name: entry for name, entry in files_of(uploads).items() if ".tusd-py" not in name} == before
    assert {path.name: path.stat().st_ino for path in uploads.iterdir() if path.name != ".tusd-py"} == files
    assert_served(tmp_path)


def test_import_of_the_upload_directory_through_a_link_copies_nothing(tmp_path: Path, tusd: Path) -> None:
    (tmp_path / "uploads").symlink_to(tusd)
    assert_imported(tmp_path / "uploads", tmp_path / "uploads")
    assert (tusd / HALF).stat().st_nlink == 1
    assert_served(tmp_path)


@pytest.mark.parametrize("copy", [False, True])
def test_import_links_finished_files_unless_copies_are_wanted(tmp_path: Path, tusd: Path, copy: bool) -> None:
    assert_imported(tusd, tmp_path / "uploads", *(["--copy"] if copy else []))
    shared = {path.name for path in (tmp_path / "uploads").iterdir() if path.is_file() and path.stat().st_nlink > 1}
    assert shared == (set() if copy else {WHOLE, EMPTY, PARTIAL, FINAL})


def test_import_copies_files_where_links_fail(tmp_path: Path, tusd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    settings = settings_of(upload_dir=tmp_path / "uploads")
    assert asyncio.run(import_tusd(settings, tusd)) == Summary(copied=COUNT)
    assert_served(tmp_path)


def test_import_writes_records_with_times_and_expiry(tmp_path: Path, tusd: Path) -> None:
    written, modified = time.time() - 2 * HOUR, time.time() - HOUR
    os.utime(tusd / f"{WHOLE}.info", (written, written))
    os.utime(tusd / WHOLE, (modified, modified))
    assert_imported(tusd, tmp_path / "uploads", "--expires-after", "1h")
    with closing(sqlite3.connect(tmp_path / "uploads" / ".tusd-py" / "uploads.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        rows = {row["id"]: row for row in connection.execute("SELECT * FROM uploads")}
    assert len(rows) == COUNT
    assert {row["token"] for row in rows.values()} == {0}
    assert rows[WHOLE]["status"] == rows[EMPTY]["status"] == rows[FINAL]["status"] == Status.COMPLETE
    assert rows[WHOLE]["created_at"] == pytest.approx(written)
    assert rows[WHOLE]["completed_at"] == pytest.approx(modified)
    assert rows[WHOLE]["expires_at"] is None
    assert rows[FINAL]["expires_at"] is None
    for name in (HALF, DEFERRED, PARTIAL, OTHER_PARTIAL):
        assert rows[name]["expires_at"] == pytest.approx(time.time() + HOUR, abs=60), name
    assert rows[FINAL]["partial_ids"] == f"{PARTIAL} removed"
    assert (rows[DEFERRED]["length"], rows[DEFERRED]["deferred"]) == (None, 1)


def test_import_without_expiry_sets_no_expiry(tmp_path: Path, tusd: Path) -> None:
    assert_imported(tusd, tmp_path / "uploads", "--expires-after", "0")
    with serving(tmp_path, expires_after=0) as server:
        assert "Upload-Expires" not in head(f"{server.url}/{HALF}")


def test_import_beside_a_running_server_keeps_its_uploads(tmp_path: Path, tusd: Path) -> None:
    with serving(tmp_path) as server:
        url = create(server.url, 3, body=b"abc")
        assert_imported(tusd, tmp_path / "uploads")
        assert content_of(url) == b"abc"
        assert offset_of(f"{server.url}/{HALF}") == MIDDLE


@pytest.mark.parametrize(("size", "status"), [(10, Status.ACTIVE), (0, Status.COMPLETE)])
def test_import_without_data_file_has_offset_zero(tmp_path: Path, size: int, status: Status) -> None:
    write_upload(tmp_path / "tusd", HALF, size, None)
    assert_imported(tmp_path / "tusd", tmp_path / "uploads", new=1)
    with serving(tmp_path) as server:
        assert offset_of(f"{server.url}/{HALF}") == 0
        if status is Status.ACTIVE:
            assert patch(f"{server.url}/{HALF}", 0, b"x" * size).offset == size
        assert content_of(f"{server.url}/{HALF}") == b"x" * size


@pytest.mark.parametrize("where", ["absolute", "relative", "beside", "old place"])
def test_import_finds_data_file_at_its_storage_path(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "tusd"
    paths = {
        "absolute": directory / "by" / "name.bin",
        "relative": "by/name.bin",  # to the directory
        "beside": "tusd/by/name.bin",  # as of `-upload-dir ./tusd`
        "old place": "/old/tusd/whole",
    }
    name = "whole" if where == "old place" else WHOLE
    write_upload(directory, name, 3, b"abc" if where == "old place" else None, Storage={"Path": str(paths[where])})
    (directory / "by").mkdir()
    (directory / "by" / "name.bin").write_bytes(b"abc")
    assert_imported(directory, tmp_path / "uploads", new=1)
    with serving(tmp_path) as server:
        assert content_of(f"{server.url}/{name}") == b"abc"


def test_import_with_redis_url_writes_records_to_redis_only(tmp_path: Path, tusd: Path) -> None:
    redis = {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in redis.items()]
    result = imported(tusd, tmp_path / "uploads", *options, "--dry-run")
    assert result.stdout.splitlines()[-1] == f"{COUNT} to import, 0 there already"
    assert not (tmp_path / "uploads").exists()
    assert_imported(tusd, tmp_path / "uploads", *options)
    assert_imported(tusd, tmp_path / "uploads", *options, new=0, old=COUNT)
    assert not (tmp_path / "uploads" / ".tusd-py" / "uploads.sqlite3").exists()
    assert_served(tmp_path, **redis)


def test_imported_complete_uploads_are_served_after_loss_of_redis(tmp_path: Path, tusd: Path) -> None:
    """The promises for uploads of the server hold for these."""
    assert_imported(
        tusd, tmp_path / "uploads", "--redis-url", shared_redis_url(), "--redis-prefix", f"{tmp_path.name}:"
    )
    with serving(tmp_path, redis_url=shared_redis_url(), redis_prefix=f"{tmp_path.name}-empty:") as server:
        assert content_of(f"{server.url}/{WHOLE}") == CONTENT
        assert content_of(f"{server.url}/{FINAL}") == CONTENT[:2000]
        assert head(f"{server.url}/{HALF}").status == 404


def test_import_of_an_empty_directory_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "tusd").mkdir()
    assert_imported(tmp_path / "tusd", tmp_path / "uploads", new=0)


def test_import_of_a_missing_directory_is_refused(tmp_path: Path) -> None:
    result = imported(tmp_path / "nowhere", tmp_path / "uploads")
    assert_refused_in_one_line(result, 1, "nowhere", "No such file")
    assert not (tmp_path / "uploads").exists()


def test_import_of_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert_refused_in_one_line(imported(tmp_path / "loop", tmp_path / "uploads"), 1, "loop", "symbolic links")


def test_import_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused_in_one_line(imported(tmp_path / "file", tmp_path / "uploads"), 1, "file", "Not a directory")


def test_import_into_an_unusable_upload_directory_is_refused(tmp_path: Path, tusd: Path) -> None:
    (tmp_path / "uploads").touch()
    assert_refused_in_one_line(imported(tusd, tmp_path / "uploads"), 1, str(tmp_path / "uploads"), "Not a directory")


def test_import_on_a_full_disk_raises_and_leaves_no_temporary_file(
    tmp_path: Path, tusd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    settings = settings_of(upload_dir=tmp_path / "uploads")
    with monkeypatch.context() as patched:
        patched.setattr(os, "copy_file_range", full, raising=False)
        patched.setattr(os, "write", full)
        with pytest.raises(StorageFull, match="uploads"):
            asyncio.run(import_tusd(settings, tusd, copy=True))
    assert not list((tmp_path / "uploads").glob(".*.import"))
    asyncio.run(import_tusd(settings, tusd, copy=True))
    assert_served(tmp_path)


def test_import_refuses_data_that_shrinks_during_the_copy(
    tmp_path: Path, tusd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_data = tusd_files.find_data

    def shrinking(*arguments: Any) -> Any:
        data = find_data(*arguments)
        if data.path is not None and data.size:
            os.truncate(data.path, data.size - 1)
        return data

    monkeypatch.setattr(tusd_files, "find_data", shrinking)
    errors: list[str] = []
    summary = asyncio.run(
        import_tusd(settings_of(upload_dir=tmp_path / "uploads"), tusd, copy=True, report_error=errors.append)
    )
    assert summary == Summary(copied=1, refused=COUNT - 1)
    assert all("still running" in line for line in errors)
    assert [path.name for path in (tmp_path / "uploads").iterdir() if path.is_file()] == [EMPTY]
