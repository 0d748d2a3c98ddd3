"""`tusd-py import-tusd`: directories as tusd's filestore leaves them, and broken ones."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.harness import serving
from tests.support.redis_server import shared_redis_url
from tests.support.wire.messages import MAX_INTEGER, TUS, encoded, payload, shown
from tests.support.wire.promised import ask, content_of, create, head, offset_of, patch
from tusd_py.backends.disk.syncs import Syncs
from tusd_py.core.errors import StorageFull
from tusd_py.core.upload import Status, UploadKind
from tusd_py.migration.report import Summary, UploadRefused
from tusd_py.migration.tusd import files as tusd_files
from tusd_py.migration.tusd.files import data_path, import_tusd
from tusd_py.migration.tusd.info import metadata_header, parse_info, to_upload
from tusd_py.settings import Settings, load

HALF = "24e533e02ec3bc40c387f1a0e460e216"
WHOLE = "0123456789abcdef0123456789abcdef"
EMPTY = "ffffffffffffffffffffffffffffffff"
DEFERRED = "deferred-1"
PARTIAL, OTHER_PARTIAL, FINAL = "partial-1", "partial-2", "final-1"
CONTENT = payload(300_000)
MIDDLE = 123_457
METADATA = {"filename": "wörld <&>.txt", "empty": "", "filetype": "text/plain"}
SORTED_METADATA = f"empty,filename {encoded(METADATA['filename'])},filetype {encoded('text/plain')}"
HOUR = 3600.0


def settings_of(**values: Any) -> Settings:
    return load(values).settings


def upload_info(upload_id: str, size: int, directory: Path, **fields: Any) -> dict[str, Any]:
    """Return the info that tusd writes when it creates an upload; the offset stays 0 for ever."""
    return {
        "ID": upload_id,
        "Size": size,
        "SizeIsDeferred": False,
        "Offset": 0,
        "MetaData": {},
        "IsPartial": False,
        "IsFinal": False,
        "PartialUploads": None,
        "Storage": {
            "InfoPath": str(directory / f"{upload_id}.info"),
            "Path": str(directory / upload_id),
            "Type": "filestore",
        },
    } | fields


def write_upload(directory: Path, upload_id: str, size: int, data: bytes | None, **fields: Any) -> None:
    """Write the files of one upload as tusd does; no data file if `data` is None."""
    directory.mkdir(exist_ok=True)
    # As Go does: no spaces, and <, > and & escaped; the rest as UTF-8.
    text = json.dumps(upload_info(upload_id, size, directory, **fields), separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    (directory / f"{upload_id}.info").write_bytes(text.encode())
    if data is not None:
        (directory / upload_id).write_bytes(data)


@pytest.fixture
def tusd(tmp_path: Path) -> Path:
    """One upload of every kind."""
    directory = tmp_path / "tusd"
    write_upload(directory, HALF, len(CONTENT), CONTENT[:MIDDLE], MetaData=METADATA)
    write_upload(directory, WHOLE, len(CONTENT), CONTENT, MetaData=METADATA)
    write_upload(directory, EMPTY, 0, b"", MetaData=None)
    write_upload(directory, DEFERRED, 0, CONTENT[:5], SizeIsDeferred=True)
    write_upload(directory, PARTIAL, 1000, CONTENT[:1000], IsPartial=True)
    write_upload(directory, OTHER_PARTIAL, 1000, CONTENT[:10], IsPartial=True)
    write_upload(directory, FINAL, 2000, CONTENT[:2000], IsFinal=True, PartialUploads=[PARTIAL, "removed"])
    (directory / f"{HALF}.lock").write_text("4711\n")
    (directory / "stray").write_bytes(b"no .info")
    return directory


COUNT = 7  # of them


def files_of(directory: Path) -> dict[str, tuple[str, float, bytes | str]]:
    """Return the files of a directory with their contents, links as links."""
    found: dict[str, tuple[str, float, bytes | str]] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            found[str(path)] = ("link", status.st_mtime, os.readlink(path))
        elif path.is_file():
            found[str(path)] = ("file", status.st_mtime, path.read_bytes())
    return found


def imported(directory: Path, uploads: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return execute("import-tusd", str(directory), "--upload-dir", str(uploads), *options)


def assert_imported(directory: Path, uploads: Path, *options: str, new: int = COUNT, old: int = 0) -> None:
    result = imported(directory, uploads, *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"{new} imported, {old} there already"


def assert_served(folder: Path, **options: Any) -> None:
    """Assert that every upload works as if this server had created it; `folder` has the upload directory."""
    with serving(folder, **options) as server:
        answer = head(f"{server.url}/{HALF}")
        assert (answer.status, answer.offset, answer["Upload-Length"]) == (200, MIDDLE, str(len(CONTENT)))
        assert answer["Upload-Metadata"] == SORTED_METADATA
        assert "Upload-Expires" in answer
        assert patch(f"{server.url}/{HALF}", 0, CONTENT).status == 409
        assert patch(f"{server.url}/{HALF}", MIDDLE, CONTENT[MIDDLE:]).offset == len(CONTENT)
        assert content_of(f"{server.url}/{HALF}") == CONTENT

        assert offset_of(f"{server.url}/{WHOLE}") == len(CONTENT)
        assert content_of(f"{server.url}/{WHOLE}") == CONTENT
        assert content_of(f"{server.url}/{EMPTY}") == b""
        assert "Upload-Metadata" not in head(f"{server.url}/{EMPTY}")
        assert "Upload-Expires" not in head(f"{server.url}/{WHOLE}")

        assert head(f"{server.url}/{DEFERRED}")["Upload-Defer-Length"] == "1"
        assert patch(f"{server.url}/{DEFERRED}", 5, CONTENT[5:9], {"Upload-Length": "9"}).offset == 9
        assert content_of(f"{server.url}/{DEFERRED}") == CONTENT[:9]

        answer = head(f"{server.url}/{FINAL}")
        assert answer["Upload-Concat"] == f"final;/files/{PARTIAL} /files/removed"
        assert content_of(f"{server.url}/{FINAL}") == CONTENT[:2000]
        assert head(f"{server.url}/{OTHER_PARTIAL}")["Upload-Concat"] == "partial"
        assert patch(f"{server.url}/{OTHER_PARTIAL}", 10, CONTENT[10:1000]).offset == 1000
        final = create_final(server.url, PARTIAL, OTHER_PARTIAL)
        assert content_of(final) == CONTENT[:1000] * 2
        assert not [line for line in server.log if "ERROR" in line]


def create_final(url: str, *ids: str) -> str:
    answer = ask("POST", url, TUS | {"Upload-Concat": "final;" + " ".join(f"{url}/{name}" for name in ids)}, b"")
    assert answer.status == 201, answer
    return answer["Location"]


# Directories as tusd writes them.


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


# Again, and only to see.


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


# Directories that nobody should have written.


@dataclass(frozen=True)
class Hostile:
    """An .info file, and a part of the line that refuses it."""

    reason: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    data: bytes | None = b"abc"


STORAGE = "Storage"
HOSTILE: dict[str, Hostile] = {
    "empty": Hostile("not JSON", raw=b""),
    "truncated": Hostile("not JSON", raw=b'{"ID":"x","Size":3,"MetaData":{"file'),
    "two of them": Hostile("not JSON", raw=b"{} {}"),
    "not UTF-8": Hostile("not JSON", raw=b'{"ID":"\xff","Size":3}'),
    "UTF-16": Hostile("not JSON", raw='{"ID":"x","Size":3}'.encode("utf-16")),
    "deep": Hostile("not JSON", raw=b"[" * 200_000),
    "too many digits": Hostile("not JSON", raw=b'{"ID":"x","Size":' + b"9" * 5000 + b"}"),
    "long": Hostile("longer", raw=b" " * ((8 << 20) + 1)),
    "a list": Hostile("not a JSON object", raw=b"[]"),
    "null": Hostile("not a JSON object", raw=b"null"),
    "a number": Hostile("not a JSON object", raw=b"1"),
    "nothing in it": Hostile("has the id", raw=b"{}"),
    "no id": Hostile("has the id", {"ID": ""}),
    "an id of another type": Hostile("wrong type", {"ID": 5}),
    "an id that leads elsewhere": Hostile("has the id", {"ID": "../x"}),
    "an absolute id": Hostile("has the id", {"ID": "/etc/passwd"}),
    "an id with a dot": Hostile("has the id", {"ID": ".tusd-py"}),
    "an id with a zero": Hostile("has the id", {"ID": "x\0"}),
    "an id of S3": Hostile("has the id", {"ID": "x+multipart"}),
    "an id with a newline": Hostile("has the id", {"ID": "x\n"}),
    "a long id": Hostile("has the id", {"ID": "x" * 10_000}),
    "another id": Hostile("upload y", {"ID": "y"}),
    "a negative size": Hostile("has no Size", {"Size": -1}),
    "no size": Hostile("has no Size", {"Size": None}),
    "a large size": Hostile("has no Size", {"Size": MAX_INTEGER + 1}),
    "a huge size": Hostile("has no Size", {"Size": 10**400}),
    "a broken size": Hostile("wrong type", {"Size": 3.5}),
    "a size with an exponent": Hostile("wrong type", {"Size": 1e300}),
    "no number": Hostile("wrong type", raw=b'{"ID":"x","Size":NaN}'),
    "a size as text": Hostile("wrong type", {"Size": "3"}),
    "a size that is true": Hostile("wrong type", {"Size": True}),
    "deferred by a number": Hostile("wrong type", {"SizeIsDeferred": 1}),
    "metadata in a list": Hostile("wrong type", {"MetaData": ["a"]}),
    "metadata of another type": Hostile("has MetaData", {"MetaData": {"a": 5}}),
    "no metadata value": Hostile("has MetaData", {"MetaData": {"a": None}}),
    "megabytes of metadata": Hostile("--metadata-size is 16384", {"MetaData": {"a": "v" * 3_000_000}}),
    "many pairs of metadata": Hostile("--metadata-pairs is 64", {"MetaData": {str(key): "" for key in range(65)}}),
    "more parts than may be": Hostile(
        "--concatenation-parts is 1000", {"IsFinal": True, "PartialUploads": [f"p{number}" for number in range(1001)]}
    ),
    "an empty key": Hostile("has MetaData", {"MetaData": {"": "v"}}),
    "a key with a space": Hostile("has MetaData", {"MetaData": {"a b": "v"}}),
    "a key with a comma": Hostile("has MetaData", {"MetaData": {"a,b": "v"}}),
    "a key with a line end": Hostile("has MetaData", {"MetaData": {"a\r\nSet-Cookie: x": "v"}}),
    "a key that is not ASCII": Hostile("has MetaData", {"MetaData": {"é": "v"}}),
    "half a character": Hostile("has MetaData", raw=b'{"ID":"x","Size":3,"MetaData":{"a":"\\ud800"}}'),
    "half a character as a key": Hostile("has MetaData", raw=b'{"ID":"x","Size":3,"MetaData":{"\\ud800":"a"}}'),
    "both partial and final": Hostile("contradicts", {"IsPartial": True, "IsFinal": True, "PartialUploads": ["a"]}),
    "a final of nothing": Hostile("contradicts", {"IsFinal": True}),
    "parts of no final": Hostile("contradicts", {"PartialUploads": ["a"]}),
    "parts that are numbers": Hostile("not ids", {"IsFinal": True, "PartialUploads": [1]}),
    "parts in a text": Hostile("wrong type", {"IsFinal": True, "PartialUploads": "a"}),
    "parts that lead elsewhere": Hostile("has the id", {"IsFinal": True, "PartialUploads": ["../a"]}),
    "parts with a space": Hostile("has the id", {"IsFinal": True, "PartialUploads": ["a b"]}),
    "a final that was not finished": Hostile("final upload", {"IsFinal": True, "PartialUploads": ["a"], "Size": 5}),
    "a final of unknown length": Hostile(
        "final upload", {"IsFinal": True, "PartialUploads": ["a"], "SizeIsDeferred": True}
    ),
    "more data than its size": Hostile("more than its Size", {"Size": 2}),
    "storage of another type": Hostile("wrong type", {STORAGE: "filestore"}),
    "storage of S3": Hostile("filestore", {STORAGE: {"Type": "s3store", "Bucket": "b", "Key": "k"}}),
    "a path of another type": Hostile("wrong type", {STORAGE: {"Path": ["x"]}}),
    "data that is elsewhere": Hostile("has its data in", {STORAGE: {"Path": "/etc/hostname"}}, data=None),
    "data above": Hostile("has its data in", {STORAGE: {"Path": "../secret"}}, data=None),
    "data that is hidden": Hostile("has its data in", {STORAGE: {"Path": ".hidden/secret"}}, data=None),
    "data with a name of escapes": Hostile("has its data in", {STORAGE: {"Path": "\x1b[31mred"}}, data=None),
    "the data of another": Hostile("another upload", {STORAGE: {"Path": "good"}}, data=None),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
def test_import_refuses_hostile_info_file_in_one_line(tmp_path: Path, case: Hostile, in_place: bool) -> None:
    """The one is refused with one line, the others are taken over."""
    directory = tmp_path / "tusd"
    write_upload(directory, "x", 3, case.data, **case.fields)
    if case.raw is not None:
        (directory / "x.info").write_bytes(case.raw)
    write_upload(directory, "good", 3, b"abc")
    (tmp_path / "secret").write_bytes(b"sec")
    (directory / ".hidden").mkdir()
    (directory / ".hidden" / "secret").write_bytes(b"sec")
    uploads = directory if in_place else tmp_path / "uploads"
    errors: list[str] = []
    summary = asyncio.run(import_tusd(settings_of(upload_dir=uploads), directory, report_error=errors.append))
    assert summary == Summary(copied=1, refused=1)
    assert len(errors) == 1
    assert errors[0].startswith("x.info ")
    assert case.reason in errors[0]
    assert errors[0].isprintable()
    assert len(errors[0]) < 600
    if not in_place:
        assert {path.name for path in uploads.iterdir()} == {".tusd-py", "good"}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "x\0y", "\udcff", chr(0xD800), "a" * 10_000, "x/" * 5000, "."]
)
def test_import_ignores_storage_path_outside_the_directory(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    directory = tmp_path / "tusd"
    write_upload(directory, "x", 3, b"abc")
    raw = json.dumps(upload_info("x", 3, directory, Storage={"Path": path}))
    (directory / "x.info").write_text(raw)
    assert data_path(parse_info(raw.encode()), directory) == directory / "x"
    assert_imported(directory, tmp_path / "uploads", new=1)
    assert (tmp_path / "uploads" / "x").read_bytes() == b"abc"


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(path.parent / target)


@pytest.mark.parametrize("suffix", ["", ".info"])
@pytest.mark.parametrize(
    "make",
    [link_to("../secret"), link_to("nowhere"), link_to("x"), Path.mkdir, os.mkfifo],
    ids=["link", "dangling link", "link to itself", "folder", "pipe"],
)
def test_import_passes_over_a_path_that_is_no_regular_file(
    tmp_path: Path, suffix: str, make: Callable[[Path], None]
) -> None:
    directory = tmp_path / "tusd"
    write_upload(directory, "x", 3, b"abc")
    write_upload(directory, "good", 3, b"abc")
    (tmp_path / "secret").write_bytes((directory / "x.info").read_bytes() if suffix else b"sec")
    (directory / f"x{suffix}").unlink()
    make(directory / f"x{suffix}")
    result = imported(directory, tmp_path / "uploads")
    assert result.returncode == 1
    assert result.stdout == "1 imported, 0 there already\n"
    assert result.stderr.startswith("tusd-py: x.info ")
    assert result.stderr.endswith("tusd-py: 1 not imported\n")
    assert result.stderr.count("\n") == 2
    assert not (tmp_path / "uploads" / "x").exists()


def test_import_refuses_data_behind_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret").write_bytes(b"sec")
    directory = tmp_path / "tusd"
    write_upload(directory, "x", 3, None, Storage={"Path": str(directory / "sub" / "secret")})
    (directory / "sub").symlink_to(tmp_path / "secrets")
    result = imported(directory, tmp_path / "uploads")
    assert result.returncode == 1
    assert "has its data in" in result.stderr


def test_import_refuses_second_upload_with_the_same_data_file(tmp_path: Path) -> None:
    directory = tmp_path / "tusd"
    for name in ("a", "b"):
        write_upload(directory, name, 3, None, Storage={"Path": "same.bin"})
    (directory / "same.bin").write_bytes(b"abc")
    for done in (1, 0):
        result = imported(directory, tmp_path / "uploads")
        assert result.stdout == f"{done} imported, {1 - done} there already\n"
        assert "b.info has its data in" in result.stderr


def test_import_error_shows_file_name_without_escapes(tmp_path: Path) -> None:
    directory, name = tmp_path / "tusd", "\x1b[31mred\u202e.bin"
    for upload_id in ("a", "b"):
        write_upload(directory, upload_id, 3, None, Storage={"Path": name})
    (directory / name).write_bytes(b"abc")
    result = imported(directory, tmp_path / "uploads")
    assert result.stdout == "1 imported, 0 there already\n"
    assert "\\x1b[31mred\\u202e.bin, the file of another upload" in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())


@pytest.mark.parametrize("name", [b"\xff.info", b"a\nb.info", b"\x1b[31m.info", b".info"], ids=shown)
def test_import_refuses_info_file_with_invalid_name(tmp_path: Path, name: bytes) -> None:
    directory = tmp_path / "tusd"
    write_upload(directory, "good", 3, b"abc")
    Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_bytes(b"{}")
    result = imported(directory, tmp_path / "uploads")
    assert result.returncode == 1
    assert result.stdout == "1 imported, 0 there already\n"
    assert result.stderr.count("\n") == 2
    assert all(line.isprintable() for line in result.stderr.splitlines())


@pytest.mark.parametrize("seconds", [-1e9, 1e11])
def test_import_accepts_files_with_extreme_times(tmp_path: Path, seconds: float) -> None:
    write_upload(tmp_path / "tusd", "x", 3, b"abc")
    for name in ("x", "x.info"):
        os.utime(tmp_path / "tusd" / name, (seconds, seconds))
    assert_imported(tmp_path / "tusd", tmp_path / "uploads", "--date-folders", new=1)
    with serving(tmp_path, date_folders=True) as server:
        assert content_of(f"{server.url}/x") == b"abc"


# Mistakes and failures.


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


# The pure functions.


@pytest.mark.parametrize(
    ("pairs", "header"),
    [
        ({}, None),
        ({"a": ""}, "a"),
        ({"b": "2", "a": "1"}, "a MQ==,b Mg=="),
        ({"a": "", "b": ""}, "a,b"),
        ({"name": "é\0\n,="}, f"name {encoded('é' + chr(0) + chr(10) + ',=')}"),
        ({"k" * 100_000: "v" * 100_000}, f"{'k' * 100_000} {encoded('v' * 100_000)}"),
        ({str(number): "" for number in range(1000)}, ",".join(sorted(map(str, range(1000))))),
    ],
    ids=shown,
)
def test_metadata_header_is_sorted_and_encoded(pairs: dict[str, str], header: str | None) -> None:
    assert metadata_header(pairs) == header


def test_info_of_an_old_tusd_gives_a_complete_upload() -> None:
    found = parse_info(b'{"ID":"x","Size":3,"Offset":0,"MetaData":null,"IsPartial":false,"PartialUploads":null}')
    assert (found.id, found.length, found.metadata, found.path) == ("x", 3, None, "")
    upload = to_upload(found, 3, created_at=5, modified_at=6, now=7, settings=settings_of())
    assert (upload.status, upload.created_at, upload.completed_at) == (Status.COMPLETE, 5, 6)
    assert upload.concatenation is UploadKind.NONE
    assert upload.expires_at is None


def test_info_of_a_final_upload_gives_concat_header_with_base_path() -> None:
    found = parse_info(b'{"ID":"x","Size":3,"IsFinal":true,"PartialUploads":["a","b","a"]}')
    settings = settings_of(base_path="/deep/files")
    upload = to_upload(found, 3, created_at=5, modified_at=6, now=7, settings=settings)
    assert upload.concat_header == "final;/deep/files/a /deep/files/b /deep/files/a"
    assert upload.partial_ids == ("a", "b", "a")
    with pytest.raises(UploadRefused, match="only 2 of its 3 bytes"):
        to_upload(found, 2, created_at=5, modified_at=6, now=7, settings=settings)


@pytest.mark.parametrize("seconds", [-1e9, 1e15])
def test_info_with_times_out_of_range_gives_valid_times(seconds: float) -> None:
    found = parse_info(b'{"ID":"x","Size":3}')
    upload = to_upload(found, 3, created_at=seconds, modified_at=seconds, now=7, settings=settings_of())
    assert upload.created_at in (0, 7)
    assert upload.completed_at in (0, 7)
