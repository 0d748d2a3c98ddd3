"""The description of the administration API (OpenAPI 3.1), made from its routes. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tusd_py.admin.app import PATH, AnyRoute, StreamRoute
from tusd_py.core.queries import MAX_LIMIT, ORDERS
from tusd_py.core.upload import Status
from tusd_py.http.progress.endpoint import MAX_UPLOADS

API_VERSION = "1"  # of the API, which grows with minor releases
TEXT = {"type": "string"}
MAYBE_TEXT = {"type": ["string", "null"]}
NUMBER = {"type": "integer", "minimum": 0}
MAYBE_NUMBER = {"type": ["integer", "null"], "minimum": 0}
TIME = {"type": "string", "format": "date-time"}
MAYBE_TIME = {"type": ["string", "null"], "format": "date-time"}
STATES = {"type": "string", "enum": [str(status) for status in Status]}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


SHARE = {"count": NUMBER, "bytes": NUMBER}
SCHEMAS: dict[str, Any] = {
    "Upload": _object(
        id=TEXT, url=MAYBE_TEXT, status=STATES, offset=NUMBER, length=MAYBE_NUMBER, owner=MAYBE_TEXT,
        filename=MAYBE_TEXT, filetype=MAYBE_TEXT, metadata={"type": "object"}, concatenation=MAYBE_TEXT,
        partial_ids=_list_of(TEXT), created_at=MAYBE_TIME, updated_at=MAYBE_TIME, completed_at=MAYBE_TIME,
        expires_at=MAYBE_TIME, client=MAYBE_TEXT, locked={"type": ["boolean", "null"]},
    ),
    "Page": _object(uploads=_list_of(_ref("Upload")), next=MAYBE_TEXT),
    "History": _object(
        history=_list_of(
            _object(
                event=TEXT, time=MAYBE_TIME, offset=NUMBER, actor=MAYBE_TEXT, client=MAYBE_TEXT, code=MAYBE_TEXT
            )
        )
    ),
    "Stats": _object(
        as_of=TIME, total=_object(**SHARE), by_status={"type": "object", "additionalProperties": _object(**SHARE)},
        by_owner=_list_of(_object(owner=MAYBE_TEXT, **SHARE)), oldest=MAYBE_TIME, rates=_object(received=NUMBER),
        free_space=MAYBE_NUMBER,
    ),
    "Events": _object(
        events=_list_of(
            _object(
                id=TEXT, type=TEXT, upload=TEXT, sequence=NUMBER, time=TIME, sink=TEXT, attempts=NUMBER, status=TEXT,
                next_attempt_at=MAYBE_TIME, error=MAYBE_TEXT,
            )
        ),
        next=MAYBE_TEXT,
    ),
    "Orphans": _object(orphans=_list_of(_object(kind=TEXT, name=TEXT, upload_id=TEXT, created_at=TIME))),
    "Locks": _object(
        locks=_list_of(
            _object(
                upload_id=TEXT, since=TIME, method=MAYBE_TEXT, path=MAYBE_TEXT, client=MAYBE_TEXT,
                principal=MAYBE_TEXT, host=TEXT, pid=NUMBER,
            )
        ),
        processes=NUMBER,
        silent=NUMBER,
    ),
    "Settings": {"type": "object"},
    "Queue": _object(jobs=_list_of({"type": "object"})),
    "Description": {"type": "object"},
    "Problem": _object(title=TEXT, status=NUMBER, code=TEXT),
}  # fmt: skip
PARAMETERS: dict[str, Any] = {
    "state": STATES,
    "owner": TEXT,
    "q": TEXT,
    "created_after": TIME,
    "created_before": TIME,
    "order": {"type": "string", "enum": [f"{sign}{name}" for name in ORDERS for sign in ("", "-")]},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    "after": TEXT,
    "upload": {"type": "array", "items": TEXT, "maxItems": MAX_UPLOADS},
}
PROBLEM = {"description": "An error.", "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def describe(routes: Sequence[AnyRoute]) -> dict[str, Any]:
    """Return the description of these routes."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(f"/{route.path}", {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Administration of tusd-py", "version": API_VERSION},
        "servers": [{"url": PATH}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: AnyRoute) -> dict[str, Any]:
    parameters = [{"name": name, "in": "query", "schema": PARAMETERS[name]} for name in route.parameters]
    if "{id}" in route.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": TEXT})
    done: dict[str, Any] = {"204": {"description": "Done."}}
    if isinstance(route, StreamRoute):
        done = {"200": {"description": "Server-Sent Events.", "content": {"text/event-stream": {"schema": TEXT}}}}
    elif route.answers:
        done = {"200": {"description": "Done.", "content": {"application/json": {"schema": _ref(route.answers)}}}}
    name = f"{route.method}_{route.path}".lower().replace("{id}", "one").replace("/", "_").replace(".", "_")
    return {
        "summary": route.summary,
        "operationId": name,
        **({"parameters": parameters} if parameters else {}),
        "responses": done | {"default": PROBLEM},
    }
