"""The record of an upload as text, for stores that know nothing else, and what is left of one that is broken."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tusd_py.core.errors import BrokenRecord
from tusd_py.core.upload import Status, Upload, UploadKind

logger = logging.getLogger("tusd_py.state")

LATEST = 253402300800.0  # seconds since the epoch: the year 10000
MAX_REPORTED_LENGTH = 1000
FIELDS = tuple(field.name for field in fields(Upload))
PARSERS: Mapping[str, Any] = {
    "created_at": float,
    "length": int,
    "deferred": lambda text: text == "1",
    "offset": int,
    "status": Status,
    "concatenation": UploadKind,
    "partial_ids": lambda text: tuple(text.split()),
    "expires_at": float,
    "completed_at": float,
    "checkpoint": int,
    "synced": int,
    "token": int,
}


def encode(upload: Upload) -> dict[str, str]:
    """The fields as text, without those that have their default."""
    values = {
        "id": upload.id,
        "created_at": repr(upload.created_at),
        "offset": str(upload.offset),
        "status": str(upload.status),
        "token": str(upload.token),
    }
    optional: dict[str, object] = {
        "length": upload.length,
        "deferred": int(upload.deferred) or None,
        "metadata": upload.metadata,
        "concatenation": upload.concatenation or None,
        "concat_header": upload.concat_header,
        "partial_ids": " ".join(upload.partial_ids) or None,
        "expires_at": upload.expires_at,
        "completed_at": upload.completed_at,
        "checkpoint": upload.checkpoint or None,
        "synced": upload.synced or None,
        "layout": upload.layout or None,
        "location": upload.location or None,
        "owner": upload.owner or None,
    }
    return values | {name: str(value) for name, value in optional.items() if value is not None}


def decode(values: Mapping[str, str]) -> Upload | None:
    """The record, None if there is none; what else is in it belongs to others. Raises `ValueError` for nonsense."""
    if "id" not in values:
        return None
    if "created_at" not in values:
        raise ValueError("created_at is missing")
    upload = Upload(**{name: PARSERS.get(name, str)(values[name]) for name in FIELDS if name in values})
    check(upload)
    return upload


def check(upload: Upload) -> None:
    """Raise `ValueError` for numbers that no upload has."""
    if not (0 <= upload.created_at < LATEST and upload.offset >= 0):
        raise ValueError("created_at or offset is out of range")


def broken(upload_id: str, values: Mapping[str, str], error: Exception) -> BrokenRecord:
    """The error for a record that cannot be read, with what is left of it."""
    readable: dict[str, Any] = {}
    for name in FIELDS:
        if name in values:
            with contextlib.suppress(ValueError):
                readable[name] = PARSERS.get(name, str)(values[name])
    if not 0 <= readable.get("created_at", -1.0) < LATEST:
        readable["created_at"] = 0.0
    return BrokenRecord(upload_id, str(error), Upload(**(readable | {"id": upload_id})))


class BrokenRecords:
    """Tells the log once of every record that is passed over."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, error: BrokenRecord) -> None:
        """Log a record that is passed over, unless it was logged before."""
        if error.upload_id not in self._told and len(self._told) < MAX_REPORTED_LENGTH:
            self._told.add(error.upload_id)
            logger.error(
                "the record of upload %s cannot be read and is left alone; DELETE removes it: %s",
                error.upload_id,
                error.reason,
            )
