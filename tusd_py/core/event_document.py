"""The neutral document of a stored event, from which every format of it is made. Pure functions.

A document holds an upload as it was when the event happened, the place of its bytes, and the request that caused it.

There are two formats, since every upload makes two documents and they have to be cheap. Compact: all texts are joined
by newlines into one JSON string, which one call escapes. Plain: a JSON object of the fields, where a text contains a
newline. parse_document reads both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload

# Names of header fields with credentials, of clients and of the proxies in front: their values are neither stored nor
# sent to anybody.
SECRET_HEADER = re.compile(
    "authorization|cookie|token|secret|passw|credential|assertion|jwt|api-?key|oidc-data", re.IGNORECASE
)
MAX_KNOWN_NAMES = 1024  # characters of the names of a request whose classification is remembered
MAX_HEADER_LENGTH = 4096  # characters of one value; a longer one is left out
MAX_HEADERS_LENGTH = 16 << 10  # characters of all together; those beyond are left out


# Fields of a document that are those of the upload.
OF_UPLOAD = (
    "id", "status", "offset", "length", "deferred", "metadata", "owner", "concatenation", "partial_ids", "created_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventRequest:
    """The request that caused an event, without credentials; see `RequestContext`.

    `principal` is empty without authentication.
    """

    method: str
    path: str
    client: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    port: int = 0
    principal: str = ""


@dataclass(frozen=True, slots=True)
class EventDocument:
    """The content of an event.

    Attributes:
        id: the id of the upload.
        status: as in `Status`.
        offset: committed bytes.
        length: None: not known yet.
        deferred: whether the length was not known at the creation.
        metadata: Upload-Metadata byte for byte as the client sent it.
        owner: the principal that created the upload; empty without one.
        concatenation: as in `UploadKind`.
        partial_ids: of a final upload.
        created_at: seconds since the epoch.
        storage: where the bytes are: `type` and `path`, or `bucket` and `key`; empty if nobody can tell.
        request: None for what the server did by itself.
    """

    id: str
    status: str
    offset: int
    length: int | None
    deferred: bool
    metadata: str | None
    owner: str
    concatenation: str
    partial_ids: tuple[str, ...]
    created_at: float
    storage: Mapping[str, str]
    request: EventRequest | None


def document_of(upload: Upload, storage: Mapping[str, str], context: RequestContext | None) -> str:
    """Return the JSON text of an event that happens to an upload now.

    Args:
        upload: the record as the change leaves it.
        storage: where its bytes are.
        context: the request that causes the change, if there is one.
    """
    texts = [upload.id, upload.status, upload.concatenation, upload.owner, upload.metadata or "", *storage]
    texts += storage.values()
    headers: Mapping[str, str] = {}
    if context is not None:
        headers = told_headers(context)
        texts += (context.method, context.path[:MAX_HEADER_LENGTH], context.client, context.principal or "")
        texts += headers
        texts += headers.values()
    text = "\n".join(texts)
    if text.count("\n") != len(texts) - 1:
        return _object_of(upload, storage, context, headers)
    return (
        f'{{"texts":{encode_basestring_ascii(text)},"storage":{len(storage)},'
        f'"port":{"null" if context is None else context.port},"offset":{upload.offset},'
        f'"length":{"null" if upload.length is None else upload.length},'
        f'"deferred":{"true" if upload.deferred else "false"},'
        f'"has_metadata":{"false" if upload.metadata is None else "true"},'
        f'"partial_ids":{json.dumps(upload.partial_ids, separators=(",", ":")) if upload.partial_ids else "[]"},'
        f'"created_at":{upload.created_at!r}}}'
    )


def _object_of(
    upload: Upload, storage: Mapping[str, str], context: RequestContext | None, headers: Mapping[str, str]
) -> str:
    document = {name: getattr(upload, name) for name in OF_UPLOAD} | {"storage": dict(storage), "request": None}
    if context is not None:
        document["request"] = {
            "method": context.method,
            "path": context.path[:MAX_HEADER_LENGTH],
            "client": context.client,
            "headers": dict(headers),
            "port": context.port,
            "principal": context.principal or "",
        }
    return json.dumps(document, separators=(",", ":"))


def told_headers(context: RequestContext) -> Mapping[str, str]:
    """Return the header fields of a request that an event tells: no credentials, and a bounded number of bytes."""
    headers = context.headers
    names = "\n".join(headers)
    if (
        len(names) + sum(map(len, headers.values())) <= MAX_HEADER_LENGTH
        and not has_secret_header(names)
        and context.secret_headers.isdisjoint(headers)
    ):
        return headers
    told, room = {}, MAX_HEADERS_LENGTH
    for name, value in headers.items():
        size = len(name) + len(value)
        if len(value) > MAX_HEADER_LENGTH or size > room:
            continue
        if not has_secret_header(name) and name not in context.secret_headers:
            told[name] = value
            room -= size
    return told


def has_secret_header(names: str) -> bool:
    """Return whether one of these names of header fields, a line each, tells of credentials."""
    return _is_secret(names) if len(names) <= MAX_KNOWN_NAMES else SECRET_HEADER.search(names) is not None


@lru_cache(maxsize=1000)
def _is_secret(names: str) -> bool:
    return SECRET_HEADER.search(names) is not None


def parse_document(text: str) -> EventDocument:
    """Return the content of an event; raises `ValueError` for a text that is no document."""
    try:
        values: dict[str, Any] = json.loads(text)
        if "texts" in values:
            values = _expanded(**values)
        request = values.pop("request")
        return EventDocument(
            **values | {"partial_ids": tuple(values["partial_ids"])},
            request=None if request is None else EventRequest(**request),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no document of an event: {error}") from error


def _expanded(texts: str, storage: int, port: int | None, has_metadata: bool, **values: Any) -> dict[str, Any]:
    """Return a document with lines as an object."""
    lines = texts.split("\n")
    for name, line in zip(("id", "status", "concatenation", "owner", "metadata"), lines, strict=False):
        values[name] = line
    if not has_metadata:
        values["metadata"] = None
    place, lines = lines[5 : 5 + 2 * storage], lines[5 + 2 * storage :]
    values["storage"] = dict(zip(place[:storage], place[storage:], strict=True))
    values["request"] = None
    if port is not None:
        method, path, client, principal, *fields = lines
        count = len(fields) // 2
        headers = dict(zip(fields[:count], fields[count:], strict=True))
        values["request"] = {
            "method": method,
            "path": path,
            "client": client,
            "principal": principal,
            "headers": headers,
            "port": port,
        }
    return values
