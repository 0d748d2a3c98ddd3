"""The messages to listeners, each rendered once for all who get it. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tusd_py.core.clock import rfc3339
from tusd_py.core.progress import Change, ProgressKind
from tusd_py.progress.rate import seconds_left


@dataclass(frozen=True, slots=True)
class Message:
    """A message about one upload.

    Attributes:
        kind: the kind.
        upload_id: the id of the upload.
        number: ascends in a stream; odd for the end of an upload, so that it tells a client that has seen the end.
        text: the object in JSON.
        event: the message as an event of `text/event-stream`.
    """

    kind: ProgressKind
    upload_id: str
    number: int
    text: bytes = field(repr=False)
    event: bytes = field(repr=False)


def message_of(change: Change, kind: ProgressKind, number: int, rate: float | None) -> Message:
    """Return the message of a change.

    Args:
        change: the change.
        kind: the kind of the message.
        number: its number.
        rate: the bytes a second; None if that is not known.
    """
    document: dict[str, Any] = {
        "type": str(kind),
        "id": change.id,
        "status": str(change.status),
        "offset": change.offset,
        "length": change.length,
        "rate": None if rate is None else round(rate),
        "eta": seconds_left(rate, change.offset, change.length),
        "time": rfc3339(change.time),
    }
    if change.concatenation:
        document["concatenation"] = str(change.concatenation)
    if change.code:
        document["code"] = change.code
    text = json.dumps(document, separators=(",", ":")).encode()
    event = b"event: %s\nid: %d\ndata: %s\n\n" % (str(kind).encode(), number, text)
    return Message(kind, change.id, number, text, event)
