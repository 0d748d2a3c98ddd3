"""Parser of the .info files of the filestore of tusd: untrusted JSON. Pure functions."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tusd_py.core.metadata import parse_metadata
from tusd_py.core.upload import MAX_UPLOAD_SIZE, Status, Upload, UploadKind, is_upload_id
from tusd_py.migration.report import UploadRefused, abbreviated
from tusd_py.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TusdUpload:
    """The part of an .info file of tusd's filestore that an import needs."""

    id: str
    length: int | None  # bytes; None: not known yet
    metadata: str | None = None  # value of an Upload-Metadata header
    concatenation: UploadKind = UploadKind.NONE
    partial_ids: tuple[str, ...] = ()
    path: str = ""  # of the data, absolute or relative to the working directory of tusd; untrusted


def parse_info(content: bytes) -> TusdUpload:
    """Parse an .info file. Raises `UploadRefused`."""
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise UploadRefused("is not JSON") from None
    if not isinstance(values, dict):
        raise UploadRefused("is not a JSON object")
    storage = _field(values, "Storage", dict, {})
    if _field(storage, "Type", str, "") not in ("", "filestore"):
        raise UploadRefused("is not of tusd's filestore")
    concatenation, partial_ids = _concatenation(values)
    return TusdUpload(
        id=_checked_id(_field(values, "ID", str, "")),
        length=_length(values),
        metadata=metadata_header(_field(values, "MetaData", dict, {})),
        concatenation=concatenation,
        partial_ids=partial_ids,
        path=_field(storage, "Path", str, ""),
    )


def _field(values: Mapping[str, Any], name: str, kind: type[T], default: T) -> T:
    """Return a value of exactly this type (true is no integer), or the default for null, which Go writes for empty."""
    value = values.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise UploadRefused(f"has a {name} of the wrong type")
    return value


def _checked_id(text: str) -> str:
    if not is_upload_id(text):
        raise UploadRefused(f"has the id {abbreviated(text)!r}, and ids here are up to 128 letters, digits, - and _")
    return text


def _length(values: Mapping[str, Any]) -> int | None:
    size = _field(values, "Size", int, -1)
    if _field(values, "SizeIsDeferred", bool, False):
        return None
    if not 0 <= size <= MAX_UPLOAD_SIZE:
        raise UploadRefused(f"has no Size from 0 to {MAX_UPLOAD_SIZE}")
    return size


def _concatenation(values: Mapping[str, Any]) -> tuple[UploadKind, tuple[str, ...]]:
    partial, final = _field(values, "IsPartial", bool, False), _field(values, "IsFinal", bool, False)
    ids = _field(values, "PartialUploads", list, [])
    if not all(isinstance(item, str) for item in ids):
        raise UploadRefused("has PartialUploads that are not ids")
    if (partial and final) or final is not bool(ids):
        raise UploadRefused("contradicts itself in IsPartial, IsFinal and PartialUploads")
    if final:
        return UploadKind.FINAL, tuple(_checked_id(item) for item in ids)
    return (UploadKind.PARTIAL if partial else UploadKind.NONE), ()


def metadata_header(pairs: Mapping[str, Any]) -> str | None:
    """Return an Upload-Metadata header with the pairs in the order of their keys. Raises `UploadRefused`."""
    try:
        wanted = {key: value.encode() for key, value in sorted(pairs.items())}
        header = ",".join(f"{key} {base64.b64encode(value).decode()}".rstrip(" ") for key, value in wanted.items())
        if parse_metadata(header) == wanted:
            return header or None
    except (AttributeError, ValueError):
        pass
    raise UploadRefused("has MetaData that no Upload-Metadata header can hold")


def to_upload(
    info: TusdUpload, size: int, *, created_at: float, modified_at: float, now: float, settings: Settings
) -> Upload:
    """Return the record of an upload with `size` bytes of data. Times are seconds since the epoch.

    Raises:
        UploadRefused: data and .info file contradict each other, or a limit of the settings is exceeded.
    """
    if info.length is not None and size > info.length:
        raise UploadRefused(f"has {size} bytes of data, more than its Size of {info.length}")
    _check_headers(info, settings)
    whole = size == info.length
    partial = info.concatenation is UploadKind.PARTIAL
    if info.concatenation is UploadKind.FINAL and not whole:
        raise UploadRefused(f"is a final upload with only {size} of its {info.length} bytes")
    expires = settings.expires_after > 0 and (partial or not whole)
    return Upload(
        id=info.id,
        created_at=_past(created_at, now),
        length=info.length,
        deferred=info.length is None,
        offset=size,
        status=Status.COMPLETE if whole else Status.ACTIVE,
        metadata=info.metadata,
        concatenation=info.concatenation,
        concat_header=_concat_header(info, settings.base_path),
        partial_ids=info.partial_ids,
        expires_at=now + settings.expires_after if expires else None,
        completed_at=_past(modified_at, now) if whole else None,
    )


def _check_headers(info: TusdUpload, settings: Settings) -> None:
    """Refuse an upload whose headers are larger than the settings allow clients to send."""
    metadata, parts = info.metadata or "", len(info.partial_ids)
    if len(metadata) > settings.metadata_size:
        raise UploadRefused(f"has {len(metadata)} bytes of metadata, and --metadata-size is {settings.metadata_size}")
    pairs = metadata.count(",") + 1 if metadata else 0
    if pairs > settings.metadata_pairs:
        raise UploadRefused(f"has {pairs} pairs of metadata, and --metadata-pairs is {settings.metadata_pairs}")
    if parts > settings.concatenation_parts:
        raise UploadRefused(f"has {parts} partial uploads, and --concatenation-parts is {settings.concatenation_parts}")


def _past(seconds: float, now: float) -> float:
    """Return a time between the epoch and now, since files can have any time."""
    return min(max(seconds, 0.0), now)


def _concat_header(info: TusdUpload, base_path: str) -> str | None:
    """Return the Upload-Concat header that the client would have sent to this server, or None."""
    if info.concatenation is UploadKind.FINAL:
        return "final;" + " ".join(f"{base_path}/{partial_id}" for partial_id in info.partial_ids)
    return "partial" if info.concatenation is UploadKind.PARTIAL else None
