"""The documents of stored events: texts that are written by hand are JSON of what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tusd_py.core.event_document import EventDocument, EventRequest, document_of, parse_document
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadKind

PLAIN = Upload(
    id="a", created_at=1.5e9, length=5, offset=5, status=Status.COMPLETE, metadata='name "\u00e9"', owner="o"
)
ODD = Upload(
    id='"\\\udc80\n',
    created_at=1.25,
    length=None,
    deferred=True,
    metadata=None,
    concatenation=UploadKind.FINAL,
    partial_ids=("a", '"b"'),
)
REQUEST = RequestContext("POST", '/f"\n', {"user-agent": '"\u00e9\udc80', "authorization": "secret"}, "::1", port=5)
TOLD = EventRequest("POST", '/f"\n', "::1", {"user-agent": '"\u00e9\udc80'}, 5)


def told(context: RequestContext) -> Mapping[str, str]:
    """Return the header fields in the document of an event."""
    text = document_of(PLAIN, {}, context)
    assert "secret" not in text
    request = parse_document(text).request
    assert request is not None
    return request.headers


@pytest.mark.parametrize("request_context", [None, REQUEST], ids=["none", "request"])
@pytest.mark.parametrize("storage", [{}, {"type": "filestore", "path": '/a"\udc80'}], ids=["nowhere", "somewhere"])
@pytest.mark.parametrize("upload", [PLAIN, ODD], ids=["plain", "odd"])
def test_document_is_parsed_as_it_was_made(
    upload: Upload, storage: dict[str, str], request_context: RequestContext | None
) -> None:
    text = document_of(upload, storage, request_context)
    assert text.isascii()
    assert text == json.dumps(json.loads(text), separators=(",", ":"))
    request = None if request_context is None else TOLD
    names = set(EventDocument.__slots__) - {"storage", "request"}
    values = {name: getattr(upload, name) for name in names}
    assert parse_document(text) == EventDocument(**values, storage=storage, request=request)


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Proxy-Authorization",
        "cookie",
        "x-token",
        "x-auth-request-access-token",
        "x-forwarded-access-token",
        "x-csrf-token",
        "x-amzn-oidc-data",
        "cf-access-jwt-assertion",
        "X-API-Key",
        "apikey",
        "x-client-secret",
        "x-password",
        f"x-{'a' * 100}-token",
    ],
)
def test_field_with_credentials_is_in_no_document(name: str) -> None:
    context = RequestContext("GET", "/", {name: "secret", "user-agent": "a client"})
    assert told(context) == {"user-agent": "a client"}


def test_field_that_the_authenticator_names_is_in_no_document() -> None:
    fields = {"x-session": "secret", "upload-metadata": "token c2VjcmV0", "x-key": "1"}
    context = RequestContext("GET", "/", fields, secret_headers=frozenset({"x-session"}))
    assert told(context) == {"upload-metadata": "token c2VjcmV0", "x-key": "1"}


def test_document_of_an_earlier_version_names_no_principal() -> None:
    document = parse_document(document_of(PLAIN, {}, REQUEST))
    assert document.request is not None
    assert document.request.principal == ""
    named = parse_document(document_of(PLAIN, {}, replace(REQUEST, principal='"ann"')))
    assert named.request is not None
    assert named.request.principal == '"ann"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"a": ""}, {"a": ""}),
        ({"host": "h", "user-agent": "u a", "accept": ""}, {"host": "h", "user-agent": "u a", "accept": ""}),
        ({"a": "two\nlines", "b": "c"}, {"a": "two\nlines", "b": "c"}),
        ({"a\nb": "c"}, {"a\nb": "c"}),
        ({"host": "h", "Cookie": "secret", "PROXY-authorization": "secret"}, {"host": "h"}),
        ({"cookie": "secret"}, {}),
        ({"long": "v" * 5000, "short": "v"}, {"short": "v"}),
        ({f"name-{number}": "" for number in range(200)}, {f"name-{number}": "" for number in range(200)}),
    ],
)
def test_headers_without_credentials_are_parsed_as_they_were_sent(
    headers: dict[str, str], expected: dict[str, str]
) -> None:
    assert told(RequestContext("POST", "/", headers)) == expected


def test_a_document_of_texts_in_lines_is_that_of_an_object() -> None:
    context = RequestContext("POST", "/", {"host": "h", "accept": "*/*"}, "::1", "ann")
    text, broken = (document_of(PLAIN, {"type": "t", "path": path}, context) for path in ("/p", "/\n"))
    assert "texts" in json.loads(text)
    assert "texts" not in json.loads(broken)
    assert parse_document(text) == replace(parse_document(broken), storage={"type": "t", "path": "/p"})
