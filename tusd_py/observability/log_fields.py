"""The catalogue of the fields of log lines: the lines are made from it, and so are the tables in docs/operations.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogField:
    """A field of log lines: its name, the unit of its values if they have one, and its meaning."""

    name: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """A kind of log lines that have fields, in this order.

    Attributes:
        logger: the name of the logger.
        message: the message.
        fields: the fields; one without a value is left out.
    """

    logger: str
    message: str
    fields: tuple[LogField, ...]


# Of every line in JSON.
COMMON_FIELDS = (
    LogField("time", "", "UTC, as `2026-01-31T12:00:00.000Z`"),
    LogField("level", "", "`debug`, `info`, `warning`, `error` or `critical`"),
    LogField("logger", "", "part of the server, such as `tusd_py.requests`"),
    LogField("message", "", "the text, or the kind of a line with fields"),
    LogField("exception", "", "traceback, where there is one"),
)

METHOD = LogField("method", "", "method, after `X-HTTP-Method-Override`")
PATH = LogField("path", "", "path that the client asked for, without the query, also below a mount")
STATUS = LogField("status", "", "status of the answer; 0 if the client was gone before")
DURATION = LogField("duration_ms", "milliseconds", "time from the head of the request to the end of the answer")
CLIENT = LogField("client", "", "address of the client, as far as `--trusted-proxies` are trusted")
PRINCIPAL = LogField("principal", "", "authenticated sender ([security.md](security.md))")
UPLOAD = LogField("upload", "", "id of the upload")
CODE = LogField("code", "", "error code ([troubleshooting.md](troubleshooting.md))")

REQUEST = LogLine(
    "tusd_py.requests",
    "request",
    (
        METHOD,
        PATH,
        STATUS,
        DURATION,
        LogField("bytes", "bytes", "bytes received; of a download, bytes sent"),
        CLIENT,
        PRINCIPAL,
        LogField(
            "refusal",
            "",
            "reason why the request was not let in, or the upload not taken: its size, its type, its content, a quota"
            " or a rate",
        ),
        UPLOAD,
        LogField("offset_before", "bytes", "committed offset at the beginning of an append"),
        LogField("offset_after", "bytes", "committed offset at its end"),
        CODE,
        LogField("request_id", "", "`X-Request-Id` of the request, its first 64 characters"),
    ),
)
COMPLETE = LogLine(
    "tusd_py.uploads",
    "complete",
    (
        UPLOAD,
        LogField("name", "", "file name in the metadata (`filename`, else `name`), its first 255 characters"),
        LogField("bytes", "bytes", "length"),
        LogField("seconds", "seconds", "time from the creation to the completion"),
    ),
)
REFUSED = LogLine(
    "tusd_py.uploads",
    "refused",
    (
        UPLOAD,
        LogField("owner", "", "its owner"),
        LogField("code", "", "error code, such as `ERR_MALWARE_FOUND`"),
        LogField("reason", "", "reason, with the type, or with the name of the malware"),
        LogField("client", "", "address of the client whose request brought the last byte"),
        LogField("principal", "", "authenticated sender of that request"),
    ),
)
ADMIN = LogLine(
    "tusd_py.admin",
    "admin",
    (
        METHOD,
        PATH,
        CLIENT,
        LogField("principal", "", "administrator who sent the request"),
        UPLOAD,
        LogField("event", "", "id of the event that is to be delivered again"),
        CODE,
        LogField("refusal", "", "reason why the request was not let in"),
        STATUS,
        DURATION,
    ),
)
LINES = (REQUEST, COMPLETE, REFUSED, ADMIN)
