"""Backup and restore, by the commands of docs/backup.md; records that are older than the files."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.harness import ROOT, ServerProcess
from tests.support.timing import wait_until
from tests.support.wire.messages import MEBI, payload
from tests.support.wire.requests import assert_content, complete, create, head, offset_of, patch, request

DATA = payload(MEBI + 99)
HALF = MEBI // 2


def commands(name: str, uploads: Path, backup: Path) -> list[str]:
    """Return the lines of the block of this name, with the directories of this test."""
    text = (ROOT / "docs" / "backup.md").read_text()
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [
        line.replace("/srv/uploads", str(uploads)).replace("/backup", str(backup)) for line in block[1].splitlines()
    ]


def run(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def expire(uploads: Path) -> None:
    with closing(sqlite3.connect(uploads / ".tusd-py" / "uploads.sqlite3")) as connection, connection:
        connection.execute("UPDATE uploads SET expires_at = ? WHERE expires_at IS NOT NULL", (time.time() - 10,))


def exists(server: ServerProcess, path: str) -> bool:
    return bool(list(server.upload_dir.glob("**/" + path.rpartition("/")[2])))


@pytest.mark.parametrize("date_folders", [False, True])
@pytest.mark.parametrize("expired", [False, True])
def test_the_documented_commands_restore_what_they_promise(tmp_path: Path, date_folders: bool, expired: bool) -> None:
    require("sqlite3")
    uploads, backup = tmp_path / "uploads", tmp_path / "copies"
    backup.mkdir()
    options: dict[str, Any] = {"date_folders": True} if date_folders else {}
    with ServerProcess(uploads, **options) as server:
        finished, unfinished, later, removed = (create(server.port, len(DATA)) for _ in range(4))
        assert patch(server.port, finished, 0, DATA).status == 204
        for path in (unfinished, later, removed):
            assert patch(server.port, path, 0, DATA[:HALF]).status == 204
        of_records, of_files = commands("backup", uploads, backup)
        run(of_records)
        assert patch(server.port, later, HALF, DATA[HALF:]).status == 204
        made_later = create(server.port, len(DATA), body=DATA)
        assert patch(server.port, unfinished, HALF, DATA[HALF : HALF + 1000]).status == 204
        assert request(server.port, "DELETE", removed).status == 204
        run(of_files)
        complete(server.port, unfinished, DATA)
    shutil.rmtree(uploads)
    uploads.mkdir()
    for command in commands("restore", uploads, backup):
        run(command)
    if expired:
        expire(uploads)
    with ServerProcess(uploads, sweep_interval="1s", **options) as server:
        if expired:
            wait_until(lambda: head(server.port, unfinished).status == 404, "the unfinished one expires")
            wait_until(lambda: not exists(server, unfinished), "the unfinished one is removed")
        else:
            assert offset_of(server.port, unfinished) == HALF
            complete(server.port, unfinished, DATA)
            assert offset_of(server.port, removed) == 0
        for path in (finished, later, made_later):
            assert_content(server.port, path, DATA)
            assert offset_of(server.port, path) == len(DATA)


@pytest.mark.parametrize("deferred", [False, True])
def test_records_and_notes_that_are_older_than_the_files_cost_no_finished_file(tmp_path: Path, deferred: bool) -> None:
    uploads = tmp_path / "uploads"
    with ServerProcess(uploads) as server:
        path = create(server.port, None if deferred else len(DATA))
        unfinished = create(server.port, len(DATA))
        for each in (path, unfinished):
            assert patch(server.port, each, 0, DATA[:HALF]).status == 204
    shutil.copytree(uploads / ".tusd-py", tmp_path / "older")
    with ServerProcess(uploads) as server:
        complete(server.port, path, DATA, {"Upload-Length": str(len(DATA))} if deferred else {})
        assert patch(server.port, unfinished, HALF, DATA[HALF:-1]).status == 204
    shutil.rmtree(uploads / ".tusd-py")
    shutil.move(tmp_path / "older", uploads / ".tusd-py")
    expire(uploads)
    file = uploads / path.rpartition("/")[2]
    with ServerProcess(uploads, sweep_interval="1s") as server:
        wait_until(lambda: not exists(server, unfinished), "the unfinished one is removed")
        wait_until(lambda: any("is kept" in line for line in server.log), "it is told of")
        assert file.read_bytes() == DATA
        assert len([line for line in server.log if "is kept" in line]) == 1
        file.unlink()
        wait_until(lambda: head(server.port, path).status == 404, "the record is removed too")


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("asks", ["HEAD", "GET", "PATCH"])
def test_a_client_of_an_upload_that_was_finished_after_the_backup_of_its_record_is_told_so(
    tmp_path: Path, expired: bool, asks: str
) -> None:
    uploads = tmp_path / "uploads"
    records = uploads / ".tusd-py" / "uploads.sqlite3"
    with ServerProcess(uploads) as server:
        path = create(server.port, len(DATA))
        assert patch(server.port, path, 0, DATA[:HALF]).status == 204
    shutil.copyfile(records, tmp_path / "older")
    with ServerProcess(uploads) as server:
        complete(server.port, path, DATA)
    shutil.copyfile(tmp_path / "older", records)
    if expired:
        expire(uploads)
    with ServerProcess(uploads, sweep_interval=0) as server:
        if asks == "PATCH":
            answer = patch(server.port, path, HALF, DATA[HALF:])
            assert (answer.status, answer.offset) in {(409, len(DATA)), (204, len(DATA))}
        elif asks == "HEAD":
            assert offset_of(server.port, path) == len(DATA)
        assert_content(server.port, path, DATA)


def test_a_removed_upload_has_no_note(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        for data in (DATA, b""):
            path = create(server.port, len(data), body=data)
            assert request(server.port, "DELETE", path).status == 204
            assert head(server.port, path).status == 404
        assert not list((tmp_path / "uploads" / ".tusd-py").rglob("*.json"))
