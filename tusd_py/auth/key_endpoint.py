"""The keys of an issuer of tokens, from its JWKS endpoint: kept, renewed beside requests, and fetched for a new key."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from dataclasses import dataclass

from tusd_py.auth.keys import KeySet, parse_key_set
from tusd_py.core.errors import AuthenticationUnavailable
from tusd_py.http_client.client import HttpClient, endpoint_name, parse_http_url
from tusd_py.http_client.response_parser import HttpFailure

logger = logging.getLogger("tusd_py.auth")

FETCH_TIMEOUT = 5.0  # seconds
MAX_KEY_SET_SIZE = 256 << 10  # bytes
MIN_LIFETIME, MAX_LIFETIME = 300.0, 86400.0  # seconds that fetched keys count as fresh
RETRY_INTERVAL = 1.0  # seconds between two attempts while the endpoint fails
MAX_EXTRA_FETCHES = 10  # fetches for keys that are not known, in a row
EXTRA_FETCH_INTERVAL = 10.0  # seconds after which one more of them is allowed
MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Answer:
    """A key set, and the seconds that it counts as fresh."""

    body: bytes
    lifetime: float


class KeyEndpoint:
    """The keys of a JWKS endpoint. Keys that were fetched stay in use until there are others.

    Attributes:
        keys: the keys that are known; empty before the first fetch.
        changes: the number of times that the keys have changed.
    """

    def __init__(self, url: str) -> None:
        """Make the endpoint without any request."""
        self._url = parse_http_url(url)
        self._fetching: asyncio.Task[bool] | None = None
        self._fresh_until = 0.0  # in the time of the monotonic clock, as all others
        self._asked_at = -math.inf  # when the fetch began that the keys are of
        self._answer: bytes | None = None  # the body of that answer
        self._failed_at: float | None = None
        self._failure = ""
        self._extra = float(MAX_EXTRA_FETCHES)  # fetches for unknown keys that are left
        self._extra_counted_at = time.monotonic()
        self.keys: KeySet = ()
        self.changes = 0

    @property
    def is_fresh(self) -> bool:
        """Whether there are keys that need not be renewed yet."""
        return bool(self.keys) and time.monotonic() < self._fresh_until

    async def refresh(self) -> None:
        """Have keys: wait for the first ones, and begin to renew old ones.

        Raises:
            AuthenticationUnavailable: no keys have been fetched yet, and they cannot be now.
        """
        if self.keys:
            if time.monotonic() >= self._fresh_until and not self._has_just_failed():
                self._start()
            return
        if self._has_just_failed() or not await self._fetch():
            raise AuthenticationUnavailable

    async def renew_for_unknown_key(self, since: float) -> bool:
        """Have keys that were asked for after `since`, on behalf of a token that no known key verifies.

        Such tokens cost anybody nothing to make: after a number of fetches there is one every ten seconds, and until
        then nobody knows whether such a token is good.

        Returns:
            True.

        Raises:
            AuthenticationUnavailable: the keys cannot be fetched now.
        """
        while self._asked_at < since:  # again after a fetch that had begun before
            if self._fetching is None and (self._has_just_failed() or not self._may_fetch_again()):
                raise AuthenticationUnavailable
            if not await self._fetch():
                raise AuthenticationUnavailable
        return True

    def _has_just_failed(self) -> bool:
        return self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_INTERVAL

    def _may_fetch_again(self) -> bool:
        now = time.monotonic()
        earned = (now - self._extra_counted_at) / EXTRA_FETCH_INTERVAL
        self._extra = min(float(MAX_EXTRA_FETCHES), self._extra + earned)
        self._extra_counted_at = now
        if self._extra < 1:
            return False
        self._extra -= 1
        return True

    async def _fetch(self) -> bool:
        """Fetch the keys, all who need them together; return whether they were fetched."""
        return await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[bool]:
        fetching = self._fetching
        if fetching is None or fetching.get_loop() is not asyncio.get_running_loop():
            fetching = self._fetching = asyncio.create_task(self._fetch_once())
        return fetching

    async def _fetch_once(self) -> bool:
        asked_at = time.monotonic()
        try:
            answer = await self._ask()
            keys = self.keys if answer.body == self._answer else parse_key_set(answer.body)
        except (HttpFailure, ValueError) as error:
            self._note_failure(str(error))
            return False
        except Exception as error:  # a key that the packages cannot take: those that were fetched stay in use
            self._note_failure(type(error).__name__)
            return False
        finally:
            self._fetching = None
        self._failed_at, self._failure = None, ""
        self._asked_at = asked_at
        self._fresh_until = time.monotonic() + answer.lifetime
        if keys is not self.keys:
            self._answer, self.keys = answer.body, keys
            self.changes += 1
        return True

    def _note_failure(self, reason: str) -> None:
        self._failed_at = time.monotonic()
        if reason != self._failure:
            self._failure = reason
            logger.error("the keys of %s could not be fetched: %s", endpoint_name(self._url), reason)

    async def _ask(self) -> _Answer:
        """Return the answer of the endpoint; raises `HttpFailure`."""
        headers = {"Accept": "application/jwk-set+json, application/json"}
        client = HttpClient()
        try:
            answer = await client.get(self._url, headers, FETCH_TIMEOUT, max_body=MAX_KEY_SET_SIZE)
        finally:
            await client.close()
        if answer.status != 200:
            raise HttpFailure(f"the status of the answer is {answer.status}")
        if answer.body is None:
            raise HttpFailure(f"the answer has more than {MAX_KEY_SET_SIZE >> 10} KiB")
        return _Answer(answer.body, lifetime_of(answer.headers.get("cache-control", "")))

    async def close(self) -> None:
        """End a fetch that is under way."""
        fetching = self._fetching
        if fetching is not None and fetching.get_loop() is asyncio.get_running_loop():
            fetching.cancel()
            await asyncio.wait((fetching,))
        self._fetching = None


def lifetime_of(cache_control: str) -> float:
    """Return the seconds that keys count as fresh, by the Cache-Control field of their answer."""
    match = MAX_AGE.search(cache_control)
    return min(MAX_LIFETIME, max(MIN_LIFETIME, float(match[1]))) if match else MIN_LIFETIME
