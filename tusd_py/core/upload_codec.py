"""The record of an upload as texts or as the columns of a row, and the readable rest of a broken one.

The fields have the same names everywhere: those of `Upload`, in its order, but for `STORED_NAMES`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

from tusd_py.core.errors import BrokenRecord
from tusd_py.core.upload import Status, Upload, UploadKind, make_upload

T = TypeVar("T")

logger = logging.getLogger("tusd_py.state")

LATEST = 253402300800.0  # seconds since the epoch: the year 10000
MAX_REPORTED = 1000  # broken records that are logged
# Names in records that differ from those in `Upload`: earlier versions wrote them.
STORED_NAMES: Mapping[str, str] = {"commit_requests_served": "checkpoint", "storage_state": "layout"}
ATTRIBUTES = tuple(field.name for field in fields(Upload))
FIELDS = tuple(STORED_NAMES.get(name, name) for name in ATTRIBUTES)
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
    "event_sequence": int,
    "max_size": int,
    "given_expiry": float,
    "uncounted": lambda text: text == "1",
    "quota_bytes": int,
    "quota_uploads": int,
    "reserved_until": float,
    "updated_at": float,
}
COLUMN_TYPES: Mapping[str, tuple[type, ...]] = dict.fromkeys(FIELDS, (int,)) | {
    **dict.fromkeys(
        ("id", "status", "concatenation", "partial_ids", "layout", "location", "owner", "conditions", "client"), (str,)
    ),
    **dict.fromkeys(("metadata", "concat_header"), (str, type(None))),
    **dict.fromkeys(
        ("expires_at", "completed_at", "given_expiry", "reserved_until", "updated_at"), (float, type(None))
    ),
    "created_at": (float,),
    **dict.fromkeys(("length", "max_size", "quota_bytes", "quota_uploads"), (int, type(None))),
}
_VALUES = attrgetter(*ATTRIBUTES)
_NAMES = tuple(zip(FIELDS, ATTRIBUTES, strict=True))
_DEFERRED, _STATUS, _KIND, _PARTIAL_IDS, _UNCOUNTED, _UPDATED_AT = map(
    FIELDS.index, ("deferred", "status", "concatenation", "partial_ids", "uncounted", "updated_at")
)
_STATUSES = {status.value: status for status in Status}  # calling the class takes longer
_KINDS = {kind.value: kind for kind in UploadKind}
_known_types: set[tuple[type, ...]] = set()  # types of rows whose every column holds a type of `COLUMN_TYPES`


def encode_upload(upload: Upload) -> dict[str, str]:
    """Return the fields as texts, without those that have their default."""
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
        "checkpoint": upload.commit_requests_served or None,
        "synced": upload.synced or None,
        "layout": upload.storage_state or None,
        "location": upload.location or None,
        "owner": upload.owner or None,
        "event_sequence": upload.event_sequence or None,
        "max_size": upload.max_size,
        "given_expiry": upload.given_expiry,
        "uncounted": int(upload.uncounted) or None,
        "quota_bytes": upload.quota_bytes,
        "quota_uploads": upload.quota_uploads,
        "reserved_until": upload.reserved_until,
        "conditions": upload.conditions or None,
        "client": upload.client or None,
        "updated_at": upload.updated_at,
    }
    return values | {name: str(value) for name, value in optional.items() if value is not None}


def decode_upload(values: Mapping[str, str]) -> Upload | None:
    """Return the record of these fields, None if there is none. Other keys are ignored.

    Raises:
        ValueError: a field is missing or has a value that it cannot have.
    """
    if "id" not in values:
        return None
    if "created_at" not in values:
        raise ValueError("created_at is missing")
    upload = Upload(**{attribute: PARSERS.get(name, str)(values[name]) for name, attribute in _NAMES if name in values})
    _check(upload)
    return upload


def encode_row(upload: Upload, now: float | None = None) -> tuple[Any, ...]:
    """Return a value for every column, in the order of `FIELDS`; a record without `updated_at` was changed at `now`."""
    values = list(_VALUES(upload))
    values[_PARTIAL_IDS] = " ".join(upload.partial_ids)
    if values[_UPDATED_AT] is None:
        values[_UPDATED_AT] = now
    return tuple(values)


def decode_row(row: Sequence[Any]) -> Upload:
    """Return the record of a row; raises `BrokenRecord` for a value that its column cannot have."""
    try:
        types = tuple(map(type, row))
        if types not in _known_types:
            _check_types(types)
            _known_types.add(types)
        values = list(row)
        values[_DEFERRED] = bool(values[_DEFERRED])
        values[_UNCOUNTED] = bool(values[_UNCOUNTED])
        values[_STATUS] = _member(_STATUSES, values[_STATUS])
        values[_KIND] = _member(_KINDS, values[_KIND])
        values[_PARTIAL_IDS] = tuple(values[_PARTIAL_IDS].split())
        upload = make_upload(values)
        _check(upload)
    except ValueError as error:
        texts = {
            name: str(value) for name, value in zip(FIELDS, row, strict=True) if isinstance(value, str | int | float)
        }
        raise broken(str(row[0]), texts, error) from None
    return upload


def _member(members: Mapping[str, T], value: str) -> T:
    member = members.get(value)
    if member is None:
        raise ValueError(f"{value!r} is not known")
    return member


def _check_types(types: Sequence[type]) -> None:
    for name, found in zip(FIELDS, types, strict=True):
        if found not in COLUMN_TYPES[name]:
            raise ValueError(f"{name} is {found.__name__}")


def _check(upload: Upload) -> None:
    """Raise `ValueError` for numbers that no upload has."""
    if not (0 <= upload.created_at < LATEST and upload.offset >= 0):
        raise ValueError("created_at or offset is out of range")


def broken(upload_id: str, values: Mapping[str, str], error: Exception) -> BrokenRecord:
    """Return the error for a record that cannot be read, with its readable fields."""
    readable: dict[str, Any] = {}
    for name, attribute in _NAMES:
        if name in values:
            with contextlib.suppress(ValueError):
                readable[attribute] = PARSERS.get(name, str)(values[name])
    if not 0 <= readable.get("created_at", -1.0) < LATEST:
        readable["created_at"] = 0.0
    return BrokenRecord(upload_id, str(error), Upload(**(readable | {"id": upload_id})))


class BrokenRecords:
    """A log of broken records, with one line for each."""

    def __init__(self) -> None:
        self._logged_ids: set[str] = set()

    def log_once(self, error: BrokenRecord) -> None:
        """Log a broken record, unless it or `MAX_REPORTED` others have been logged."""
        if error.upload_id not in self._logged_ids and len(self._logged_ids) < MAX_REPORTED:
            self._logged_ids.add(error.upload_id)
            logger.error(
                "the record of upload %s cannot be read and is left alone; DELETE removes it: %s",
                error.upload_id,
                error.reason,
            )
