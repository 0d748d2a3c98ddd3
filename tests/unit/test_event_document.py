"""The documents of stored events: texts that are written by hand are JSON of what they were made of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tusd_py.core.event_document import EventDocument, document_of, parse_document, request_of
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


@pytest.mark.parametrize("request_context", [None, REQUEST], ids=["none", "request"])
@pytest.mark.parametrize("storage", [{}, {"type": "filestore", "path": '/a"\udc80'}], ids=["nowhere", "somewhere"])
@pytest.mark.parametrize("upload", [PLAIN, ODD], ids=["plain", "odd"])
def test_document_is_parsed_as_it_was_made(
    upload: Upload, storage: dict[str, str], request_context: RequestContext | None
) -> None:
    text = document_of(upload, storage, request_context)
    assert text.isascii()
    assert text == json.dumps(json.loads(text), separators=(",", ":"))
    request = None if request_context is None else request_of(request_context)
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
    assert request_of(context).headers == {"user-agent": "a client"}


def test_field_that_the_authenticator_names_is_in_no_document() -> None:
    fields = {"x-session": "secret", "upload-metadata": "token c2VjcmV0", "x-key": "1"}
    context = RequestContext("GET", "/", fields, secret_headers=frozenset({"x-session"}))
    assert request_of(context).headers == {"upload-metadata": "token c2VjcmV0", "x-key": "1"}


def test_document_of_an_earlier_version_names_no_principal() -> None:
    document = parse_document(document_of(PLAIN, {}, REQUEST))
    assert document.request is not None
    assert document.request.principal == ""
    named = parse_document(document_of(PLAIN, {}, replace(REQUEST, principal='"ann"')))
    assert named.request is not None
    assert named.request.principal == '"ann"'


def test_upload_with_next_event_differs_in_the_number_alone() -> None:
    after = ODD.with_next_event().with_next_event()
    assert (after.event_sequence, ODD.event_sequence) == (2, 0)
    assert {name: getattr(after, name) for name in Upload.__slots__ if name != "event_sequence"} == {
        name: getattr(ODD, name) for name in Upload.__slots__ if name != "event_sequence"
    }
