"""Files with secrets: what counts as a change, and looks that requests wait for no longer than they must."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auth.site import look_every_time
from tusd_py.auth import secret_files
from tusd_py.auth.secret_files import SecretFile


def written(path: Path) -> Path:
    path.write_bytes(b"first")
    return path


@pytest.fixture(autouse=True)
def _looks_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    look_every_time(monkeypatch)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The file system hangs until the event is set."""
    answers, version_of_file = threading.Event(), secret_files.version_of_file

    def hang(path: Path) -> secret_files.Version:
        answers.wait(60)
        return version_of_file(path)

    monkeypatch.setattr(secret_files, "version_of_file", hang)
    answers.set()
    yield answers
    answers.set()


async def until_read(file: SecretFile[bytes], value: bytes) -> None:
    async with asyncio.timeout(60):
        while file.value != value:
            await file.refresh()
            await asyncio.sleep(0.005)


async def test_change_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "secret")
    file = SecretFile(path, bytes)
    status = path.stat()
    while path.stat().st_ctime_ns == status.st_ctime_ns:  # the clock of a file system is a coarse one
        path.write_bytes(b"other")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    await file.refresh()
    assert (file.value, file.changes) == (b"other", 1)


async def test_file_that_is_being_written_is_read_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "secret")
    file = SecretFile(path, bytes)
    with path.open("wb") as writer:  # empty from here on
        writes = iter([b"new ", b"content"])

        def write_meanwhile(seconds: float) -> None:
            writer.write(next(writes, b""))
            writer.flush()

        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", write_meanwhile)
            await file.refresh()
    assert (file.value, file.changes) == (b"new content", 1)


async def test_file_that_changes_all_the_time_is_read_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "secret")
    file = SecretFile(path, bytes)
    path.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: path.write_bytes(path.read_bytes() + b"x"))
        await file.refresh()
    assert file.value == b"x" * (1 + secret_files.MAX_READINGS)
    await file.refresh()
    assert (file.value, file.changes) == (path.read_bytes(), 2)


async def test_request_waits_for_a_look_only_if_the_last_one_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
) -> None:
    path = written(tmp_path / "secret")
    file = SecretFile(path, bytes)
    path.write_bytes(b"second")
    hanging.clear()
    monkeypatch.setattr(secret_files, "WAIT_AFTER", 3600.0)
    await file.refresh()  # begins to look
    assert file.value == b"first"
    monkeypatch.setattr(secret_files, "WAIT_AFTER", 0.0)
    waiting = asyncio.ensure_future(file.refresh())
    await asyncio.sleep(0)
    assert not waiting.done()
    hanging.set()
    await waiting
    assert file.value == b"second"


async def test_file_system_that_hangs_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "secret")
    monkeypatch.setattr(secret_files, "LOOK_TIMEOUT", 0.01)
    file = SecretFile(path, bytes)
    path.write_bytes(b"second")
    hanging.clear()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert file.value == b"first"
    assert [record.message for record in caplog.records] == [
        f"{path}: the file system does not answer; what was read before stays in effect"
    ]
    hanging.set()
    await until_read(file, b"second")


async def test_defect_of_a_parser_refuses_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "secret")

    def parse(content: bytes) -> bytes:
        if content != b"first":
            raise KeyError(content)
        return content

    file = SecretFile(path, parse)
    path.write_bytes(b"a secret")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await file.refresh()
    assert file.value == b"first"
    assert [record.message for record in caplog.records] == [f"{path}: KeyError; what was read before stays in effect"]


async def test_complaint_is_told_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "secret")
    file = SecretFile(path, bytes, lambda content: (content, "half of it is missing"))
    path.write_bytes(b"second")
    with caplog.at_level(logging.ERROR):
        await file.refresh()
        await file.refresh()
        assert [record.message for record in caplog.records] == [f"{path}: half of it is missing"]
        monkeypatch.setattr(secret_files, "LOG_INTERVAL", 0.0)
        await file.refresh()
    assert len(caplog.records) == 2
    assert file.value == b"second"
