"""JSON of uploads and totals, for the API and for the command line. Pure functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tusd_py.core.clock import rfc3339
from tusd_py.core.history import HistoryEntry
from tusd_py.core.metadata import file_name_of
from tusd_py.core.outbox import Delivery
from tusd_py.core.queries import Share, Totals, file_type_of
from tusd_py.core.redaction import without_secrets
from tusd_py.core.upload import Status, Upload
from tusd_py.outbox.cloudevents import readable, type_name
from tusd_py.settings import FIELDS, Settings, default_of, value_of

LOOKS = 16  # at locks at a time: a Redis cluster takes a connection for each, of which uploads need some too


def upload_document(upload: Upload, url: str | None, *, locked: bool | None) -> dict[str, Any]:
    """Return an upload as JSON.

    Args:
        upload: the record.
        url: the URL that clients use; None if it is not known.
        locked: whether a request holds the lock of the upload; None if that is not known.
    """
    metadata = upload.decoded_metadata
    return {
        "id": upload.id,
        "url": url,
        "status": str(upload.status),
        "offset": upload.offset,
        "length": upload.length,
        "owner": upload.owner or None,
        "filename": file_name_of(metadata) or None,
        "filetype": file_type_of(metadata) or None,
        "metadata": readable(upload.metadata),
        "concatenation": str(upload.concatenation) or None,
        "partial_ids": list(upload.partial_ids),
        "created_at": _time(upload.created_at),
        "updated_at": _time(upload.changed_at),
        "completed_at": _time(upload.completed_at),
        "expires_at": None if upload.is_waiting else _time(upload.expires_at or None),
        "client": upload.client or None,
        "locked": locked,
    }


def totals_document(totals: Totals, as_of: float) -> dict[str, Any]:
    """Return totals as JSON; `as_of` is the time of the count in seconds since the epoch."""
    shares = totals.by_status.values()
    return {
        "as_of": rfc3339(as_of),
        "total": _share(sum(shares, Share())),
        "by_status": {str(status): _share(totals.by_status.get(status, Share())) for status in Status},
        "by_owner": [{"owner": owner or None, **_share(share)} for owner, share in totals.by_owner.items()],
        "oldest": _time(totals.oldest_active),
    }


def delivery_document(delivery: Delivery) -> dict[str, Any]:
    """Return an event that waits for one sink as JSON."""
    event = delivery.event
    return {
        "id": event.id,
        "type": type_name(event),
        "upload": event.upload_id,
        "sequence": event.sequence,
        "time": rfc3339(event.time),
        **delivery_state(delivery),
    }


def delivery_state(delivery: Delivery) -> dict[str, Any]:
    """Return the state of an event at one sink as JSON."""
    waits_until = delivery.next_at if delivery.next_at > 0 and delivery.status == "waiting" else None
    return {
        "sink": delivery.sink,
        "attempts": delivery.attempts,
        "status": str(delivery.status),
        "next_attempt_at": None if waits_until is None else rfc3339(waits_until),
        "error": delivery.error or None,
    }


def history_document(entry: HistoryEntry) -> dict[str, Any]:
    """Return an entry of the history of an upload as JSON."""
    return {
        "event": entry.event,
        "time": _time(entry.time),
        "offset": entry.offset,
        "actor": entry.actor or None,
        "client": entry.client or None,
        "code": entry.code or None,
    }


def settings_document(settings: Settings) -> dict[str, Any]:
    """Return the settings in effect as JSON: URLs without credentials, files with secrets by their names alone.

    A text that is not set, which is an empty one by default, is None, as every other setting without a value.
    """
    values = {name: value_of(settings, name) for name in FIELDS}
    return {name: None if value == default_of(name) == "" else _setting(name, value) for name, value in values.items()}


def _setting(name: str, value: object) -> Any:
    if isinstance(value, tuple | list):
        return [_setting(name, item) for item in value]
    if isinstance(value, Path):
        return value.name if name.endswith("_file") else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_secrets(str(value))


def _share(share: Share) -> dict[str, int]:
    return {"count": share.count, "bytes": share.bytes}


def _time(seconds: float | None) -> str | None:
    try:
        return None if seconds is None else rfc3339(seconds)
    except (ValueError, OverflowError, OSError):  # of a record with a time that no calendar has
        return None
