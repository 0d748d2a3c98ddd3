"""Locks as their processes tell of them, as lines of JSON between processes. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from tusd_py.core.progress_codec import BROKEN, LATEST

MAX_REPORTED = 1000  # locks of one process that are told, the oldest
MAX_SIZE = 256 << 10  # bytes of the text about all of them
MAX_TEXT = 1024  # characters of a field


@dataclass(frozen=True, slots=True)
class LockReport:
    """A lock that some process holds.

    Attributes:
        upload_id: the upload.
        since: the time in seconds since the epoch.
        host: the name of the host of the process.
        pid: the number of the process.
        method: the method of the request that holds the lock; None if no request does.
        path: its path, without secrets.
        client: the address that it came from.
        principal: its sender; None if that is not known.
    """

    upload_id: str
    since: float
    host: str
    pid: int
    method: str | None = None
    path: str | None = None
    client: str | None = None
    principal: str | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """The texts that other processes have sent when they were asked, and how many have sent none in time."""

    texts: Sequence[str] = ()
    silent: int = 0


def encode_reports(reports: Iterable[LockReport]) -> str:
    """Return reports as a text of one line: as many as there is room for, the oldest locks first."""
    lines: list[str] = []
    size = 2
    for report in sorted(reports, key=lambda report: report.since)[:MAX_REPORTED]:
        line = json.dumps(astuple(report), separators=(",", ":"))
        size += len(line) + 1
        if size > MAX_SIZE:
            break
        lines.append(line)
    return f"[{','.join(lines)}]"


def decode_reports(text: str) -> Sequence[LockReport] | None:
    """Return the reports of a text; None if it is of another version, or broken."""
    try:
        return [_report(*fields) for fields in json.loads(text)[:MAX_REPORTED]]
    except BROKEN:
        return None


def _report(upload_id: object, since: float, host: object, pid: object, *request: object) -> LockReport:
    """Return the report with these fields, those of the request last; raises one of `BROKEN` for wrong ones."""
    if not (isinstance(upload_id, str) and isinstance(host, str) and isinstance(pid, int) and 0 <= since <= LATEST):
        raise ValueError("no lock")
    method, path, client, principal = map(_text, request)
    return LockReport(upload_id[:MAX_TEXT], float(since), host[:MAX_TEXT], pid, method, path, client, principal)


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:MAX_TEXT]
