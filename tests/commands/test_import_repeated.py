"""`tusd-py import-tusd` again, after a crash, beside other files, and as a dry run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stalls import OSFaults
from tests.support.harness import serving
from tests.support.tusd_directory import (
    CONTENT,
    COUNT,
    DEFERRED,
    EMPTY,
    HALF,
    MIDDLE,
    WHOLE,
    assert_imported,
    assert_served,
    files_of,
    imported,
    settings_of,
    write_upload,
)
from tests.support.wire.promised import patch
from tusd_py.backends.disk.syncs import Syncs
from tusd_py.migration.report import Summary
from tusd_py.migration.tusd.files import import_tusd


def test_repeated_import_adds_new_uploads_only(tmp_path: Path, tusd: Path) -> None:
    assert_imported(tusd, tmp_path / "uploads")
    with serving(tmp_path) as server:
        assert patch(f"{server.url}/{HALF}", MIDDLE, CONTENT[MIDDLE:]).offset == len(CONTENT)
    write_upload(tusd, "new", 1, b"n")
    before = files_of(tmp_path / "uploads")
    assert_imported(tusd, tmp_path / "uploads", new=1, old=COUNT)
    after = {path: entry for path, entry in files_of(tmp_path / "uploads").items() if path in before}
    assert {path: entry for path, entry in after.items() if ".tusd-py" not in path} == {
        path: entry for path, entry in before.items() if ".tusd-py" not in path
    }


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_import_after_crash_before_a_record_was_written_completes(
    tmp_path: Path, tusd: Path, monkeypatch: pytest.MonkeyPatch, copy: bool, in_place: bool
) -> None:
    class Crash(BaseException):
        pass

    uploads = tusd.rename(tmp_path / "uploads") if in_place else tmp_path / "uploads"
    directory = uploads if in_place else tusd
    settings = settings_of(upload_dir=uploads)
    original = Syncs.sync_folders
    for number in range(COUNT):
        calls = 0

        def sync_folders(self: Any, path: Path, number: int = number) -> None:
            nonlocal calls
            original(self, path)
            calls += 1
            if calls > 1:
                raise Crash

        with monkeypatch.context() as patched:
            patched.setattr(Syncs, "sync_folders", sync_folders)
            try:
                summary = asyncio.run(import_tusd(settings, directory, copy=copy))
            except Crash:
                continue
        assert summary == Summary(copied=1, skipped=COUNT - 1)
        assert number == COUNT - 1
    assert asyncio.run(import_tusd(settings, directory, copy=copy)) == Summary(skipped=COUNT)
    assert_served(tmp_path)


@pytest.mark.parametrize("in_place", [False, True])
def test_import_after_a_failed_sync_stores_the_bytes_again(
    tmp_path: Path, tusd: Path, os_faults: OSFaults, in_place: bool
) -> None:
    """The pages of the failed sync can be read and are clean: another sync would write nothing."""
    uploads = tusd.rename(tmp_path / "uploads") if in_place else tmp_path / "uploads"
    directory = uploads if in_place else tusd
    settings = settings_of(upload_dir=uploads)
    failing = os_faults.fail("fsync", f"*/uploads/{WHOLE}", times=1)
    assert asyncio.run(import_tusd(settings, directory)) == Summary(copied=COUNT - 1, refused=1)
    assert failing.hits
    again = os_faults.fail("pwrite", f"*/uploads/{WHOLE}", times=1)
    assert asyncio.run(import_tusd(settings, directory)) == Summary(skipped=COUNT - 1, refused=1)
    assert again.hits
    assert asyncio.run(import_tusd(settings, directory)) == Summary(copied=1, skipped=COUNT - 1)
    assert not list(uploads.glob(".*.sync"))
    assert_served(tmp_path)


def test_import_replaces_an_interrupted_copy(tmp_path: Path, tusd: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / f".{HALF}.import").write_bytes(b"half of it")
    assert_imported(tusd, tmp_path / "uploads")
    assert_served(tmp_path)
    assert not list((tmp_path / "uploads").glob(".*.import"))


def test_import_of_an_unfinished_upload_linked_by_hand_leaves_its_source_unchanged(tmp_path: Path, tusd: Path) -> None:
    (tmp_path / "uploads").mkdir()
    os.link(tusd / HALF, tmp_path / "uploads" / HALF)
    before = files_of(tusd)
    assert_imported(tusd, tmp_path / "uploads")
    assert_served(tmp_path)
    assert files_of(tusd) == before


@pytest.mark.parametrize("name", [HALF, WHOLE, EMPTY])
def test_import_leaves_another_file_of_the_same_name_alone(tmp_path: Path, tusd: Path, name: str) -> None:
    other = tmp_path / "uploads" / name
    other.parent.mkdir()
    other.write_bytes(b"another" + CONTENT[7 : (tusd / name).stat().st_size])
    before = files_of(other.parent)
    result = imported(tusd, other.parent)
    assert result.returncode == 1
    assert result.stdout == f"{COUNT - 1} imported, 0 there already\n"
    assert str(other) in result.stderr
    assert files_of(other.parent)[str(other)] == before[str(other)]


@pytest.mark.parametrize("there", [False, True])
def test_import_dry_run_changes_nothing(tmp_path: Path, tusd: Path, there: bool) -> None:
    uploads = tmp_path / "uploads"
    if there:
        assert_imported(tusd, uploads)
    write_upload(tusd, "new", 5, b"n")
    write_upload(tusd, "broken", 5, b"too long")
    before = files_of(tmp_path)
    result = imported(tusd, uploads, "--dry-run")
    assert result.returncode == 1
    assert "broken.info has 8 bytes of data" in result.stderr
    lines = result.stdout.splitlines()
    assert "new 1 of 5 bytes" in lines
    assert lines[-1] == (f"1 to import, {COUNT} there already" if there else f"{COUNT + 1} to import, 0 there already")
    assert (f"{DEFERRED} 5 of ? bytes" in lines) is not there
    if there:
        assert {path for path in files_of(tmp_path) if ".tusd-py" not in path} == {
            path for path in before if ".tusd-py" not in path
        }
    else:
        assert files_of(tmp_path) == before
        assert not uploads.exists()


def test_import_dry_run_of_the_upload_directory_changes_nothing(tusd: Path) -> None:
    before = files_of(tusd)
    result = imported(tusd, tusd, "--dry-run")
    assert result.returncode == 0
    assert files_of(tusd) == before
    assert not (tusd / ".tusd-py").exists()
