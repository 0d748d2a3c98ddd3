"""Log lines as text or JSON, one for every request."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from tusd_py.events.base import EventBus, RequestFinished

logger = logging.getLogger("tusd_py.requests")


def configure(log_format: str, level: str) -> None:
    """Send every line of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def log_requests(events: EventBus) -> None:
    events.subscribe(RequestFinished, _log_request)


def _log_request(event: RequestFinished) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "method": event.method,
        "path": event.path,
        "status": event.status,
        "duration_ms": round(event.seconds * 1000, 1),
        "bytes": event.bytes_received,
        "client": event.client,
        "upload": event.upload_id,
        "offset_before": event.offset_before,
        "offset_after": event.offset_after,
        "code": event.error_code,
        "request_id": event.request_id,
    }
    fields = {name: value for name, value in fields.items() if value not in (None, "")}
    logger.info("request", extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO request method=PATCH status=204 ...`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = [_timestamp(record), record.levelname, record.getMessage()]
        words += [f"{name}={_word(value)}" for name, value in fields.items()]
        line = " ".join(words)
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


def _word(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(' "=') & set(text) else json.dumps(text)
