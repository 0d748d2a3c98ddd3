"""Backends of a package outside `tusd_py`, installed as a wheel: by the constructor, by entry points, by flags."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.support.harness import serving
from tests.support.timing import scaled
from tests.support.wire.promised import content_of, create, offset_of, patch
from tusd_py import TusServer

PACKAGE = Path(__file__).parent / "plugin_package"
MODULES = ("sample_backends", "sample_backends.storage", "sample_backends.state", "sample_backends.locker")
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
DATA = bytes(range(256)) * 2000


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel of the package is installed in."""
    folder = tmp_path_factory.mktemp("plugin")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True, timeout=scaled(60))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def installed(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, as it is imported from where its wheel is installed."""
    monkeypatch.syspath_prepend(str(wheel))
    yield importlib.import_module("sample_backends")
    for name in MODULES:
        sys.modules.pop(name, None)


def check_uploads(server: TusServer, folder: Path) -> None:
    """Upload, resume, download and remove, with the server started twice."""
    application = Starlette(routes=[server.route("/files")], lifespan=server.lifespan)
    with TestClient(application) as client:
        created = client.post("/files", headers={**TUS, "Upload-Length": str(len(DATA))})
        assert created.status_code == 201, created.text
        path = created.headers["Location"].partition("testserver")[2]
        assert client.patch(path, headers={**BYTES, "Upload-Offset": "0"}, content=DATA[:1000]).status_code == 204
        client.get("/files/unknown")
    with TestClient(application) as client:
        assert client.head(path, headers=TUS).headers["Upload-Offset"] == "1000"
        patched = client.patch(path, headers={**BYTES, "Upload-Offset": "1000"}, content=DATA[1000:])
        assert (patched.status_code, patched.headers["Upload-Offset"]) == (204, str(len(DATA)))
        assert client.get(path).content == DATA
        file = folder / "bytes" / path.rpartition("/")[2]
        assert file.read_bytes() == DATA
        assert client.delete(path, headers=TUS).status_code == 204
        assert client.head(path, headers=TUS).status_code == 404
        assert not file.exists()


def test_backends_given_to_the_constructor_serve_uploads(tmp_path: Path, installed: Any) -> None:
    storage = installed.FolderStorage(tmp_path / "bytes")
    state, locker = installed.RecordTable(tmp_path / "records.db"), installed.FileLocker(tmp_path / "locks")
    check_uploads(TusServer(upload_dir=tmp_path / "unused", storage=storage, state=state, locker=locker), tmp_path)
    assert not (tmp_path / "unused").exists()


@pytest.mark.usefixtures("installed")
def test_backends_named_by_entry_points_serve_uploads(tmp_path: Path) -> None:
    plugins: Any = dict.fromkeys(("storage_plugin", "state_plugin", "locker_plugin"), "sample")
    check_uploads(TusServer(upload_dir=tmp_path, **plugins), tmp_path)
    assert not (tmp_path / ".tusd-py").exists()


def test_serve_uploads_to_the_backends_of_its_flags(tmp_path: Path, wheel: Path) -> None:
    flags = dict.fromkeys(("storage_plugin", "state_plugin", "locker_plugin"), "sample")
    with serving(tmp_path, **flags, env={"PYTHONPATH": str(wheel)}) as server:
        location = create(server.url, len(DATA))
        assert patch(location, 0, DATA[:1000]).offset == 1000
        assert patch(location, 1000, DATA[1000:]).offset == len(DATA)
        assert offset_of(location) == len(DATA)
        assert content_of(location) == DATA
    file = next(tmp_path.rglob(location.rpartition("/")[2]))
    assert file.parent.name == "bytes"
    assert file.read_bytes() == DATA
