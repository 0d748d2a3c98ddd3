"""The wire format of tusd 2.x for hooks: questions out, answers in. Pure functions.

With authentication, questions have `Owner` and `Principal` beside the fields of tusd.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tusd_py.contracts.auth import MAX_OWNER_LENGTH, is_owner
from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse, HookType, UploadChanges
from tusd_py.core.event_document import EventDocument, EventRequest
from tusd_py.core.metadata import decode_metadata
from tusd_py.core.upload import MAX_UPLOAD_SIZE, RESERVED_IDS, UPLOAD_ID
from tusd_py.core.upload_codec import LATEST

MAX_ANSWER = 64 << 10  # bytes
FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.1
FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

Json = Mapping[str, Any]


class InvalidAnswer(ValueError):
    """An answer of a hook that cannot be followed; the text says why, for the operator."""


def question(call: HookCall) -> bytes:
    """Return the JSON of a blocking hook, with all header fields of the request."""
    upload, request = call.upload, call.request
    document = EventDocument(
        id=upload.id,
        status=upload.status,
        offset=upload.offset,
        length=upload.length,
        deferred=upload.deferred,
        metadata=upload.metadata,
        owner=upload.owner,
        concatenation=upload.concatenation,
        partial_ids=upload.partial_ids,
        created_at=upload.created_at,
        storage=call.storage,
        request=None
        if request is None
        else EventRequest(
            request.method, request.uri, request.client, request.headers, request.port, request.principal or ""
        ),
    )
    return notification(call.type, document)


def notification(hook: HookType, document: EventDocument) -> bytes:
    """Return the JSON of a hook that tells of a stored event."""
    event = {"Upload": _upload(document), "HTTPRequest": _request(document.request)}
    message = {"Type": hook, "Event": event}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _upload(document: EventDocument) -> Json:
    return {
        "ID": document.id,
        "Size": document.length or 0,
        "SizeIsDeferred": document.length is None,
        "Offset": document.offset,
        "MetaData": decode_metadata(document.metadata or ""),
        "IsPartial": document.concatenation == "partial",
        "IsFinal": document.concatenation == "final",
        "PartialUploads": list(document.partial_ids) or None,
        "Storage": _storage(document.storage),
        **({"Owner": document.owner} if document.owner else {}),
    }


def _storage(storage: Mapping[str, str]) -> Json | None:
    """Return the place of the bytes with the names that tusd gives its keys."""
    return {key[:1].upper() + key[1:]: value for key, value in storage.items()} or None


def _request(request: EventRequest | None) -> Json:
    if request is None:
        return {"Method": "", "URI": "", "RemoteAddr": "", "Header": None}
    return {
        "Method": request.method,
        "URI": request.path,
        "RemoteAddr": _address(request.client, request.port),
        "Header": {canonical_name(name): [value] for name, value in request.headers.items()},
        **({"Principal": request.principal} if request.principal else {}),
    }


def _address(host: str, port: int) -> str:
    """Return host and port as Go writes them; the port is 0 if only a proxy knows it."""
    if not host:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
    _check_type("status", response.status, int)
    _check_type("body", response.body, str)
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
        expires_at=_time(_typed(values, "ExpiresAt", str, default="")),
        owner=_typed(values, "Owner", str, default="") or None,
        max_size=_typed(values, "MaxSize", int, default=None),
    )
    check_changes(changes)
    return None if changes == UploadChanges() else changes


def _time(text: str) -> float | None:
    """Return the seconds since the epoch of a time in the form of RFC 3339; None for an empty text."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise InvalidAnswer("ExpiresAt in the answer is no time such as 2026-11-27T06:15:30Z")
    return moment.timestamp()


def check_changes(changes: UploadChanges) -> None:
    """Raise `InvalidAnswer` for changes that no upload can have."""
    for name in ("id", "path", "owner"):
        _check_type(name, getattr(changes, name), str)
    _check_type("largest size", changes.max_size, int)
    _check_type("expiry", changes.expires_at, (int, float))
    if changes.id is not None and not UPLOAD_ID.fullmatch(changes.id):
        raise InvalidAnswer("the id in the answer is not 1 to 128 of the characters A-Z, a-z, 0-9, _ and -")
    if changes.id in RESERVED_IDS:
        raise InvalidAnswer(f"the id in the answer is one of {', '.join(sorted(RESERVED_IDS))}, which are pages")
    if changes.owner is not None and not is_owner(changes.owner):
        raise InvalidAnswer(
            f"the owner in the answer is not 1 to {MAX_OWNER_LENGTH} printable characters without spaces around them"
        )
    if changes.max_size is not None and not 0 <= changes.max_size <= MAX_UPLOAD_SIZE:
        raise InvalidAnswer(f"the largest size in the answer is not a number from 0 to {MAX_UPLOAD_SIZE}")
    if changes.expires_at is not None and not 0 <= changes.expires_at < LATEST:
        raise InvalidAnswer("the expiry in the answer is out of range")
    for key, value in (changes.metadata or {}).items():
        _check_type("metadata", value, str)
        if not key or not key.isascii() or not key.isprintable() or " " in key or "," in key:
            raise InvalidAnswer(
                "the metadata in the answer have a key that is not printable ASCII without space, comma"
            )


def _check_type(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InvalidAnswer(f"the {name} in the answer is of the wrong type")
