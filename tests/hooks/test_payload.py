import json
from typing import Any

import pytest

from tusd_py.contracts.hooks import HookCall, HookResponse, HookType, UploadChanges
from tusd_py.core.event_document import document_of, parse_document
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.hooks.payload import MAX_ANSWER, InvalidAnswer, notification, parse_answer, question

REQUEST = RequestContext("POST", "/files/", {"host": "localhost:8080", "upload-length": "100"}, "127.0.0.1", port=5678)
UPLOAD = Upload("", 0.0, length=100, metadata="filename aGVsbG8udHh0,filetype dGV4dC9wbGFpbg==")


def sent(call: HookCall) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(question(call))
    return payload


def test_the_question_of_pre_create_has_the_documented_fields_of_tusd() -> None:
    assert sent(HookCall(HookType.PRE_CREATE, UPLOAD, REQUEST)) == {
        "Type": "pre-create",
        "Event": {
            "Upload": {
                "ID": "",
                "Size": 100,
                "SizeIsDeferred": False,
                "Offset": 0,
                "MetaData": {"filename": "hello.txt", "filetype": "text/plain"},
                "IsPartial": False,
                "IsFinal": False,
                "PartialUploads": None,
                "Storage": None,
            },
            "HTTPRequest": {
                "Method": "POST",
                "URI": "/files/",
                "RemoteAddr": "127.0.0.1:5678",
                "Header": {"Host": ["localhost:8080"], "Upload-Length": ["100"]},
            },
        },
    }


def test_a_blocking_hook_sees_the_credentials_of_the_client() -> None:
    request = RequestContext("POST", "/files/", {"authorization": "Bearer x", "cookie": "a=b"})

    header = sent(HookCall(HookType.PRE_CREATE, UPLOAD, request))["Event"]["HTTPRequest"]["Header"]

    assert header == {"Authorization": ["Bearer x"], "Cookie": ["a=b"]}


def test_question_and_notification_name_owner_and_principal_if_there_are_any() -> None:
    upload = Upload("f1", 0.0, length=100, owner="ann")
    request = RequestContext("DELETE", "/files/f1", {}, principal="root")
    told = json.loads(notification(HookType.POST_TERMINATE, parse_document(document_of(upload, {}, request))))

    for payload in (sent(HookCall(HookType.PRE_TERMINATE, upload, request)), told):
        assert payload["Event"]["Upload"]["Owner"] == "ann"
        assert payload["Event"]["HTTPRequest"]["Principal"] == "root"


def test_a_notification_has_the_same_form_without_the_credentials() -> None:
    upload = Upload("f1", 0.0, length=100, offset=100, concatenation=UploadKind.FINAL, partial_ids=("a", "b"))
    request = RequestContext("POST", "/files/", {"authorization": "Bearer x", "host": "h"})
    document = parse_document(document_of(upload, {"type": "filestore", "path": "/data/f1"}, request))

    payload = json.loads(notification(HookType.POST_FINISH, document))

    assert payload["Type"] == "post-finish"
    assert payload["Event"]["Upload"]["PartialUploads"] == ["a", "b"]
    assert payload["Event"]["Upload"]["IsFinal"] is True
    assert payload["Event"]["Upload"]["Storage"] == {"Type": "filestore", "Path": "/data/f1"}
    assert payload["Event"]["HTTPRequest"]["Header"] == {"Host": ["h"]}


def test_a_deferred_length_is_size_zero_and_a_flag() -> None:
    upload = sent(HookCall(HookType.PRE_CREATE, Upload("", 0.0, deferred=True)))["Event"]["Upload"]

    assert (upload["Size"], upload["SizeIsDeferred"]) == (0, True)


def test_metadata_that_are_not_utf_8_become_replacement_characters() -> None:
    upload = sent(HookCall(HookType.PRE_CREATE, Upload("", 0.0, length=1, metadata="name /w==")))["Event"]["Upload"]

    assert upload["MetaData"] == {"name": "\ufffd"}


def test_a_documented_rejection_is_read() -> None:
    answer = parse_answer(
        HookType.PRE_CREATE,
        b'{"HTTPResponse": {"StatusCode": 400, "Body": "{\\"message\\":\\"no project\\"}",'
        b' "Header": {"Content-Type": "application/json"}}, "RejectUpload": true}',
    )

    assert answer.reject
    assert answer.response == HookResponse(400, {"Content-Type": "application/json"}, '{"message":"no project"}')


def test_documented_changes_are_read() -> None:
    answer = parse_answer(
        HookType.PRE_CREATE,
        b'{"ChangeFileInfo": {"ID": "my-id", "MetaData": {"filename": "x"}, "Storage": {"Path": "a/b.bin"}}}',
    )

    assert answer.changes == UploadChanges(id="my-id", metadata={"filename": "x"}, path="a/b.bin")


@pytest.mark.parametrize("text", ["{}", '{"ChangeFileInfo": null, "HTTPResponse": null}', '{"RejectUpload": false}'])
def test_an_answer_without_content_changes_nothing(text: str) -> None:
    answer = parse_answer(HookType.PRE_CREATE, text.encode())

    assert (answer.response, answer.reject, answer.changes, answer.stop) == (None, False, None, False)


def test_metadata_of_null_are_kept_and_empty_ones_are_cleared() -> None:
    kept = parse_answer(HookType.PRE_CREATE, b'{"ChangeFileInfo": {"ID": "x", "MetaData": null}}').changes
    cleared = parse_answer(HookType.PRE_CREATE, b'{"ChangeFileInfo": {"MetaData": {}}}').changes

    assert kept is not None
    assert kept.metadata is None
    assert cleared is not None
    assert cleared.metadata == {}


@pytest.mark.parametrize(
    ("hook", "text", "rejects", "stops"),
    [
        (HookType.PRE_CREATE, '{"RejectUpload": true}', True, False),
        (HookType.PRE_FINISH, '{"RejectUpload": true}', True, False),
        (HookType.PRE_TERMINATE, '{"RejectUpload": true}', False, False),
        (HookType.PRE_TERMINATE, '{"RejectTermination": true}', True, False),
        (HookType.PRE_CREATE, '{"RejectTermination": true}', False, False),
        (HookType.POST_RECEIVE, '{"StopUpload": true}', False, True),
        (HookType.PRE_CREATE, '{"StopUpload": true}', False, False),
    ],
)
def test_a_hook_decides_only_what_it_is_asked(hook: HookType, text: str, rejects: bool, stops: bool) -> None:
    answer = parse_answer(hook, text.encode())

    assert (answer.reject, answer.stop) == (rejects, stops)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        '"text"',
        '{"RejectUpload": "yes"}',
        '{"HTTPResponse": []}',
        '{"HTTPResponse": {"StatusCode": "400"}}',
        '{"HTTPResponse": {"StatusCode": true}}',
        '{"HTTPResponse": {"StatusCode": 100}}',
        '{"HTTPResponse": {"StatusCode": 999}}',
        '{"HTTPResponse": {"Header": {"X-A": 1}}}',
        '{"HTTPResponse": {"Header": {"X A": "b"}}}',
        '{"HTTPResponse": {"Header": {"X-A": "b\\r\\nSet-Cookie: c"}}}',
        '{"HTTPResponse": {"Header": {"X-A": "\\u20ac"}}}',
        '{"ChangeFileInfo": {"ID": "../x"}}',
        '{"ChangeFileInfo": {"ID": 7}}',
        '{"ChangeFileInfo": {"MetaData": {"a": 1}}}',
        '{"ChangeFileInfo": {"MetaData": {"a b": "c"}}}',
        "[" * 5000,
    ],
)
def test_an_answer_that_cannot_be_followed_is_refused(text: str) -> None:
    with pytest.raises(InvalidAnswer):
        parse_answer(HookType.PRE_CREATE, text.encode())


def test_an_answer_of_more_than_64_kib_is_refused() -> None:
    with pytest.raises(InvalidAnswer, match="64 KiB"):
        parse_answer(HookType.PRE_CREATE, b"{" + b" " * MAX_ANSWER + b"}")


def test_the_answer_of_tusds_example_handler_is_read() -> None:
    """The handler spells `Headers`, which tusd passes over too."""
    answer = parse_answer(
        HookType.PRE_CREATE,
        b'{"HTTPResponse": {"Headers": {"X-Some-Header": "yes"}, "StatusCode": 400, "Body": "no filename provided"},'
        b' "RejectUpload": true}',
    )

    assert answer.response == HookResponse(400, {}, "no filename provided")
