"""Errors on the wire: HTTP statuses of upload errors, errors of HTTP itself, rendering as text or problem details."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tusd_py.core import errors

ZERO_WEIGHT = re.compile(r"q\s*=\s*0(?:\.0*)?")
RETRY_AFTER = "1"  # seconds


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Status, code and message of the response to a request that failed."""

    status: int
    code: str
    message: str
    retry: bool = False  # the same request may succeed later
    close: bool = False  # the connection cannot be used again
    headers: Mapping[str, str] = field(default_factory=dict)  # of this error only
    body: str | None = None  # in place of code and message


class HTTPError(errors.CodedError):
    """A request that is refused for its form, independent of the state of the upload.

    Args:
        status: the status of the answer.
        code: the code of the error.
        message: one sentence for the client.
        headers: header fields that the answer needs, such as Allow.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


# Error class -> status, whether the client is to try again, whether to close the connection. An append that ends early
# has a status that clients retry (423, 5xx); they take every other 4xx as final.
STATUS: dict[type[errors.UploadError], tuple[int, bool, bool]] = {
    errors.UploadNotFound: (404, False, False),
    errors.UploadGone: (410, False, False),
    errors.UploadExists: (409, False, False),
    errors.PathTaken: (409, False, False),
    errors.WrongStatus: (409, False, False),
    errors.HookUnavailable: (503, True, False),
    errors.OffsetMismatch: (409, False, False),
    errors.SizeExceeded: (413, False, False),
    errors.MaxSizeExceeded: (413, False, False),
    errors.QuotaExceeded: (413, False, False),
    errors.InvalidLength: (400, False, False),
    errors.FinalUploadModified: (403, False, False),
    errors.ChecksumMismatch: (460, False, False),
    errors.DigestMismatch: (460, False, False),
    errors.TypeNotAllowed: (415, False, False),
    errors.MalwareFound: (422, False, False),
    errors.ScanSizeExceeded: (413, False, False),
    errors.ScanUnavailable: (503, True, False),
    errors.InvalidConcatenation: (400, False, False),
    errors.PartialUnfinished: (400, False, False),
    errors.LockTimeout: (423, True, False),
    errors.LockLost: (423, True, False),
    errors.UploadInterrupted: (423, True, True),
    errors.ReadTimeout: (503, True, True),
    errors.IncompleteBody: (400, False, True),
    errors.ServerShutdown: (503, True, True),
    errors.NotReady: (503, True, False),
    errors.AuthenticationUnavailable: (503, True, False),
    errors.StorageFull: (507, True, False),
    errors.StateFull: (507, True, False),
    errors.StorageUnavailable: (500, True, False),
    errors.BrokenRecord: (500, False, False),
    errors.CompletionDelayed: (503, True, False),
    errors.WrongStorage: (503, True, False),
    errors.StateUnavailable: (503, True, False),
}


def error_response_for(error: errors.CodedError) -> ErrorResponse:
    """Return the response to a request that failed with `error`."""
    if isinstance(error, HTTPError):
        return ErrorResponse(error.status, error.code, error.message, headers=error.headers)
    if isinstance(error, errors.HookRejected):
        return ErrorResponse(error.status, error.code, error.message, body=error.body, headers=error.headers)
    for kind in type(error).__mro__:
        if kind in STATUS:
            status, retry, close = STATUS[kind]
            return ErrorResponse(status, error.code, error.message, retry, close)
    return INTERNAL_ERROR


INTERNAL_ERROR = ErrorResponse(500, "ERR_INTERNAL_SERVER_ERROR", "something went wrong in the server", retry=True)
# Clients start a new upload at byte 0 when HEAD answers 5xx, so that no transient error may have such a status.
TRY_LATER = ErrorResponse(423, "ERR_TRY_LATER", "the upload cannot be looked at now; try again", retry=True)


JSON_TYPES = ("application/problem+json", "application/json")


def render(answer: ErrorResponse, accept: str) -> tuple[str, bytes]:
    """Return content type and body: problem details for clients that accept JSON, else `CODE: sentence`."""
    if answer.body is not None:
        return "text/plain; charset=utf-8", answer.body.encode("utf-8", "replace")
    if any(_accepts(accept, media_type) for media_type in JSON_TYPES):
        problem = {"title": answer.message, "status": answer.status, "code": answer.code}
        return "application/problem+json", json.dumps(problem).encode()
    return "text/plain; charset=utf-8", f"{answer.code}: {answer.message}\n".encode()


def _accepts(accept: str, media_type: str) -> bool:
    """Return whether an Accept field names `media_type` with a weight above zero (RFC 9110, section 12.5.1)."""
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == media_type:
            return not any(ZERO_WEIGHT.fullmatch(parameter) for parameter in parameters)
    return False
