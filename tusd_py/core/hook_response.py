"""The answer of a hook to the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HookResponse:
    """The part of an answer to a client that a hook sets.

    Attributes:
        status: None leaves the status of the server.
        headers: header fields that are added to those of the server, or take their place.
        body: None leaves the body of the server.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    def merged(self, later: HookResponse | None) -> HookResponse:
        """Return this response with what a later one sets in its place."""
        if later is None:
            return self
        return HookResponse(
            self.status if later.status is None else later.status,
            {**self.headers, **later.headers},
            self.body if later.body is None else later.body,
        )
