"""Changes of uploads, and the interest in them, as lines of JSON between processes. Pure functions.

Servers of different versions may share their uploads for a while: a line that is not understood is no change.
"""

from __future__ import annotations

import json

from tusd_py.core.progress import NO_INTERESTS, Change, Interests, ProgressKind
from tusd_py.core.upload import Status, UploadKind

VERSION = 1


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
            str(upload_id),
            str(owner),
            Status(status),
            int(offset),
            None if length is None else int(length),
            int(token),
            float(created_at),
            float(time),
            UploadKind(concatenation),
            str(code),
        )
    except (ValueError, TypeError):
        return None


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
    except (ValueError, TypeError, AttributeError):
        return NO_INTERESTS
