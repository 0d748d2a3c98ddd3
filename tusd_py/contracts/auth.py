"""The contract of authentication: who sent a request, and which uploads its sender may use.

Example, of an application that knows its users by their sessions::

    class BySession:
        async def authenticate(self, context: RequestContext) -> Principal | None:
            user = context.scope["session"].get("user")
            return Principal(user) if user else None

    tus = TusServer(upload_dir="uploads", authenticator=BySession())
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload

ADMIN_SCOPE = "uploads:admin"
METRICS_SCOPE = "uploads:metrics"  # of programs that read the metrics, and may do nothing else
READ_SCOPE = "uploads:read"
WRITE_SCOPE = "uploads:write"
DELETE_SCOPE = "uploads:delete"
MAX_OWNER_LENGTH = 255  # characters


class Action(StrEnum):
    """The purpose of a request. `docs/security.md` has an example of an authenticator."""

    CREATE = "create"
    INSPECT = "inspect"
    APPEND = "append"
    DOWNLOAD = "download"
    TERMINATE = "terminate"
    CONCATENATE = "concatenate"  # use of a partial upload for a final one


class Decision(StrEnum):
    """The answer to the question whether a principal may do something with an upload.

    Example::

        async def authorize(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
            if upload is None or upload.owner == context.principal:
                return Decision.ALLOW
            return Decision.HIDE
    """

    ALLOW = "allow"
    HIDE = "hide"  # answered as if there was no such upload
    FORBID = "forbid"  # answered 403: the sender may know of the upload


# The scopes of which each action needs one.
NEEDED_SCOPES: Mapping[Action, tuple[str, ...]] = {
    Action.CREATE: (WRITE_SCOPE,),
    Action.INSPECT: (READ_SCOPE, WRITE_SCOPE),
    Action.APPEND: (WRITE_SCOPE,),
    Action.DOWNLOAD: (READ_SCOPE,),
    Action.TERMINATE: (DELETE_SCOPE,),
    Action.CONCATENATE: (WRITE_SCOPE,),
}
RESTRICTING_PREFIX = "uploads:"  # of scopes that restrict a principal to them; others neither give nor take a right
KNOWN_SCOPES = frozenset({READ_SCOPE, WRITE_SCOPE, DELETE_SCOPE, ADMIN_SCOPE, METRICS_SCOPE})


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated sender of a request. `docs/security.md` has an example.

    Attributes:
        owner: the name that uploads of this principal are kept under, never empty.
        scopes: its rights. `uploads:admin` may do everything with every upload; a scope that begins with `uploads:`
            restricts a principal to those of `uploads:read`, `uploads:write` and `uploads:delete` that it has.
        max_size: bytes that an upload of this principal may have at most, where the server allows more.
        claims: what else is known of the principal, such as the claims of a token.
        quota_bytes: bytes that all uploads of this principal may have together, in place of what the server allows.
    """

    owner: str
    scopes: frozenset[str] = frozenset()
    max_size: int | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    quota_bytes: int | None = None

    def __post_init__(self) -> None:
        if not is_owner(self.owner):
            raise ValueError(f"the owner of a principal must be 1 to {MAX_OWNER_LENGTH} printable characters")

    @property
    def is_admin(self) -> bool:
        """Whether the principal may do everything with every upload."""
        return ADMIN_SCOPE in self.scopes


class InvalidCredentials(Exception):
    """A request has credentials that are not accepted; the text says why, for the log, and holds no secret.

    Example::

        async def authenticate(self, context: RequestContext) -> Principal | None:
            token = context.headers.get("x-token")
            if token is not None and token not in self.tokens:
                raise InvalidCredentials("the token is not known")
            return None if token is None else Principal(self.tokens[token])
    """


class ExpiredCredentials(InvalidCredentials):
    """A request has credentials that were good and have expired: the client is to renew them and to go on.

    HEAD is answered 423 in place of 401, after which clients would begin the upload again at its first byte.

    Example::

        async def authenticate(self, context: RequestContext) -> Principal | None:
            session = self.sessions[context.headers["x-session"]]
            if session.expires_at < time.time():
                raise ExpiredCredentials("the session has expired")
            return Principal(session.user)
    """


@runtime_checkable
class Authenticator(Protocol):
    """The authentication of requests, given as `TusServer(authenticator=...)`."""

    async def authenticate(self, context: RequestContext) -> Principal | None:
        """Return the sender of a request, before any byte of its body is read; None for an unknown one.

        Runs in the event loop, for every request but OPTIONS, so that it must not block. The client is told to try
        again after an exception, and if there is no answer within ten seconds (one second for HEAD).

        Args:
            context: the request; `context.scope` has what middlewares of the application know of it.

        Raises:
            InvalidCredentials: the credentials are wrong.
            ExpiredCredentials: they were good, and have expired.
            AuthenticationUnavailable: the sender cannot be found out now.
        """


@runtime_checkable
class SupportsAuthorization(Protocol):
    """An authenticator that decides who may use an upload, in place of `decide_by_owner`."""

    async def authorize(self, context: RequestContext, action: Action, upload: Upload | None) -> Decision:
        """Decide whether a request may be carried out. Runs as `authenticate` does.

        Args:
            context: the request; `context.principal` and `context.scopes` tell of its sender.
            action: the purpose of the request.
            upload: the upload of the request, which may have ended; None for a creation.
        """


@runtime_checkable
class NamesSecretHeaders(Protocol):
    """An authenticator whose credentials come in header fields of its own."""

    @property
    def secret_headers(self) -> Collection[str]:
        """The names of these fields, whose values are left out of stored events, in any case."""


def decide_by_owner(context: RequestContext, action: Action, upload: Upload | None) -> Decision:
    """Decide that an upload is for its owner, within the scopes of the owner, and for principals with `uploads:admin`.

    An upload without an owner, made before there was authentication, is for the latter alone.
    """
    if ADMIN_SCOPE in context.scopes:
        return Decision.ALLOW
    if not context.principal or (upload is not None and upload.owner != context.principal):
        return Decision.HIDE
    return Decision.ALLOW if has_right(context.scopes, action) else Decision.FORBID


def has_right(scopes: Set[str], action: Action) -> bool:
    """Return whether scopes give a right to own uploads: one that it needs, or none that restricts to some rights."""
    if not scopes:  # as of most principals
        return True
    return not scopes.isdisjoint(NEEDED_SCOPES[action]) or not any(
        scope.startswith(RESTRICTING_PREFIX) for scope in scopes
    )


def is_owner(text: str) -> bool:
    """Return whether a text can be the owner of an upload."""
    return 0 < len(text) <= MAX_OWNER_LENGTH and text.isprintable() and text == text.strip()
