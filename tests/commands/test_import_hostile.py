"""`tusd-py import-tusd` of broken and hostile directories: refused in one line each, all others are imported."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import serving
from tests.support.tusd_directory import assert_imported, imported, settings_of, upload_info, write_upload
from tests.support.wire.messages import MAX_INTEGER, shown
from tests.support.wire.promised import content_of
from tusd_py.migration.report import Summary
from tusd_py.migration.tusd.files import data_path, import_tusd
from tusd_py.migration.tusd.info import parse_info


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
