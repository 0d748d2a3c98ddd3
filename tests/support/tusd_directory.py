"""A directory as tusd's filestore leaves it, and its import."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.command_line import execute
from tests.support.harness import serving
from tests.support.wire.messages import TUS, encoded, payload
from tests.support.wire.promised import ask, content_of, head, offset_of, patch
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


COUNT = 7  # uploads in the directory of the fixture `tusd`


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
