"""Events as CloudEvents 1.0 in JSON, structured mode. Pure functions."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tusd_py.core.clock import rfc3339
from tusd_py.core.event_document import EventRequest, parse_document
from tusd_py.core.metadata import parse_metadata
from tusd_py.core.outbox import OutboxEvent

MEDIA_TYPE = "application/cloudevents+json; charset=utf-8"


def type_name(event: OutboxEvent) -> str:
    """Return the type of an event as receivers see it, such as `tus.upload.finished`."""
    return f"tus.upload.{event.type}"


def render(event: OutboxEvent, source: str) -> bytes:
    """Return the JSON of an event, the same bytes at every attempt.

    Args:
        event: the event as stored.
        source: the URL of the server, below which the paths of requests are; or a path, if it is not known.
    """
    envelope = {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": type_name(event),
        "subject": event.upload_id,
        "time": rfc3339(event.time),
        # A text that sorts like the number, as the extension demands.
        "sequence": f"{event.sequence:010d}",
        "datacontenttype": "application/json",
        "data": data_of(event, source),
    }
    # Names of files may hold bytes that are no text.
    return json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def data_of(event: OutboxEvent, source: str = "") -> dict[str, Any]:
    """Return the data of an event: the upload as it was, its place in the storage, and the request."""
    document = parse_document(event.document)
    return {
        "id": event.upload_id,
        "status": document.status,
        "offset": document.offset,
        "length": document.length,
        "metadata": readable(document.metadata),
        "owner": document.owner or None,
        "concatenation": document.concatenation or None,
        "partial_ids": list(document.partial_ids),
        "storage": dict(document.storage) or None,
        "request": None if document.request is None else _request(document.request, source),
    }


def _request(request: EventRequest, source: str) -> dict[str, Any]:
    path = quote(request.path, safe="/~", errors="replace")
    return {
        "method": request.method,
        "url": f"{source}{path}" if "://" in source else path,
        "client": request.client or None,
        "headers": dict(request.headers),
        **({"principal": request.principal} if request.principal else {}),
    }


def readable(metadata: str | None) -> dict[str, object]:
    """Return the decoded metadata of a client: text, or Base64 in an object of its own for a value that is no text."""
    try:
        pairs: Mapping[str, bytes] = parse_metadata(metadata or "")
    except ValueError:  # no server of this project accepted it
        return {}
    return {key: _text_or_base64(value) for key, value in pairs.items()}


def _text_or_base64(value: bytes) -> object:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
