"""The record of an upload as text, for stores that know nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tusd_py.upload import Concatenation, Status, Upload

FIELDS = tuple(field.name for field in fields(Upload))
PARSERS: Mapping[str, Any] = {
    "created_at": float,
    "length": int,
    "deferred": lambda text: text == "1",
    "offset": int,
    "status": Status,
    "concatenation": Concatenation,
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
    }
    return values | {name: str(value) for name, value in optional.items() if value is not None}


def decode(values: Mapping[str, str]) -> Upload | None:
    """The record, None if there is none; what else is in it belongs to others. Raises `ValueError` for nonsense."""
    if "id" not in values:
        return None
    return Upload(**{name: PARSERS.get(name, str)(values[name]) for name in FIELDS if name in values})
