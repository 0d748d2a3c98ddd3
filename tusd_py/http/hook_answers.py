"""The answers of hooks to clients, as changes of responses."""

from __future__ import annotations

from collections.abc import Mapping

from tusd_py.core.hook_response import HookResponse
from tusd_py.core.request_context import RequestContext
from tusd_py.http.request import Response

NO_CONTENT = frozenset({204, 205, 304})
# Header fields that belong to the connection, tell of the upload, or are in every response: no hook sets them.
FIXED_FIELDS = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "location",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "upload-concat",
        "upload-defer-length",
        "upload-expires",
        "upload-length",
        "upload-metadata",
        "upload-offset",
        "x-content-type-options",
    }
)
FIXED_PREFIXES = ("access-control-", "tus-")


def with_fields(headers: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    """Return header fields with others in place of those of the same name, whatever its case."""
    set_by_hook = {name.lower(): (name, value.strip()) for name, value in fields.items() if not _is_fixed(name.lower())}
    kept = {name: value for name, value in headers.items() if name.lower() not in set_by_hook}
    return kept | dict(set_by_hook.values())


def _is_fixed(name: str) -> bool:
    return name in FIXED_FIELDS or name.startswith(FIXED_PREFIXES)


def rejected(response: Response) -> Response:
    """Return the response to a rejected request, without a body where its status has none."""
    if response.status in NO_CONTENT:
        response.body = b""
        response.headers = {
            name: value for name, value in response.headers.items() if not name.lower().startswith("content-")
        }
    return response


def answered(response: Response, context: RequestContext | None) -> Response:
    """Return a response with what the hooks that allowed its request want the client to be told."""
    if context is None or not context.answers:
        return response
    wanted = HookResponse()
    for answer in context.answers:
        wanted = wanted.merged(answer)
    response.headers = with_fields(response.headers, wanted.headers)
    response.status = response.status if wanted.status is None else wanted.status
    if wanted.body is not None and response.status not in NO_CONTENT:
        if not any(name.lower() == "content-type" for name in response.headers):
            response.headers["Content-Type"] = "text/plain; charset=utf-8"
        response.body = wanted.body.encode("utf-8", "replace")
    return response
