"""The decision who may administrate: whoever has the token of the operator, or the scope `uploads:admin`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tusd_py.auth.credentials import SAFE_METHODS, bearer_token, is_embedded_elsewhere
from tusd_py.auth.secret_files import SecretFile
from tusd_py.contracts.auth import ADMIN_SCOPE, Authenticator, InvalidCredentials, NamesSecretHeaders, Principal
from tusd_py.core.errors import AuthenticationUnavailable
from tusd_py.core.event_document import has_secret_header
from tusd_py.core.request_context import RequestContext
from tusd_py.http.access import TIMEOUT, Unauthorized, authenticate
from tusd_py.http.errors import HTTPError
from tusd_py.http.failure_log import FailureLog

logger = logging.getLogger("tusd_py.admin")

TOKEN_HOLDER = Principal("admin", frozenset({ADMIN_SCOPE}))  # whoever has the token of the operator
GOOD_TOKEN_LENGTH = 16  # characters


class NoAdministrator(HTTPError):
    """A request of a principal that may not administrate."""

    def __init__(self, scope: str) -> None:
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        super().__init__(403, "ERR_FORBIDDEN", f"the scope {scope} is needed", {"WWW-Authenticate": challenge})


def parse_admin_token(content: bytes) -> bytes:
    """Return the SHA-256 digest of the token in a file of one line; raises `ValueError`."""
    token = content.decode().removesuffix("\n").removesuffix("\r")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is one line of printable ASCII characters without spaces")
    if len(token) < GOOD_TOKEN_LENGTH:
        logger.warning("the admin token has less than %d characters; it can be guessed", GOOD_TOKEN_LENGTH)
    return hashlib.sha256(token.encode()).digest()


def read_admin_token(path: Path | None) -> SecretFile[bytes] | None:
    """Read the file with the admin token; None without one. Blocks. Raises `ValueError`."""
    return None if path is None else SecretFile(path, parse_admin_token)


class AdminAccess:
    """The authentication of administrators."""

    def __init__(
        self,
        token: SecretFile[bytes] | None,
        authenticator: Authenticator | None,
        is_own_origin: Callable[[str, Mapping[str, Any], Mapping[str, str]], bool],
    ) -> None:
        """Take the ways in.

        Args:
            token: the digest of the token of the operator; None without one.
            authenticator: finds the senders of requests; None without one.
            is_own_origin: whether the pages of an origin may send cookies.
        """
        self._token = token
        self._authenticator = authenticator
        self._is_own_origin = is_own_origin
        self._failures = FailureLog()
        self._secret_headers = frozenset[str]()
        given: object = authenticator
        if isinstance(given, NamesSecretHeaders):
            self._secret_headers = frozenset(name.lower() for name in given.secret_headers)

    async def admit(self, context: RequestContext, scope: str = ADMIN_SCOPE) -> Principal:
        """Return the administrator, or the principal with another scope, who sent a request.

        Raises:
            Unauthorized: there are no credentials, or they are not accepted.
            NoAdministrator: the sender may not administrate.
            AuthenticationUnavailable: the sender cannot be found out now.
            HTTPError: there are two fields with credentials.
        """
        if sum(name == b"authorization" for name, _ in context.scope["headers"]) > 1:
            raise HTTPError(400, "ERR_INVALID_AUTHORIZATION", "Authorization may be there once")
        if await self._has_token(context):
            return TOKEN_HOLDER
        principal = await self._principal_of(context)
        if not principal.is_admin and scope not in principal.scopes:
            raise NoAdministrator(scope)
        return principal

    def told_context(self, context: RequestContext, actor: str) -> RequestContext:
        """Return a request as hooks and events may see it: with the name of the administrator, without credentials.

        Unlike the token of a client, which is good for its own uploads, that of an administrator is good for all.
        """
        headers = {name: value for name, value in context.headers.items() if not self._is_secret(name)}
        raw = [field for field in context.scope["headers"] if not self._is_secret(field[0].decode("latin-1").lower())]
        return replace(
            context,
            principal=actor,
            headers=headers,
            scope={**context.scope, "headers": raw},
            secret_headers=self._secret_headers,
        )

    def _is_secret(self, name: str) -> bool:
        return name in self._secret_headers or has_secret_header(name)

    async def _has_token(self, context: RequestContext) -> bool:
        token = bearer_token(context.headers)
        if self._token is None or not token:
            return False
        await self._token.refresh()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(digest, self._token.value)

    async def _principal_of(self, context: RequestContext) -> Principal:
        if self._authenticator is None:
            has_credentials = "authorization" in context.headers
            raise Unauthorized("no admin token", had_credentials=has_credentials)
        self._refuse_foreign_page(context)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await authenticate(self._authenticator, context, self._failures)
        except InvalidCredentials as error:
            raise Unauthorized(str(error), had_credentials=True) from None
        except TimeoutError:
            raise AuthenticationUnavailable from None

    def _refuse_foreign_page(self, context: RequestContext) -> None:
        """Raise `Unauthorized` for a request with a cookie that a page of another origin has sent."""
        if "cookie" not in context.headers or "authorization" in context.headers:
            return
        origin = context.headers.get("origin")
        if origin is None and context.method in SAFE_METHODS and not is_embedded_elsewhere(context.headers):
            return
        if origin is None or not self._is_own_origin(origin, context.scope, context.headers):
            raise Unauthorized("the cookie comes from a page of another origin", had_credentials=True)
