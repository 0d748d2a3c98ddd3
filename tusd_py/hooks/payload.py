"""The wire format of tusd 2.x for hooks: questions out, answers in. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse, HookType, UploadChanges
from tusd_py.core.event_document import EventDocument
from tusd_py.core.metadata import decode_metadata
from tusd_py.core.upload import UPLOAD_ID

MAX_ANSWER = 64 << 10  # bytes
FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.1
FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
NO_CONTENT = frozenset({204, 205, 304})
# Fields of the connection and of the server, which no hook sets.
FIXED_FIELDS = frozenset({"connection", "content-length", "location", "transfer-encoding", "trailer", "upgrade"})

Json = Mapping[str, Any]


class InvalidAnswer(ValueError):
    """An answer of a hook that cannot be followed; the text says why, for the operator."""


def question(call: HookCall) -> bytes:
    """Return the JSON of a blocking hook, with all header fields of the request."""
    upload, request = call.upload, call.request
    return _dump(
        call.type,
        _upload(
            upload_id=upload.id,
            length=upload.length,
            offset=upload.offset,
            metadata=upload.metadata,
            concatenation=upload.concatenation,
            partial_ids=upload.partial_ids,
            storage=call.storage,
        ),
        _NO_REQUEST
        if request is None
        else _request(request.method, request.path, request.client, {n: [v] for n, v in request.headers.items()}),
    )


def notification(hook: HookType, document: EventDocument) -> bytes:
    """Return the JSON of a hook that tells of a stored event."""
    request = document.request
    return _dump(
        hook,
        _upload(
            upload_id=document.id,
            length=document.length,
            offset=document.offset,
            metadata=document.metadata,
            concatenation=document.concatenation,
            partial_ids=document.partial_ids,
            storage=document.storage,
        ),
        _NO_REQUEST
        if request is None
        else _request(request.method, request.path, request.client, {n: [v] for n, v in request.headers.items()}),
    )


def _dump(hook: HookType, upload: Json, request: Json) -> bytes:
    return json.dumps(
        {"Type": hook, "Event": {"Upload": upload, "HTTPRequest": request}}, ensure_ascii=False, separators=(",", ":")
    ).encode("utf-8", "replace")


def _upload(
    *,
    upload_id: str,
    length: int | None,
    offset: int,
    metadata: str | None,
    concatenation: str,
    partial_ids: Sequence[str],
    storage: Mapping[str, str],
) -> Json:
    return {
        "ID": upload_id,
        "Size": length or 0,
        "SizeIsDeferred": length is None,
        "Offset": offset,
        "MetaData": decode_metadata(metadata or ""),
        "IsPartial": concatenation == "partial",
        "IsFinal": concatenation == "final",
        "PartialUploads": list(partial_ids) or None,
        "Storage": _storage(storage),
    }


def _storage(storage: Mapping[str, str]) -> Json | None:
    """Return the place of the bytes with the names that tusd gives its keys."""
    return {key[:1].upper() + key[1:]: value for key, value in storage.items()} or None


_NO_REQUEST: Json = {"Method": "", "URI": "", "RemoteAddr": "", "Header": None}


def _request(method: str, uri: str, client: str, headers: Mapping[str, Sequence[str]]) -> Json:
    fields = {canonical_name(name): list(values) for name, values in headers.items()}
    return {"Method": method, "URI": uri, "RemoteAddr": client, "Header": fields}


def canonical_name(name: str) -> str:
    """Return the name of a header field as Go writes it: `upload-length` is `Upload-Length`."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


# Answers.


def parse_answer(hook: HookType, body: bytes) -> HookAnswer:
    """Return the answer of a hook; parts that the hook is not entitled to are passed over, as tusd does.

    Raises:
        InvalidAnswer: it is no JSON object, or a part has the wrong type or cannot be followed.
    """
    if len(body) > MAX_ANSWER:
        raise InvalidAnswer(f"the answer has more than {MAX_ANSWER >> 10} KiB")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidAnswer("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise InvalidAnswer("the answer is no JSON object")
    reject = _typed(answer, "RejectUpload", bool, default=False)
    reject_termination = _typed(answer, "RejectTermination", bool, default=False)
    stop = _typed(answer, "StopUpload", bool, default=False)
    changes = _changes(_typed(answer, "ChangeFileInfo", dict, default={}))
    return HookAnswer(
        response=_response(_typed(answer, "HTTPResponse", dict, default={})),
        reject=reject_termination
        if hook is HookType.PRE_TERMINATE
        else (reject and hook in (HookType.PRE_CREATE, HookType.PRE_FINISH)),
        changes=changes if hook is HookType.PRE_CREATE else None,
        stop=stop and hook is HookType.POST_RECEIVE,
    )


def _typed(values: Json, name: str, kind: type, *, default: Any) -> Any:
    """Return a value of an answer by its name, in any case as Go reads it; null and absence give the default."""
    value = values.get(name)
    if value is None:
        value = next((other for key, other in values.items() if key.lower() == name.lower()), None)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidAnswer(f"{name} in the answer is of the wrong type")
    return value


def _texts(values: Json, name: str) -> Mapping[str, str] | None:
    texts = _typed(values, name, dict, default=None)
    if texts is not None and not all(isinstance(value, str) for value in texts.values()):
        raise InvalidAnswer(f"{name} in the answer has a value that is no text")
    found: Mapping[str, str] | None = texts
    return found


def _response(values: Json) -> HookResponse | None:
    response = HookResponse(
        status=_typed(values, "StatusCode", int, default=0) or None,
        headers=_texts(values, "Header") or {},
        body=_typed(values, "Body", str, default="") or None,
    )
    check_response(response)
    return None if response == HookResponse() else response


def check_response(response: HookResponse) -> None:
    """Raise `InvalidAnswer` for a response that HTTP cannot carry."""
    if response.status is not None and not 200 <= response.status <= 599:
        raise InvalidAnswer(f"{response.status} is no status of a final answer")
    for name, value in response.headers.items():
        if not FIELD_NAME.fullmatch(name):
            raise InvalidAnswer("the answer has a header field with an invalid name")
        if not FIELD_VALUE.fullmatch(value):
            raise InvalidAnswer(f"the header field {name} of the answer has an invalid value")


def _changes(values: Json) -> UploadChanges | None:
    storage = _texts(values, "Storage") or {}
    changes = UploadChanges(
        id=_typed(values, "ID", str, default="") or None,
        metadata=_texts(values, "MetaData"),
        path=storage.get("Path") or storage.get("Key") or None,
    )
    check_changes(changes)
    return None if changes == UploadChanges() else changes


def check_changes(changes: UploadChanges) -> None:
    """Raise `InvalidAnswer` for changes that no upload can have."""
    if changes.id is not None and not UPLOAD_ID.fullmatch(changes.id):
        raise InvalidAnswer("the id in the answer is not 1 to 128 of the characters A-Z, a-z, 0-9, _ and -")
    for key in changes.metadata or {}:
        if not key or not key.isascii() or not key.isprintable() or " " in key or "," in key:
            raise InvalidAnswer(
                "the metadata in the answer have a key that is not printable ASCII without space, comma"
            )
