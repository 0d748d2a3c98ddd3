"""Requests to the administration API: their parts, and the parameters of a list. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl

from tusd_py.core.listing import UploadFilter
from tusd_py.core.queries import MAX_LIMIT, ORDERS, UploadQuery, decode_cursor
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status
from tusd_py.http.errors import HTTPError

TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
NUMBER = re.compile(r"[1-9][0-9]{0,5}")
MAX_TEXT_LENGTH = 256  # characters of a text to search for, and of the name of an owner
MAX_PARAMETERS = 20
LIST_PARAMETERS = ("state", "owner", "q", "created_after", "created_before", "order", "limit", "after")
DEFAULT_ORDER = "-created_at"
DEFAULT_LIMIT = 50


class BadParameter(HTTPError):
    """A request with a parameter that is not accepted."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, "ERR_INVALID_PARAMETER", reason)


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """A request that was let in.

    Attributes:
        context: the request, whose principal is the administrator.
        id: the id in the path; empty without one.
        parameters: those of the query.
    """

    context: RequestContext
    id: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListRequest:
    """A page of a list, and the text that its uploads contain."""

    query: UploadQuery
    text: str


def parse_parameters(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Return the parameters of a query; raises `BadParameter` for one that is unknown, repeated or no text."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise BadParameter("the query cannot be read") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise BadParameter(f"the parameters here are {', '.join(known)}" if known else "no parameter is known here")
        if name in found:
            raise BadParameter(f"{name} may be there once")
        found[name] = value
    return found


def parse_list(parameters: Mapping[str, str]) -> ListRequest:
    """Return the list that parameters ask for; raises `BadParameter`."""
    order = parameters.get("order", DEFAULT_ORDER)
    descending, name = order.startswith("-"), order.removeprefix("-")
    if name not in ORDERS:
        raise BadParameter(f"order is one of {', '.join(ORDERS)}, with - before it for descending")
    condition = UploadFilter(
        _status(parameters.get("state")),
        _text("owner", parameters.get("owner")),
        _time("created_after", parameters.get("created_after")),
        _time("created_before", parameters.get("created_before")),
    )
    query = UploadQuery(condition, name, descending, parse_limit(parameters))
    if "after" in parameters:
        try:
            position = decode_cursor(parameters["after"], name, descending=descending)
        except ValueError:
            raise BadParameter("after is `next` of the page before, with the same order") from None
        query = UploadQuery(condition, name, descending, query.limit, position)
    return ListRequest(query, _text("q", parameters.get("q")) or "")


def _status(text: str | None) -> Status | None:
    try:
        return None if text is None else Status(text)
    except ValueError:
        raise BadParameter(f"state is one of {', '.join(Status)}") from None


def _text(name: str, text: str | None) -> str | None:
    if text is not None and len(text) > MAX_TEXT_LENGTH:
        raise BadParameter(f"{name} has at most {MAX_TEXT_LENGTH} characters")
    return text


def parse_limit(parameters: Mapping[str, str]) -> int:
    """Return the number of entries of a page at most; raises `BadParameter`."""
    text = parameters.get("limit")
    if text is None:
        return DEFAULT_LIMIT
    if not NUMBER.fullmatch(text) or int(text) > MAX_LIMIT:
        raise BadParameter(f"limit is a number from 1 to {MAX_LIMIT}")
    return int(text)


def _time(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    text = text.replace(" ", "+")  # of the offset, where it was not encoded
    try:
        if not TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        raise BadParameter(f"{name} is a time such as 2026-01-31T12:00:00Z") from None
