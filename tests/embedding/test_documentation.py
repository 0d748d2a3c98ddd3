"""The examples of docs/embedding.md, as they stand there."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.harness import ROOT
from tusd_py import RequestFinished

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
DATA = b"five bytes, or a few more"
PAGE = (ROOT / "docs" / "embedding.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "example", ModuleType("example"))
    return tmp_path


def run(title: str) -> dict[str, Any]:
    """Run the example of a section as the module `example`; returns its names."""
    names = vars(sys.modules["example"])
    exec(compile(EXAMPLES[title], title, "exec", dont_inherit=True), names)
    return names


def upload(client: Any, endpoint: str = "/files") -> str:
    """Upload `DATA`; returns the id. The URL of the upload is that of the endpoint and the id."""
    metadata = f"filename {base64.b64encode(b'talk.txt').decode()}"
    created = client.post(endpoint, headers={**TUS, "Upload-Length": str(len(DATA)), "Upload-Metadata": metadata})
    assert created.status_code == 201, created.text
    path, _, upload_id = created.headers["Location"].rpartition("/")
    assert path.endswith("/files")
    assert client.patch(f"/files/{upload_id}", headers=BYTES, content=DATA).status_code == 204
    assert client.get(f"/files/{upload_id}").content == DATA
    return str(upload_id)


def test_every_python_block_of_the_page_is_an_example_of_a_section() -> None:
    assert len(EXAMPLES) == PAGE.count("```python")


@pytest.mark.parametrize("endpoint", ["/files", "/files/"])
def test_starlette_example(capsys: pytest.CaptureFixture[str], endpoint: str) -> None:
    with TestClient(run("Starlette")["app"]) as client:
        upload_id = upload(client, endpoint)
    assert f"talk.txt: {len(DATA)} bytes in uploads/{upload_id}" in capsys.readouterr().out


def test_fastapi_example() -> None:
    with TestClient(run("FastAPI")["app"]) as client:
        upload_id = upload(client)
        shown = client.get(f"/uploads/{upload_id}").json()
        assert shown == {"offset": len(DATA), "length": len(DATA), "filename": "talk.txt"}
        assert client.get("/uploads/unknown").status_code == 404


@pytest.mark.parametrize("endpoint", ["/files", "/files/"])
def test_litestar_example(endpoint: str) -> None:
    testing = pytest.importorskip("litestar.testing")
    with testing.TestClient(run("Litestar")["app"]) as client:
        upload(client, endpoint)


def test_litestar_mount_reports_the_path_that_the_client_asked_for() -> None:
    testing = pytest.importorskip("litestar.testing")
    names = run("Litestar")
    paths: list[str] = []
    names["tus"].events.observe(RequestFinished, lambda event: paths.append(event.path))
    with testing.TestClient(names["app"]) as client:
        upload_id = upload(client)
        assert client.get("/files/a%20b?c=d").status_code == 404
    assert paths == ["/files", f"/files/{upload_id}", f"/files/{upload_id}", "/files/a b"]


def test_settings_example() -> None:
    names = run("Settings")
    assert names["tus"].settings.max_size == 5 << 30
    with TestClient(names["app"]) as client:
        upload(client)


def test_events_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("Events")
    with TestClient(names["app"]) as client:
        upload_id = upload(client)
        assert names["digests"] == {upload_id: hashlib.sha256(DATA).hexdigest()}
        assert client.delete(f"/files/{upload_id}", headers=TUS).status_code == 204
        assert names["digests"] == {}
    assert f"{upload_id} created by testclient testclient" in capsys.readouterr().out


def test_uploads_example() -> None:
    names = run("Uploads")
    with TestClient(names["app"]) as client:
        uploaded = sorted(upload(client) for _ in range(3))
        assert client.get("/remove").json() == uploaded
        assert client.get("/remove").json() == []
        assert client.get(f"/files/{uploaded[0]}").status_code == 404


def test_components_example(folder: Path) -> None:
    with TestClient(run("Components of your own")["app"]) as client:
        upload_id = upload(client)
    assert (folder / "bytes" / upload_id).read_bytes() == DATA
    assert not (folder / "records" / upload_id).exists()
