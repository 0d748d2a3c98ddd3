"""A disk that is full, read-only, or loses files: clear answers, an offset that is true, and an upload that goes on."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.failure.test_power_cuts import come_from_an_earlier_boot, needs_boot_id
from tests.support.harness import ServerProcess
from tests.support.hosts import files_of
from tests.support.redis_server import shared_redis_url
from tests.support.timing import wait_until
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, path_of, payload
from tests.support.wire.requests import assert_content, complete, create, head, offset_of, patch, request, start_patch

RECORDS = ".tusd-py"
FULL = 507
TRANSIENT = {500, 503, 507}


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """A small file system of its own, in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if done.returncode != 0:
        message = f"mount: {done.stderr.decode().strip()}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(path)], check=True)


def fill(path: Path, leave: int = 0) -> Path:
    """Fill a file system but for about `leave` bytes; return the file to remove to make room again."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * KIBI))
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - leave))
    return ballast


def segment_path(server: ServerProcess, path: str) -> Path:
    return server.upload_dir / path.rpartition("/")[2]


def assert_clear(answer: Answer, statuses: set[int]) -> None:
    """Assert that an answer tells what is wrong, and no details of the program or of the disk."""
    assert answer.status in statuses, answer
    assert "upload-offset" not in answer.headers
    text = answer.body.decode()
    assert text.startswith("ERR_"), text
    for inside in ("Traceback", "Errno", "sqlite", "/tmp", "/work", ".py"):
        assert inside not in text


def offset_if_known(server: ServerProcess, path: str, acknowledged: int) -> int:
    """Return the offset, or `acknowledged` if the server answers HEAD with 423."""
    answer = head(server.port, path)
    if answer.status == 423:
        assert int(answer.headers["retry-after"]) > 0
        return acknowledged
    assert answer.status == 200, answer
    return answer.offset


@pytest.mark.parametrize("framing", ["sized", "chunked", "checksum"])
def test_a_full_disk_keeps_what_it_could_take(tmp_path: Path, framing: str) -> None:
    data = payload(8 * MEBI)
    uploads = tmp_path / "uploads"
    with (
        mounted(uploads, "6m"),
        mounted(uploads / RECORDS, "16m"),
        ServerProcess(uploads) as server,
    ):
        path = create(server.port, len(data))
        assert patch(server.port, path, 0, data[:MEBI]).status == 204
        ballast = fill(uploads, leave=3 * MEBI)
        headers = checksum(data[MEBI:]) if framing == "checksum" else {}
        size = None if framing == "chunked" else len(data) - MEBI
        with start_patch(server.port, path, MEBI, size, headers) as connection:
            with contextlib.suppress(ConnectionError):
                if size is None:
                    for start in range(MEBI, len(data), MEBI):
                        connection.send(b"%x\r\n" % MEBI + data[start : start + MEBI] + b"\r\n")
                    connection.send(b"0\r\n\r\n")
                else:
                    connection.send(data[MEBI:])
            answer = connection.answer()
        assert_clear(answer, {FULL})
        offset = offset_of(server.port, path)
        stored = segment_path(server, path).stat().st_size
        assert offset == stored == segment_path(server, path).stat().st_size
        if framing == "checksum":
            assert offset == MEBI
        else:
            assert 3 * MEBI <= offset < len(data)
        assert_clear(patch(server.port, path, offset, data[offset:]), {FULL})  # still full
        again = offset_of(server.port, path)
        assert offset <= again == segment_path(server, path).stat().st_size
        remount(uploads, "size=16m")
        ballast.unlink()
        complete(server.port, path, data)


def test_a_disk_full_of_uploads_and_records_together(tmp_path: Path) -> None:
    data = payload(3 * MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads, "8m"), ServerProcess(uploads) as server:
        paths = [create(server.port, len(data)) for _ in range(4)]
        acknowledged = dict.fromkeys(paths, 0)
        with ThreadPoolExecutor(4) as executor:
            answers = list(executor.map(lambda path: patch(server.port, path, 0, data), paths))
        for path, answer in zip(paths, answers, strict=True):
            if answer.status == 204:
                acknowledged[path] = answer.offset
            else:
                assert_clear(answer, {FULL})
        assert FULL in [answer.status for answer in answers]
        for path in paths:
            offset = offset_if_known(server, path, acknowledged[path])
            assert acknowledged[path] <= offset <= len(data)
            stored = segment_path(server, path)
            assert offset <= (stored.stat().st_size if stored.exists() else 0)
            acknowledged[path] = offset
        server.restart()  # nothing of it was only in memory
        for path in paths:
            assert acknowledged[path] <= offset_if_known(server, path, acknowledged[path]) <= len(data)
        remount(uploads, "size=32m")
        for path in paths:
            if offset_of(server.port, path) < len(data):
                complete(server.port, path, data)
            assert_content(server.port, path, data)


def test_a_disk_too_full_for_records(tmp_path: Path) -> None:
    data = payload(MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads / RECORDS, "2m") as records, ServerProcess(uploads) as server:
        path = create(server.port, len(data))
        finished = create(server.port, 1000, body=bytes(1000))
        assert patch(server.port, path, 0, data[: 100 * KIBI]).status == 204
        ballast = fill(records)
        refused = None
        for _ in range(2000):  # the log of the records has some room of its own
            answer = request(server.port, "POST", "/files", creation_headers(100))
            if answer.status != 201:
                refused = answer
                break
        assert refused is not None
        assert_clear(refused, {FULL})
        refused = patch(server.port, path, 100 * KIBI, data[100 * KIBI :])
        assert refused.status != 204
        assert_clear(refused, {FULL})
        assert 100 * KIBI <= offset_if_known(server, path, 100 * KIBI) <= len(data)
        assert offset_of(server.port, finished) == 1000
        assert_content(server.port, finished, bytes(1000))
        ballast.unlink()
        offset = offset_of(server.port, path)
        if offset < len(data):
            complete(server.port, path, data)
        assert_content(server.port, path, data)
        assert create(server.port, 100)


def fill_completely(uploads: Path, port: int) -> None:
    """Leave no room for a record either, although the file of the records and its log have some of their own."""
    fill(uploads)
    for _ in range(100):
        append_until_full(uploads / RECORDS / "ballast")
        answers = [request(port, "POST", "/files", creation_headers(100)) for _ in range(20)]
        if all(answer.status == FULL for answer in answers):
            return
    raise AssertionError("there is always room for a record")


def append_until_full(path: Path) -> None:
    for size in (4096, 1):
        with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(size)):
                pass


@pytest.mark.parametrize("together", [True, False])
def test_a_full_disk_becomes_free_again_by_deleting(tmp_path: Path, together: bool) -> None:
    uploads = tmp_path / "uploads"
    data = payload(MEBI)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(uploads, "8m"))
        if not together:
            stack.enter_context(mounted(uploads / RECORDS, "4m"))
        server = stack.enter_context(ServerProcess(uploads))
        finished = create(server.port, len(data), body=data)
        unfinished = create(server.port, len(data))
        assert patch(server.port, unfinished, 0, data[: 10 * KIBI]).status == 204
        empty = [create(server.port, 100) for _ in range(60)]
        fill_completely(uploads, server.port)
        for path in (*empty, unfinished, finished):
            assert request(server.port, "DELETE", path).status == 204
            assert head(server.port, path).status == 404
        assert not segment_path(server, finished).exists()
        path = create(server.port, 100 * KIBI)
        if together:
            complete(server.port, path, data[: 100 * KIBI])


def test_a_full_disk_becomes_free_again_by_expiry_also_after_a_restart(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    data = payload(MEBI)
    with mounted(uploads, "8m"):
        with ServerProcess(uploads, sweep_interval=0, expires_after="2s") as server:
            paths = [create(server.port, 2 * len(data)) for _ in range(3)]
            for path in paths:
                assert patch(server.port, path, 0, data).status == 204
            fill_completely(uploads, server.port)
            server.kill()
        with ServerProcess(uploads, sweep_interval="1s", expires_after="2s") as server:
            wait_until(
                lambda: not any(segment_path(server, path).exists() for path in paths), "what has expired is removed"
            )
            complete(server.port, create(server.port, len(data)), data)


def open_records_and_die(uploads: Path) -> None:
    """Leave the index of a log of SQLite, and the log without a page."""
    script = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("UPDATE metadata SET value = value")
connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script, uploads / RECORDS / "uploads.sqlite3"], check=True)


@needs_boot_id
def test_offsets_go_back_after_a_power_cut_although_the_disk_is_full(tmp_path: Path) -> None:
    """The reserve is for removals, and the bytes beyond such offsets count no more."""
    uploads = tmp_path / "uploads"
    data = payload(MEBI)
    with mounted(uploads, "8m"):
        with ServerProcess(uploads, sweep_interval=0) as server:
            finished = create(server.port, len(data), body=data)
            unfinished = [create(server.port, len(data)) for _ in range(60)]
            for path in unfinished:
                assert patch(server.port, path, 0, data[: 10 * KIBI]).status == 204
            server.kill()
        come_from_an_earlier_boot(uploads)
        open_records_and_die(uploads)
        fill(uploads)
        append_until_full(uploads / RECORDS / "ballast")
        with ServerProcess(uploads, sweep_interval=0) as server:
            assert [offset_of(server.port, path) for path in unfinished] == [0] * len(unfinished)
            assert_content(server.port, finished, data)
            for path in (*unfinished, finished):
                assert request(server.port, "DELETE", path).status == 204


def test_the_command_sweeps_a_full_disk(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    data = payload(MEBI)
    with mounted(uploads, "8m"):
        with ServerProcess(uploads, sweep_interval=0, expires_after="1s") as server:
            path = create(server.port, 2 * len(data))
            assert patch(server.port, path, 0, data).status == 204
            fill_completely(uploads, server.port)
            wait_until(lambda: head(server.port, path).status == 404, "it expires")
        file = uploads / path.rpartition("/")[2]
        append_until_full(uploads / RECORDS / "ballast")
        assert file.exists()
        command = [sys.executable, "-m", "tusd_py", "sweep", "--upload-dir", str(uploads)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done
        assert not file.exists()


def test_records_without_room_never_let_an_unrecorded_byte_count(tmp_path: Path) -> None:
    """PATCHes while the records cannot be written; a restart sees the same, and the upload still ends right."""
    data = payload(2 * MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads / RECORDS, "1m") as records, ServerProcess(uploads) as server:
        path = create(server.port, len(data))
        ballast = fill(records)
        acknowledged = 0
        for _ in range(40):
            part = data[acknowledged : acknowledged + 10 * KIBI]
            answer = patch(server.port, path, acknowledged, part)
            if answer.status == 204:
                acknowledged = answer.offset
                continue
            assert_clear(answer, {FULL})
            offset = offset_if_known(server, path, acknowledged)
            assert acknowledged <= offset <= acknowledged + len(part)
            acknowledged = offset
        ballast.unlink()
        server.restart()
        assert acknowledged <= offset_of(server.port, path) <= acknowledged + 10 * KIBI
        complete(server.port, path, data)


def test_no_lock_is_left_behind_where_there_is_no_room_for_it(tmp_path: Path) -> None:
    data = payload(MEBI)
    uploads = tmp_path / "uploads"
    with (
        mounted(uploads / RECORDS, "1m") as records,
        ServerProcess(uploads) as server,
        ServerProcess(uploads) as other,
    ):
        path = create(server.port, len(data))
        ballast = fill(records)
        # Room may be made by writing the log of the records back.
        assert patch(server.port, path, 0, data[: 10 * KIBI]).status in TRANSIENT | {204}
        ballast.unlink()
        complete(other.port, path, data)


def test_a_creation_with_upload_on_a_full_disk_still_tells_where_it_is(tmp_path: Path) -> None:
    data = payload(3 * MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads, "4m"), mounted(uploads / RECORDS, "16m"), ServerProcess(uploads) as server:
        ballast = fill(uploads, leave=MEBI)
        answer = request(server.port, "POST", "/files", creation_headers(len(data), data), data)
        assert answer.status == 201, answer
        path = path_of(answer)
        assert answer.offset == offset_of(server.port, path)
        assert answer.offset <= segment_path(server, path).stat().st_size
        ballast.unlink()
        complete(server.port, path, data)


def test_a_concatenation_on_a_full_disk_can_be_repeated(tmp_path: Path) -> None:
    part = payload(2 * MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads, "6m"), mounted(uploads / RECORDS, "16m"), ServerProcess(uploads) as server:
        partials = [create(server.port, len(part), {"Upload-Concat": "partial"}, part) for _ in range(2)]
        headers = {"Upload-Concat": "final;" + " ".join(partials)}
        answer = request(server.port, "POST", "/files", headers)
        assert_clear(answer, {FULL})
        for path in partials:
            assert offset_of(server.port, path) == len(part)
        remount(uploads, "size=16m")
        answer = request(server.port, "POST", "/files", headers)
        assert answer.status == 201, answer
        assert_content(server.port, path_of(answer), part * 2)


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    data = payload(2 * MEBI)
    uploads = tmp_path / "uploads"
    with mounted(uploads, "16m"), mounted(uploads / RECORDS, "16m"), ServerProcess(uploads) as server:
        path = create(server.port, len(data))
        untouched = create(server.port, len(data))
        finished = create(server.port, len(data), body=data)
        assert patch(server.port, path, 0, data[:MEBI]).status == 204
        remount(uploads, "ro")
        try:
            for upload, offset in ((path, MEBI), (untouched, 0)):
                assert_clear(patch(server.port, upload, offset, data[offset:]), TRANSIENT)
                assert offset_of(server.port, upload) == offset
            assert_content(server.port, finished, data)
            assert_clear(request(server.port, "DELETE", finished), TRANSIENT)
            answer = request(server.port, "POST", "/files", creation_headers(len(data), data), data)
            if answer.status == 201:
                assert answer.offset == 0
            else:
                assert_clear(answer, TRANSIENT)
        finally:
            remount(uploads, "rw")
        for upload in (path, untouched):
            complete(server.port, upload, data)


def test_a_record_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The whole directory is read-only from the start: the server says so in one line and does not start."""
    uploads = tmp_path / "uploads"
    with mounted(uploads, "16m"):
        remount(uploads, "ro")
        with pytest.raises(RuntimeError, match=r"the server did not start:\ntusd-py: .*\n$") as refused:
            ServerProcess(uploads).start()
        assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("left", [0, 1, 500_000])
def test_a_file_that_was_truncated_behind_the_server(server: ServerProcess, left: int) -> None:
    data = payload(2 * MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:MEBI]).status == 204
    os.truncate(segment_path(server, path), left)
    assert offset_of(server.port, path) == left
    complete(server.port, path, data)


def test_a_file_that_vanished_behind_the_server(server: ServerProcess) -> None:
    data = payload(2 * MEBI)
    for deferred in (False, True):
        path = create(server.port, None if deferred else len(data))
        assert patch(server.port, path, 0, data[:MEBI]).status == 204
        segment_path(server, path).unlink()
        assert offset_of(server.port, path) == 0
        complete(server.port, path, data, {"Upload-Length": str(len(data))} if deferred else {})


def test_a_patch_without_head_after_bytes_were_lost_leaves_no_hole(server: ServerProcess) -> None:
    data = payload(2 * MEBI)
    for left in (0, 700_000):
        path = create(server.port, len(data))
        assert patch(server.port, path, 0, data[:MEBI]).status == 204
        os.truncate(segment_path(server, path), left)
        answer = patch(server.port, path, MEBI, data[MEBI:])
        assert (answer.status, answer.offset) == (409, left)
        complete(server.port, path, data)


@pytest.mark.parametrize("left", [0, 700_000])
def test_an_empty_patch_after_bytes_were_lost_answers_what_is_left(server: ServerProcess, left: int) -> None:
    data = payload(2 * MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:MEBI]).status == 204
    os.truncate(segment_path(server, path), left)
    answer = patch(server.port, path, MEBI, b"")
    assert (answer.status, answer.offset) == (409, left)
    complete(server.port, path, data)


@pytest.mark.parametrize("left", [0, 700_000])
def test_head_beside_a_patch_without_bytes_answers_what_is_left(server: ServerProcess, left: int) -> None:
    data = payload(2 * MEBI)
    path = create(server.port, len(data))
    assert patch(server.port, path, 0, data[:MEBI]).status == 204
    os.truncate(segment_path(server, path), left)
    with start_patch(server.port, path, MEBI, MEBI) as connection:
        connection.wait_until_read()
        assert offset_of(server.port, path) == left
    complete(server.port, path, data)


def test_a_file_that_vanished_while_the_server_was_down(server: ServerProcess) -> None:
    data = payload(2 * MEBI)
    gone, truncated, longer = (create(server.port, len(data)) for _ in range(3))
    for path in (gone, truncated, longer):
        assert patch(server.port, path, 0, data[:MEBI]).status == 204
    server.kill()
    segment_path(server, gone).unlink()
    os.truncate(segment_path(server, truncated), 4096)
    with segment_path(server, longer).open("ab") as file:
        file.write(data[MEBI : MEBI + 5000])  # arrived and was written, but not recorded any more
    server.restart()
    assert offset_of(server.port, gone) == 0
    assert offset_of(server.port, truncated) == 4096
    assert MEBI <= offset_of(server.port, longer) <= MEBI + 5000
    for path in (gone, truncated, longer):
        complete(server.port, path, data)


def test_a_finished_file_that_vanished_is_not_served(server: ServerProcess) -> None:
    data = payload(MEBI)
    path = create(server.port, len(data), body=data)
    os.truncate(segment_path(server, path), 1000)
    with contextlib.suppress(ConnectionError):  # an answer that breaks off is one way to say it
        answer = request(server.port, "GET", path)
        assert answer.status != 200, "a part of the upload was served as the whole"
    segment_path(server, path).unlink()
    assert request(server.port, "GET", path).status in {404, 500, 503}
    assert head(server.port, path).status in {200, 404}
    assert request(server.port, "DELETE", path).status == 204


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("records", ["SQLite", "Redis"])
def test_a_part_that_lost_bytes_goes_back_and_its_final_upload_can_be_made_afterwards(
    tmp_path: Path, unfinished: bool, records: str
) -> None:
    part = payload(100 * KIBI)
    options: dict[str, Any] = {"concatenation_unfinished": True} if unfinished else {}
    if records == "Redis":
        options |= {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with ServerProcess(tmp_path / "uploads", **options) as server:
        paths = [create(server.port, len(part), {"Upload-Concat": "partial"}, part) for _ in range(2)]
        assert patch(server.port, paths[1], len(part), b"").status == 204  # takes the lock once more
        (file,) = files_of(server, paths[1])
        os.truncate(file, 5000)
        headers = {"Upload-Concat": "final;" + " ".join(paths)}
        answer = request(server.port, "POST", "/files", headers)
        if unfinished:
            assert answer.status == 201, answer  # it waits
        else:
            assert answer.status == 400, answer
            assert b"5000" in answer.body
        assert offset_of(server.port, paths[0]) == len(part)
        assert offset_of(server.port, paths[1]) == 5000
        complete(server.port, paths[1], part)
        answer = request(server.port, "POST", "/files", headers)
        assert answer.status == 201, answer
        assert_content(server.port, path_of(answer), part * 2)
