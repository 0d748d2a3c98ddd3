"""The verification of signed tokens with keys that may change, and a memory of those that were accepted."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from tusd_py.auth.claims import ClaimRules, VerifiedToken, accept
from tusd_py.auth.keys import KeySet
from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signed_tokens import UnknownKey, verified_claims
from tusd_py.contracts.auth import ExpiredCredentials, Principal

MAX_REMEMBERED = 10_000  # accepted tokens


class KeySource(Protocol):
    """The keys that verify tokens at a time."""

    @property
    def keys(self) -> KeySet:
        """The keys that are known."""

    @property
    def changes(self) -> int:
        """A number that differs once the keys do."""

    @property
    def is_fresh(self) -> bool:
        """Whether the keys are new enough, so that `refresh` has nothing to do."""

    async def refresh(self) -> None:
        """Have keys that are new enough; raises `AuthenticationUnavailable` if there are none."""

    async def renew_for_unknown_key(self, since: float) -> bool:
        """Have keys that were asked for after `since`, in the time of the monotonic clock.

        Returns whether there may be others than before. Raises as `refresh` does.
        """

    async def close(self) -> None:
        """Close every connection."""


class KeyFile:
    """The keys of a file (`KeySource`)."""

    def __init__(self, file: SecretFile[KeySet]) -> None:
        """Take the file, which has been read."""
        self._file = file

    @property
    def keys(self) -> KeySet:
        """The keys of the file."""
        return self._file.value

    @property
    def changes(self) -> int:
        """The number of times that the file has changed."""
        return self._file.changes

    @property
    def is_fresh(self) -> bool:
        """Whether the file was looked at just now."""
        return self._file.is_fresh

    async def refresh(self) -> None:
        """Read the file again if it has changed."""
        await self._file.refresh()

    async def renew_for_unknown_key(self, since: float) -> bool:
        """Return False: the file is looked at every second."""
        return False

    async def close(self) -> None:
        """Do nothing."""


class SignedTokenVerifier:
    """The verification of signed tokens. A token that was accepted is not verified again until it expires."""

    def __init__(self, source: KeySource, rules: ClaimRules, now: Callable[[], float] = time.time) -> None:
        """Take the keys, the claims that tokens need, and the clock in seconds since the epoch."""
        self._source = source
        self._rules = rules
        self._now = now
        self._accepted: OrderedDict[bytes, VerifiedToken] = OrderedDict()  # by digest, the oldest first
        self._changes = source.changes  # of the keys that verified them

    async def principal_of(self, token: str) -> Principal:
        """Return the principal of a token; raises `InvalidCredentials` and `AuthenticationUnavailable`."""
        await self._source.refresh()
        if self._changes != self._source.changes:  # a key may have gone
            self._accepted.clear()
            self._changes = self._source.changes
        digest = _digest(token)
        known = self._accepted.get(digest)
        if known is None:
            known = await self._verify(token)
            self._remember(digest, known)
        if self._now() >= known.expires_at:
            self._accepted.pop(digest, None)
            raise ExpiredCredentials("the token has expired")
        return known.principal

    def known(self, token: str) -> Principal | None:
        """Return the principal of a token that was accepted before; None if keys or token have to be looked at."""
        if not self._source.is_fresh or self._changes != self._source.changes:
            return None
        known = self._accepted.get(_digest(token))
        return known.principal if known is not None and self._now() < known.expires_at else None

    async def _verify(self, token: str) -> VerifiedToken:
        since = time.monotonic()
        try:
            return self._accept(token)
        except UnknownKey:
            if not await self._source.renew_for_unknown_key(since):
                raise
        return self._accept(token)

    def _accept(self, token: str) -> VerifiedToken:
        return accept(verified_claims(token, self._source.keys), self._rules, self._now())

    def _remember(self, digest: bytes, token: VerifiedToken) -> None:
        if self._changes != self._source.changes:  # the keys changed for this token
            self._accepted.clear()
            self._changes = self._source.changes
        while len(self._accepted) >= MAX_REMEMBERED:
            self._accepted.popitem(last=False)
        self._accepted[digest] = token

    async def close(self) -> None:
        """Close every connection."""
        await self._source.close()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
