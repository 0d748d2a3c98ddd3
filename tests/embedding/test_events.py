"""The events that an application subscribes to: the request they came from, and decoded metadata."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tusd_py import (
    PartialFinished,
    TusServer,
    Upload,
    UploadCreated,
    UploadFinished,
    UploadProgressed,
    UploadTerminated,
)

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
FIRST = {"User-Agent": "first", "X-Request-Id": "1"}
KINDS = (UploadCreated, UploadProgressed, UploadFinished, PartialFinished, UploadTerminated)


@contextmanager
def observed(tus: TusServer) -> Iterator[tuple[TestClient, list[Any]]]:
    events: list[Any] = []
    for kind in KINDS:
        tus.events.subscribe(kind, events.append)
    application = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
    with TestClient(application, client=("192.0.2.7", 1234)) as client:
        yield client, events


def create(client: TestClient, **headers: str) -> str:
    answer = client.post("/files", headers={**TUS, **FIRST, **{n.replace("_", "-"): v for n, v in headers.items()}})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"].partition("testserver")[2]


@pytest.mark.parametrize("durability", ["complete", "never"])
@pytest.mark.parametrize("size", [5, 200_000])
def test_events_of_an_upload_name_the_request_that_caused_them(tmp_path: Path, durability: Any, size: int) -> None:
    with observed(TusServer(upload_dir=tmp_path, durability=durability)) as (client, events):
        path = create(client, Upload_Length=str(size))
        sent = {**BYTES, "Upload-Offset": "0", "User-Agent": "second"}
        assert client.patch(path, headers=sent, content=b"x" * size).status_code == 204
        assert client.delete(path, headers={**TUS, "User-Agent": "third"}).status_code == 204
    told = [(type(event), event.request.method, event.request.headers["user-agent"]) for event in events]
    assert set(told) == {
        (UploadCreated, "POST", "first"),
        (UploadProgressed, "PATCH", "second"),
        (UploadFinished, "PATCH", "second"),
        (UploadTerminated, "DELETE", "third"),
    }
    assert {(event.request.client, event.request.principal) for event in events} == {("192.0.2.7", None)}
    assert [event.request.path for event in events] == ["/files", *[path] * (len(events) - 1)]


def test_events_of_an_empty_upload_and_of_a_concatenation_name_their_request(tmp_path: Path) -> None:
    with observed(TusServer(upload_dir=tmp_path)) as (client, events):
        part = create(client, Upload_Length="0", Upload_Concat="partial")
        create(client, Upload_Concat=f"final;{part}")
    assert [type(event) for event in events] == [UploadCreated, PartialFinished, UploadCreated, UploadFinished]
    assert [event.request.headers["x-request-id"] for event in events] == ["1"] * 4


def test_context_of_a_request_behind_a_trusted_proxy_has_the_address_of_the_client(tmp_path: Path) -> None:
    with observed(TusServer(upload_dir=tmp_path, trusted_proxies="192.0.2.7")) as (client, events):
        create(client, Upload_Length="5", X_Forwarded_For="198.51.100.9", Authorization="secret")
    assert events[0].request.client == "198.51.100.9"
    assert "secret" not in repr(events[0])


def test_decoded_metadata_is_text_by_key(tmp_path: Path) -> None:
    name, odd = (base64.b64encode(value).decode() for value in ("Gespräch.webm".encode(), b"a\xff"))
    with observed(TusServer(upload_dir=tmp_path)) as (client, events):
        create(client, Upload_Length="5", Upload_Metadata=f"filename {name},draft,odd {odd}")
    metadata = events[0].upload.decoded_metadata
    assert metadata == {"filename": "Gespräch.webm", "draft": "", "odd": "a\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("metadata", [None, "", "filename not/base64!", "a AAAA,a AAAA"])
def test_decoded_metadata_of_a_record_without_readable_metadata_is_empty(metadata: str | None) -> None:
    assert Upload("a", 0.0, metadata=metadata).decoded_metadata == {}
