"""The neutral document of a stored event, from which every format of it is made. Pure functions.

A document holds an upload as it was when the event happened, the place of its bytes, and the request that caused it.
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
MAX_KNOWN_NAME = 64  # characters of a name whose classification is remembered
MAX_HEADER_LENGTH = 4096  # characters of one value; a longer one is left out
_text = encode_basestring_ascii
MAX_HEADERS_LENGTH = 16 << 10  # characters of all together; those beyond are left out


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
    # Written by hand, since every upload has two documents: an encoder of dictionaries takes longer.
    return (
        f'{{"id":{_text(upload.id)},"status":{_text(upload.status)},"offset":{upload.offset},'
        f'"length":{"null" if upload.length is None else upload.length},'
        f'"deferred":{"true" if upload.deferred else "false"},'
        f'"metadata":{"null" if upload.metadata is None else _text(upload.metadata)},'
        f'"owner":{_text(upload.owner)},"concatenation":{_text(upload.concatenation)},'
        f'"partial_ids":[{",".join(map(_text, upload.partial_ids))}],"created_at":{upload.created_at!r},'
        f'"storage":{_texts(storage)},"request":{_request(context)}}}'
    )


def _request(context: RequestContext | None) -> str:
    if context is None:
        return "null"
    request = request_of(context)
    principal = f',"principal":{_text(request.principal)}' if request.principal else ""
    return (
        f'{{"method":{_text(request.method)},"path":{_text(request.path)},"client":{_text(request.client)},'
        f'"headers":{_texts(request.headers)},"port":{request.port}{principal}}}'
    )


def _texts(values: Mapping[str, str]) -> str:
    return f"{{{','.join([f'{_text(name)}:{_text(value)}' for name, value in values.items()])}}}"


def request_of(context: RequestContext) -> EventRequest:
    """Return what an event tells of a request: no credentials, and a bounded number of bytes."""
    headers, room = {}, MAX_HEADERS_LENGTH
    for name, value in context.headers.items():
        size = len(name) + len(value)
        if len(value) > MAX_HEADER_LENGTH or size > room:
            continue
        if not is_secret_header(name) and name not in context.secret_headers:
            headers[name] = value
            room -= size
    path = context.path[:MAX_HEADER_LENGTH]
    return EventRequest(context.method, path, context.client, headers, context.port, context.principal or "")


def is_secret_header(name: str) -> bool:
    """Return whether the name of a header field tells of credentials."""
    return _is_secret(name) if len(name) <= MAX_KNOWN_NAME else SECRET_HEADER.search(name) is not None


@lru_cache(maxsize=1000)
def _is_secret(name: str) -> bool:
    return SECRET_HEADER.search(name) is not None


def parse_document(text: str) -> EventDocument:
    """Return the content of an event; raises `ValueError` for a text that is no document."""
    try:
        values: dict[str, Any] = json.loads(text)
        request = values.pop("request")
        return EventDocument(
            **values | {"partial_ids": tuple(values["partial_ids"])},
            request=None if request is None else EventRequest(**request),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no document of an event: {error}") from error
