"""Log lines as text or JSON, one for every request.

In the format of another application a line is its message, which says the same as the fields that go with it.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished

logger = logging.getLogger("tusd_py.requests")
uploads_logger = logging.getLogger("tusd_py.uploads")
server_logger = logging.getLogger("tusd_py.uvicorn_server")
MAX_NAME = 255  # characters


def configure(log_format: str, level: str) -> None:
    """Send every line of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def formats_json() -> bool:
    """Whether `configure` chose JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def announce(level: int, message: str, **fields: object) -> None:
    """Log a line whatever the level of the log is."""
    record = server_logger.makeRecord(server_logger.name, level, "", 0, message, (), None, extra={"fields": fields})
    server_logger.handle(record)


def log_requests(events: EventBus) -> None:
    """Log a line for every request, and for every upload that is complete."""
    events.observe(RequestFinished, _log_request)
    events.observe(UploadFinished, _log_upload)


@dataclass(frozen=True, slots=True)
class Words:
    """A message that is put together when a handler wants it."""

    first: str
    fields: Mapping[str, object]

    def __str__(self) -> str:
        return " ".join([self.first, *(f"{name}={_word(value)}" for name, value in self.fields.items())])


def _log_request(event: RequestFinished) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "method": event.method,
        "path": event.path,
        "status": event.status,
        "duration_ms": round(event.seconds * 1000, 1),
        "bytes": event.bytes_received or event.bytes_sent,
        "client": event.client,
        "upload": event.upload_id,
        "offset_before": event.offset_before,
        "offset_after": event.offset_after,
        "code": event.error_code,
        "request_id": event.request_id,
    }
    fields = {name: value for name, value in fields.items() if value not in (None, "")}
    logger.info(Words("request", fields), extra={"event": "request", "fields": fields})


def _log_upload(event: UploadFinished) -> None:
    if not uploads_logger.isEnabledFor(logging.INFO):
        return
    upload = event.upload
    fields: dict[str, Any] = {
        "upload": upload.id,
        "name": _file_name(upload.metadata or ""),
        "bytes": upload.length or 0,
        "seconds": round(max(0.0, (upload.completed_at or 0) - upload.created_at), 1),
    }
    fields = {name: value for name, value in fields.items() if value != ""}
    uploads_logger.info(Words("complete", fields), extra={"event": "complete", "fields": fields})


def _file_name(metadata: str) -> str:
    """The name of the file in an Upload-Metadata header, empty if there is none."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    value = pairs.get("filename") or pairs.get("name") or ""
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4)).decode("utf-8", "replace")[:MAX_NAME]
    except ValueError:
        return ""


class TextFormatter(logging.Formatter):
    """Lines such as `2026-01-31T12:00:00.000Z INFO request method=PATCH status=204 ...`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        message = str(Words(getattr(record, "event", None) or _one_line(record.getMessage()), fields))
        line = f"{_timestamp(record)} {record.levelname} {message}"
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


def _one_line(text: str) -> str:
    """Return a message that may name a path as it came, with what would begin another line made visible."""
    text = text.rstrip("\n")
    return text if text.isprintable() else json.dumps(text)[1:-1].replace('\\"', '"')


def _word(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(' "=') & set(text) else json.dumps(text)
