"""The authenticator of the settings: API tokens and JSON Web Tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tusd_py.auth.api_tokens import ApiTokens, principal_of
from tusd_py.auth.credentials import bearer_token, check_origin, cookie_token
from tusd_py.auth.secret_files import SecretFile
from tusd_py.contracts.auth import InvalidCredentials, Principal
from tusd_py.core.request_context import RequestContext


class VerifiesTokens(Protocol):
    """The verification of signed tokens."""

    async def principal_of(self, token: str) -> Principal:
        """Return the principal of a token.

        Raises:
            InvalidCredentials: the token is not accepted.
            AuthenticationUnavailable: the keys are away.
        """

    def known(self, token: str) -> Principal | None:
        """Return the principal of a token that was accepted before; None if it has to be looked at again."""

    async def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, slots=True)
class CookieRule:
    """The name of the cookie that holds a token, and which origins of pages may send it."""

    name: str
    is_allowed_origin: Callable[[str], bool]


class TokenAuthenticator:
    """The authentication of requests by the tokens that they bring (`tusd_py.contracts.auth.Authenticator`)."""

    def __init__(
        self,
        api_tokens: SecretFile[ApiTokens] | None,
        signed_tokens: VerifiesTokens | None,
        cookie: CookieRule | None = None,
    ) -> None:
        """Take at least one kind of tokens; without `cookie` they come in the field Authorization only."""
        self._api_tokens = api_tokens
        self._signed_tokens = signed_tokens
        self._cookie = cookie

    async def authenticate(self, context: RequestContext) -> Principal | None:
        """Return the sender of a request; None without a token. Raises as the contract has it."""
        token = bearer_token(context.headers)
        if token is None and self._cookie is not None:
            token = cookie_token(context.headers, self._cookie.name)
            if token is not None:
                check_origin(context.method, context.headers, self._cookie.is_allowed_origin)
        return None if token is None else await self._principal_of(token)

    async def _principal_of(self, token: str) -> Principal:
        if not token:
            raise InvalidCredentials("the token is empty")
        if self._api_tokens is not None:
            await self._api_tokens.refresh()
            principal = principal_of(token, self._api_tokens.value)
            if principal is not None:
                return principal
        if self._signed_tokens is None:
            raise InvalidCredentials("the token is not known")
        return await self._signed_tokens.principal_of(token)

    def known(self, headers: Mapping[str, str]) -> Principal | None:
        """Return the sender of a request with a token that was accepted before; None if there is more to look at."""
        token = bearer_token(headers)
        if token is None:
            return None
        if self._api_tokens is not None:
            if not self._api_tokens.is_fresh:
                return None
            principal = principal_of(token, self._api_tokens.value)
            if principal is not None:
                return principal
        return None if self._signed_tokens is None else self._signed_tokens.known(token)

    async def close(self) -> None:
        """Close every connection."""
        if self._signed_tokens is not None:
            await self._signed_tokens.close()
