"""The request on whose behalf an upload is created, changed or removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tusd_py.core.hook_response import HookResponse

MAX_CLIENT_LENGTH = 64  # characters; the longest address has 45, and may have a zone


@dataclass(frozen=True, slots=True)
class RequestContext:
    """An HTTP request as the service and the subscribers of events see it, whatever protocol it speaks.

    Example::

        @tus.on(UploadFinished)
        async def finished(event: UploadFinished) -> None:
            if event.request is not None:
                print(event.upload.id, "from", event.request.client, event.request.headers.get("user-agent"))

    Attributes:
        method: the method, after X-HTTP-Method-Override.
        path: the path of the URL, decoded, below the host.
        headers: the header fields by their names in lower case; fields of one name are joined by commas. Not in the
            `repr`, since there may be credentials among them. Not to be changed.
        client: the address of the client, as far as the proxies in between are trusted; empty if it is unknown.
        principal: the name of the authenticated sender; None without authentication.
        query: the query of the URL, without `?`. There may be credentials in it.
        port: the port of the client; 0 if only a proxy knows it.
        answers: collects what hooks want the client to be told.
        scopes: the rights of the authenticated sender.
        scope: the ASGI scope, with what middlewares of the application add to it, such as `session` or `user`. Not to
            be changed.
        secret_headers: names, in lower case, of header fields whose values no stored event has.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    client: str = ""
    principal: str | None = None
    query: str = field(default="", repr=False)
    port: int = 0
    answers: list[HookResponse] = field(default_factory=list, repr=False, compare=False)
    scopes: frozenset[str] = frozenset()
    scope: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    secret_headers: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @property
    def uri(self) -> str:
        """The path with the query."""
        return f"{self.path}?{self.query}" if self.query else self.path


def owner_of(context: RequestContext | None) -> str:
    """Return the `Upload.owner` of an upload that a request creates; empty without an authenticated sender."""
    return (context.principal or "") if context is not None else ""


def client_of(context: RequestContext | None) -> str:
    """Return the `Upload.client` of an upload that a request creates; a proxy may have named it by any text."""
    client = "" if context is None else context.client[:MAX_CLIENT_LENGTH]
    return client if client.isprintable() else ""
