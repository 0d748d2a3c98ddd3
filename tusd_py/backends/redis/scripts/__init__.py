"""Lua scripts that Redis runs, one file each; `schema.py` lists the keys and fields that they use.

A script runs as a whole or not at all. All of them are harmless to repeat: the reply of a call may be lost. A call that
its sender has given up, and maybe repeated, can still be on its way: Redis refuses it then (`deadline.lua`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files

INCLUDE = re.compile(r"^--INCLUDE (\w+)\n", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """A Lua script.

    Attributes:
        name: the name of the call in metrics.
        text: the Lua code.
        allow_oom: whether it runs although Redis has reached `maxmemory`; for scripts that add little and make room.
        has_deadline: whether Redis refuses it after the deadline that ends its arguments.
    """

    name: str
    text: str
    allow_oom: bool = False
    has_deadline: bool = True

    @cached_property
    def source(self) -> str:
        """The text as it is sent to Redis."""
        flags = "#!lua flags=allow-oom\n" if self.allow_oom else ""
        return f"{flags}{DEADLINE if self.has_deadline else ''}{self.text}"

    @cached_property
    def with_events(self) -> Script:
        """The script that makes the change of this one, and stores events in the same step, see `with_events.lua`."""
        return replace(self, text=WITH_EVENTS.replace("--CHANGE", self.text))

    @cached_property
    def digest(self) -> str:
        """The SHA-1 digest by which Redis knows the script."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def read(file: str) -> str:
    """Return the text of a file, with that of the file that a line `--INCLUDE file` names in place of the line."""
    text = files(__name__).joinpath(f"{file}.lua").read_text(encoding="utf-8")
    return INCLUDE.sub(lambda line: read(line[1]), text)


def _load(file: str, name: str, *, allow_oom: bool = False, has_deadline: bool = True) -> Script:
    return Script(name, read(file), allow_oom, has_deadline)


DEADLINE = read("deadline")
WITH_EVENTS = read("with_events")

ACQUIRE = _load("acquire", "acquire")
# For removing or inspecting an upload: Redis grants this lease even when it has reached `maxmemory`.
ACQUIRE_WITHOUT_ROOM = _load("acquire", "acquire", allow_oom=True)
RENEW = _load("renew", "renew", allow_oom=True)
RELEASE = _load("release", "release", allow_oom=True, has_deadline=False)  # right whenever it arrives
REQUEST_COMMIT = _load("request_commit", "commit", allow_oom=True)
ADD_IDS = _load("add_ids", "add", allow_oom=True)  # the sweeper has to go on when Redis is full
CREATE = _load("create", "create")
CREATE_INDEXED = _load("create_indexed", "create")
TALLY_RECORDS = _load("tally_records", "count")
END_COUNT = _load("end_count", "count")
UPDATE = _load("update", "update")
END = _load("update", "update", allow_oom=True)  # the step before the removal of an upload
READ_FIELDS = _load("read_fields", "hmget", allow_oom=True)
DELETE = _load("delete", "delete", allow_oom=True)
MOVE_DUE = _load("move_due", "move", allow_oom=True)
NOTE_DUE = _load("note_due", "note", allow_oom=True)
MARK_COMPARED = _load("mark_compared", "note", allow_oom=True)
WRITE_METADATA = _load("write_metadata", "write_metadata")
TAKE_RATE = _load("take_rate", "take_rate")
NOTE_EVENTS = _load("note_events", "note")
NOTE_EVENTS_WITHOUT_ROOM = _load("note_events", "note", allow_oom=True)  # before `END`
# Delivery makes room; the indexes have to be kept right meanwhile.
FORGET_EVENTS = _load("forget_events", "note", allow_oom=True)
DUE_EVENTS = _load("due_events", "events", allow_oom=True)
NEXT_EVENT = _load("next_event", "events", allow_oom=True)
SETTLE_EVENT = _load("settle_event", "settle", allow_oom=True)
MOVE_EVENT = _load("move_event", "move", allow_oom=True)
LIST_EVENTS = _load("list_events", "events", allow_oom=True)
RESTORE_EVENTS = _load("restore_events", "note", allow_oom=True)
MARK_EVENTS = _load("mark_events", "note", allow_oom=True)
