from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.support.properties import on_any_machine
from tusd_py.core.clock import rfc3339
from tusd_py.core.event_document import MAX_HEADERS_LENGTH, document_of, parse_document
from tusd_py.core.outbox import EventType, OutboxEvent
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.outbox.cloudevents import render

SOURCE = "https://uploads.example.org"
STORAGE = {"type": "filestore", "path": "/srv/uploads/abc"}
CONTEXT = RequestContext(
    "PATCH",
    "/files/abc",
    {"user-agent": "a client", "authorization": "Bearer secret", "cookie": "secret", "Proxy-Authorization": "secret"},
    "203.0.113.7",
)


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def upload(**changes: Any) -> Upload:
    values: dict[str, Any] = {
        "id": "abc",
        "created_at": 1.0,
        "length": 7,
        "offset": 7,
        "status": Status.COMPLETE,
    } | changes
    return Upload(**values)


def rendered(
    record: Upload, context: RequestContext | None = CONTEXT, source: str = SOURCE, **changes: Any
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "0" * 32,
        "upload_id": record.id,
        "type": EventType.FINISHED,
        "sequence": 2,
        "time": 1e9,
    }
    event = OutboxEvent(**values | changes, document=document_of(record, STORAGE, context), sinks=("a",))
    parsed: dict[str, Any] = json.loads(render(event, source))
    return parsed


def test_event_has_every_attribute() -> None:
    metadata = f"filename {encoded(b'talk.webm')},hash {encoded(bytes([0, 255]))},empty"
    event = rendered(upload(metadata=metadata, owner="alice"))
    assert event == {
        "specversion": "1.0",
        "id": "0" * 32,
        "source": SOURCE,
        "type": "tus.upload.finished",
        "subject": "abc",
        "time": "2001-09-09T01:46:40.000Z",
        "sequence": "0000000002",
        "datacontenttype": "application/json",
        "data": {
            "id": "abc",
            "status": "complete",
            "offset": 7,
            "length": 7,
            "metadata": {"filename": "talk.webm", "hash": {"base64": "AP8="}, "empty": ""},
            "owner": "alice",
            "concatenation": None,
            "partial_ids": [],
            "storage": STORAGE,
            "request": {
                "method": "PATCH",
                "url": f"{SOURCE}/files/abc",
                "client": "203.0.113.7",
                "headers": {"user-agent": "a client"},
            },
        },
    }


def test_unknown_values_are_null() -> None:
    data = rendered(upload(length=None, deferred=True), context=None)["data"]
    assert (data["length"], data["owner"], data["request"], data["concatenation"]) == (None, None, None, None)


def test_final_upload_names_its_parts() -> None:
    data = rendered(upload(concatenation=UploadKind.FINAL, partial_ids=("a", "b")))["data"]
    assert (data["concatenation"], data["partial_ids"]) == ("final", ["a", "b"])


def test_url_of_a_request_is_a_path_without_a_public_url() -> None:
    assert rendered(upload(), source="/files")["data"]["request"]["url"] == "/files/abc"
    assert rendered(upload(), source="/files")["source"] == "/files"


def test_credentials_are_not_even_stored() -> None:
    assert "secret" not in document_of(upload(), STORAGE, CONTEXT)


def test_stored_headers_are_bounded() -> None:
    headers = {f"x-{number}": "v" * 4000 for number in range(100)} | {"long": "v" * 100_000}
    document = document_of(upload(), STORAGE, RequestContext("PATCH", "/files/abc", headers))
    assert len(document) < MAX_HEADERS_LENGTH + 2000
    request = parse_document(document).request
    assert request is not None
    assert "long" not in request.headers


def test_same_event_is_rendered_as_the_same_bytes() -> None:
    document = document_of(upload(metadata="a YQ=="), STORAGE, CONTEXT)
    event = OutboxEvent("0" * 32, "abc", EventType.CREATED, 1, 1.5, document, ())
    assert render(event, SOURCE) == render(event, SOURCE)


def test_names_that_are_no_text_are_rendered_as_valid_json() -> None:
    document = document_of(upload(), {"type": "filestore", "path": "/\udcff"}, None)
    event = OutboxEvent("0" * 32, "abc", EventType.CREATED, 1, 1.5, document, ())
    json.loads(render(event, SOURCE).decode())


@on_any_machine
@given(st.binary(max_size=60), st.text(max_size=60))
def test_any_metadata_and_header_is_rendered(value: bytes, header: str) -> None:
    context = RequestContext("POST", f"/{header}", {"x": header})
    data = rendered(upload(metadata=f"key {encoded(value)}"), context)["data"]
    found = data["metadata"]["key"]
    assert (base64.b64decode(found["base64"]) if isinstance(found, dict) else found.encode()) == value


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"request": 5}', "null", '{"request": null, "partial_ids": 3}'])
def test_text_that_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json or ours
        parse_document(text)


def test_time_has_milliseconds() -> None:
    assert rfc3339(1.0009) == "1970-01-01T00:00:01.000Z"
    assert rfc3339(1764223530.123) == "2025-11-27T06:05:30.123Z"
