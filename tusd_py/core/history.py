"""Entries of the history of an upload, for administrators."""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_ENTRIES = 100  # that are kept of one upload, the newest


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened to an upload.

    Attributes:
        event: a word such as `interrupted`.
        time: seconds since the epoch.
        offset: the committed offset then, in bytes.
        actor: the principal of the request, if there was one; empty otherwise.
        client: the address that the request came from; empty if it is not known.
        code: the code of the error that ended the upload; empty without one.
    """

    event: str
    time: float
    offset: int = 0
    actor: str = ""
    client: str = ""
    code: str = ""

    def encode(self) -> str:
        """Return the entry as one line of JSON."""
        return json.dumps([self.event, self.time, self.offset, self.actor, self.client, self.code])


def decode_entry(text: str) -> HistoryEntry | None:
    """Return the entry of a text of `HistoryEntry.encode`; None for one of a later version."""
    try:
        event, time, offset, actor, client, code = json.loads(text)
        return HistoryEntry(str(event), float(time), int(offset), str(actor), str(client), str(code))
    except (ValueError, TypeError):
        return None
