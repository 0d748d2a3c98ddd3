"""Downloads of finished uploads: conditional requests, ranges and safe header fields (RFC 9110, 6266, 8187)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from tusd_py.core.metadata import content_disposition, content_type_of, file_name_of
from tusd_py.core.upload import Upload
from tusd_py.http.tus.headers import format_date

# Types that a browser shows without running anything; everything else is offered for saving.
INLINE_TYPES = frozenset(
    [
        "text/plain",
        *(f"image/{kind}" for kind in ("png", "jpeg", "gif", "bmp", "webp", "avif")),
        *(f"audio/{kind}" for kind in ("wave", "wav", "x-wav", "x-pn-wav", "webm", "ogg", "mpeg", "mp4")),
        *(f"video/{kind}" for kind in ("mp4", "webm", "ogg")),
        "application/ogg",
    ]
)
RANGE = re.compile(r"bytes=([0-9]{0,1000})-([0-9]{0,1000})")


@dataclass(frozen=True, slots=True)
class Selection:
    """The bytes from `start` up to but not including `end`, and the status of the response."""

    status: int
    start: int = 0
    end: int = 0


def describe(upload: Upload) -> dict[str, str]:
    """Return the header fields that describe the whole upload."""
    values = upload.decoded_metadata
    content_type = content_type_of(values)
    inline = content_type.partition(";")[0].strip().lower() in INLINE_TYPES
    headers = {
        "Content-Type": content_type,
        "Content-Disposition": content_disposition("inline" if inline else "attachment", file_name_of(values)),
        "ETag": entity_tag(upload),
        "Last-Modified": format_date(upload.completed_at or upload.created_at),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    if not inline:  # a browser that shows the file all the same runs no script of it with the rights of this site
        headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return headers


def entity_tag(upload: Upload) -> str:
    """Return the entity tag of a complete upload, which never changes; its id may be used again after its end."""
    return f'"{upload.id}-{upload.length}-{round(upload.created_at * 1e6):x}"'


def select(upload: Upload, headers: Mapping[str, str], *, ranges: bool = True) -> Selection:
    """Select the bytes that a download sends (RFC 9110, sections 13.2.2 and 14.2).

    Without `ranges`, as for HEAD, Range is ignored. Status 206 stands for a range, 304, 412 and 416 for no bytes at
    all.
    """
    length = upload.offset  # of a complete upload
    precondition = _precondition(upload, headers)
    if precondition:
        return Selection(precondition)
    if ranges and "range" in headers and _if_range_holds(upload, headers):
        match = RANGE.fullmatch(headers["range"].strip())
        if match and any(match.groups()):
            return _range(match[1], match[2], length)
    return Selection(200, 0, length)


def _range(first: str, last: str, length: int) -> Selection:
    if not first:  # "bytes=-N": the last N bytes
        start, end = max(0, length - int(last)), length
    else:
        start, end = int(first), min(length, int(last) + 1) if last else length
        if last and int(last) < int(first):
            return Selection(200, 0, length)
    return Selection(206, start, end) if start < end else Selection(416)


def _precondition(upload: Upload, headers: Mapping[str, str]) -> int | None:
    """Return 304 or 412 if a condition of the request is not met, otherwise None."""
    tag = entity_tag(upload)
    modified = int(upload.completed_at or upload.created_at)
    if "if-match" in headers:
        if not _lists_tag(headers["if-match"], tag):
            return 412
    elif "if-unmodified-since" in headers:
        since = _seconds(headers["if-unmodified-since"])
        if since is not None and modified > since:
            return 412
    if "if-none-match" in headers:
        return 304 if _lists_tag(headers["if-none-match"], tag, weak=True) else None
    if "if-modified-since" in headers:
        since = _seconds(headers["if-modified-since"])
        return 304 if since is not None and modified <= since else None
    return None


def _if_range_holds(upload: Upload, headers: Mapping[str, str]) -> bool:
    condition = headers.get("if-range", "").strip()
    if not condition:
        return True
    if condition.startswith(('"', "W/")):
        return condition == entity_tag(upload)
    return _seconds(condition) == int(upload.completed_at or upload.created_at)


def _lists_tag(text: str, tag: str, *, weak: bool = False) -> bool:
    tags = [item.strip() for item in text.split(",")]
    return "*" in tags or tag in [item.removeprefix("W/") if weak else item for item in tags]


def _seconds(date: str) -> int | None:
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
