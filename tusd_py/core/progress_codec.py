"""Changes of uploads, and the interest in them, as lines of JSON between processes. Pure functions.

Servers of different versions may share their uploads for a while: a line that is not understood is no change.
"""

from __future__ import annotations

import json

from tusd_py.core.progress import NO_INTERESTS, Change, Interests, ProgressKind
from tusd_py.core.upload import MAX_UPLOAD_SIZE, Status, UploadKind, is_upload_id

VERSION = 1
LATEST = 253402300799.0  # seconds since the epoch: the end of the year 9999, the last one that a time can be told of
BROKEN = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)  # of a text that is not understood


def encode_change(change: Change) -> str:
    """Return a change as a text of one line."""
    fields = (
        VERSION,
        change.kind,
        change.id,
        change.owner,
        change.status,
        change.offset,
        change.length,
        change.token,
        change.created_at,
        change.time,
        change.concatenation,
        change.code,
    )
    return json.dumps(fields, separators=(",", ":"))


def decode_change(text: str) -> Change | None:
    """Return the change of a text; None if it is of another version, or broken."""
    try:
        version, kind, upload_id, owner, status, offset, length, token, created_at, time, concatenation, code = (
            json.loads(text)
        )
        if version != VERSION:
            return None
        return Change(
            ProgressKind(kind),
            _upload_id(upload_id),
            str(owner),
            Status(status),
            _number(offset),
            None if length is None else _number(length),
            _number(token),
            _time(created_at),
            _time(time),
            UploadKind(concatenation),
            str(code),
        )
    except BROKEN:
        return None


def _upload_id(value: object) -> str:
    if not (isinstance(value, str) and is_upload_id(value)):
        raise ValueError("no id of an upload")
    return value


def _number(value: float) -> int:
    number = int(value)
    if not 0 <= number <= MAX_UPLOAD_SIZE:
        raise ValueError("no number of a record")
    return number


def _time(value: float) -> float:
    seconds = float(value)
    if not 0 <= seconds <= LATEST:
        raise ValueError("no time")
    return seconds


def encode_interests(interests: Interests, most: int) -> str:
    """Return interests as a text of one line; more than `most` uploads and owners are everything."""
    if interests.everything or len(interests.ids) + len(interests.owners) > most:
        return json.dumps({"everything": True})
    return json.dumps({"ids": sorted(interests.ids), "owners": sorted(interests.owners)})


def decode_interests(text: str) -> Interests:
    """Return the interests of a text; none for one that is broken."""
    try:
        document = json.loads(text)
        ids, owners = document.get("ids", ()), document.get("owners", ())
        return Interests(frozenset(map(str, ids)), frozenset(map(str, owners)), bool(document.get("everything")))
    except BROKEN:
        return NO_INTERESTS
