"""Log lines as text or JSON, one for each request.

An application that embeds the server and has a log format of its own gets the fields as part of the message.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tusd_py.core.errors import MalwareFound, UploadError
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished
from tusd_py.observability.log_fields import COMPLETE, REFUSED, REQUEST, LogLine

requests_logger = logging.getLogger(REQUEST.logger)
uploads_logger = logging.getLogger(COMPLETE.logger)
server_logger = logging.getLogger("tusd_py.uvicorn_server")
MAX_NAME_LENGTH = 255  # characters of a file name


def configure(log_format: str, level: str) -> None:
    """Send every log line of this process to standard error, as `text` or `json`, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def formats_json() -> bool:
    """Return whether `configure` chose JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def announce(level: int, message: str, **fields: object) -> None:
    """Log a line regardless of the configured level."""
    record = server_logger.makeRecord(server_logger.name, level, "", 0, message, (), None, extra={"fields": fields})
    server_logger.handle(record)


def log_requests(events: EventBus) -> None:
    """Log a line for every request, and one for every complete upload, from now on."""
    events.observe(RequestFinished, _log_request)
    events.observe(UploadFinished, _log_upload)


@dataclass(frozen=True, slots=True)
class FieldMessage:
    """A log message `EVENT name=value ...`, formatted only when a handler needs it."""

    event: str
    fields: Mapping[str, object]

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={_quoted(value)}" for name, value in self.fields.items())])


def log_line(line: LogLine, level: int, values: Mapping[str, object]) -> None:
    """Log a line of this kind with the values of its fields, without those that are None or empty."""
    fields = {field.name: values[field.name] for field in line.fields if values.get(field.name) not in (None, "")}
    extra = {"event": line.message, "fields": fields}
    logging.getLogger(line.logger).log(level, FieldMessage(line.message, fields), extra=extra)


def log_refused_upload(upload: Upload, error: UploadError, request: RequestContext | None) -> None:
    """Log that an upload was removed because of its bytes.

    Args:
        upload: the upload.
        error: the reason.
        request: the request that brought the last bytes; None if they were looked at later.
    """
    values: dict[str, object] = {
        "upload": upload.id,
        "owner": upload.owner,
        "code": error.code,
        "reason": error.message,
        "client": "" if request is None else request.client,
        "principal": "" if request is None else request.principal,
    }
    log_line(REFUSED, logging.WARNING if isinstance(error, MalwareFound) else logging.INFO, values)


def _log_request(event: RequestFinished) -> None:
    if not requests_logger.isEnabledFor(logging.INFO):
        return
    values: dict[str, object] = {
        "method": event.method,
        "path": event.path,
        "status": event.status,
        "duration_ms": round(event.seconds * 1000, 1),
        "bytes": event.bytes_received or event.bytes_sent,
        "client": event.client,
        "principal": event.principal,
        "refusal": event.refusal,
        "upload": event.upload_id,
        "offset_before": event.offset_before,
        "offset_after": event.offset_after,
        "code": event.error_code,
        "request_id": event.request_id,
    }
    log_line(REQUEST, logging.INFO, values)


def _log_upload(event: UploadFinished) -> None:
    if not uploads_logger.isEnabledFor(logging.INFO):
        return
    upload = event.upload
    values: dict[str, object] = {
        "upload": upload.id,
        "name": _file_name(upload.metadata or ""),
        "bytes": upload.length or 0,
        "seconds": round(max(0.0, (upload.completed_at or 0) - upload.created_at), 1),
    }
    log_line(COMPLETE, logging.INFO, values)


def _file_name(metadata: str) -> str:
    """Return the file name in an Upload-Metadata header; empty if there is none."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    value = pairs.get("filename") or pairs.get("name") or ""
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4)).decode("utf-8", "replace")[:MAX_NAME_LENGTH]
    except ValueError:
        return ""


class TextFormatter(logging.Formatter):
    """Lines such as `2026-01-31T12:00:00.000Z INFO request method=PATCH status=204 ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, followed by the traceback of its exception."""
        fields = getattr(record, "fields", {})
        message = str(FieldMessage(getattr(record, "event", None) or _one_line(record.getMessage()), fields))
        line = f"{_timestamp(record)} {record.levelname} {message}"
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Formatter of one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record; `exception` is the traceback."""
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
    """Return a message with control characters escaped, since it may contain a path that a client sent."""
    text = text.rstrip("\n")
    return text if text.isprintable() else json.dumps(text)[1:-1].replace('\\"', '"')


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(' "=') & set(text) else json.dumps(text)
