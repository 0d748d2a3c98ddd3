"""Events of a server that is mounted in an application: stored with its uploads, delivered while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.support.event_receiver import EventReceiver, check_received
from tests.support.redis_server import shared_redis_url
from tusd_py import TusServer

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}


@contextmanager
def mounted(folder: Path, receiver: EventReceiver, options: dict[str, Any]) -> Iterator[TestClient]:
    """Run an application with the server, from its start to its end."""
    tus = TusServer(upload_dir=folder / "uploads", events_to=receiver.url, **options)
    application = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
    with TestClient(application) as client:
        yield client


def upload(client: TestClient, data: bytes = b"some bytes") -> str:
    answer = client.post("/files", headers={**TUS, "Upload-Length": str(len(data))})
    assert answer.status_code == 201, answer.text
    path = answer.headers["Location"].partition("testserver")[2]
    assert client.patch(path, headers=BYTES, content=data).status_code == 204
    return str(path.rpartition("/")[2])


@pytest.fixture(params=["sqlite", "redis"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "sqlite":
        return {}
    return {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}


def test_events_of_a_mounted_server_arrive_while_the_application_runs(tmp_path: Path, options: dict[str, Any]) -> None:
    with EventReceiver(tmp_path) as receiver, mounted(tmp_path, receiver, options) as client:
        uploads = [upload(client), upload(client)]
        told = check_received(receiver.wait_for(4))
        assert set(told) == set(uploads)
        for events in told.values():
            assert [event["type"] for event in events] == ["tus.upload.created", "tus.upload.finished"]
            assert events[-1]["data"]["request"]["method"] == "PATCH"


def test_events_that_wait_at_the_end_of_an_application_are_delivered_by_the_next(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    receiver = EventReceiver(tmp_path)
    with mounted(tmp_path, receiver, options) as client:
        upload_id = upload(client)
    with receiver, mounted(tmp_path, receiver, options):
        told = check_received(receiver.wait_for(2))
    assert [event["type"] for event in told[upload_id]] == ["tus.upload.created", "tus.upload.finished"]
