"""Hooks of an HTTP endpoint, in the wire format of tusd."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tusd_py.contracts.hooks import HookAnswer, HookCall, HookType
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.errors import HookUnavailable
from tusd_py.core.event_document import has_secret_header, parse_document
from tusd_py.core.outbox import OutboxEvent
from tusd_py.hooks.event_names import hook_of
from tusd_py.hooks.payload import MAX_ANSWER, InvalidAnswer, canonical_name, notification, parse_answer, question
from tusd_py.hooks.signing import signature_headers
from tusd_py.http_client.client import HttpClient, parse_http_url
from tusd_py.http_client.response_parser import HttpAnswer, HttpFailure

logger = logging.getLogger("tusd_py.hooks")

MAX_PAUSE = 30.0  # seconds between two attempts
# Fields of the client that are never forwarded: they belong to this request.
OWN_FIELDS = frozenset(
    {"host", "connection", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive", "user-agent"}
)


@dataclass(frozen=True, slots=True)
class HttpHookOptions:
    """The way in which an endpoint is asked.

    Attributes:
        timeout: seconds for one attempt.
        attempts: number of attempts of a blocking hook.
        backoff: seconds of the first pause between two attempts; it doubles with each.
        forward: names of header fields of the client to copy, in lower case.
        secrets: keys of the signatures.
    """

    timeout: float = 15.0
    attempts: int = 3
    backoff: float = 1.0
    forward: tuple[str, ...] = ()
    secrets: tuple[bytes, ...] = ()


class HttpHooks:
    """Blocking hooks of one endpoint."""

    def __init__(self, url: str, client: HttpClient, options: HttpHookOptions, enabled: frozenset[HookType]) -> None:
        """Ask the endpoint `url` about the `enabled` hooks, by a client that others may use too."""
        self._enabled = enabled
        self._url = parse_http_url(url)
        self._client = client
        self._options = options

    def handles(self, hook: HookType) -> bool:
        """Return whether the hook is enabled."""
        return hook in self._enabled

    async def ask(self, call: HookCall) -> HookAnswer:
        """Ask, several times if the endpoint cannot be reached or answers with a status of 500 or above.

        Without a request there is one attempt: the server repeats by itself what no client waits for.
        """
        body, message_id = question(call), secrets.token_hex(16)
        headers = {} if call.request is None else forwarded(self._options.forward, call.request.headers)
        pause = self._options.backoff
        attempts = 1 if call.request is None else self._options.attempts
        for attempt in range(1, attempts + 1):
            try:
                return await self._ask_once(call.type, message_id, headers, body)
            except _TryAgain as failure:
                if attempt == attempts:
                    raise _unavailable(call, self._url.host_header, str(failure)) from None
            except InvalidAnswer as error:
                raise _unavailable(call, self._url.host_header, str(error)) from None
            await asyncio.sleep(min(pause, MAX_PAUSE) * (0.5 + random.random() / 2))
            pause *= 2
        raise AssertionError("at least one attempt is made")

    async def _ask_once(self, hook: HookType, message_id: str, headers: Mapping[str, str], body: bytes) -> HookAnswer:
        signed = signature_headers(message_id, int(time.time()), body, self._options.secrets)
        try:
            answer = await self._client.post(
                self._url,
                {**headers, "Content-Type": "application/json", **signed},
                body,
                self._options.timeout,
                max_body=MAX_ANSWER,
            )
        except HttpFailure as error:
            raise _TryAgain(str(error)) from error
        return _parsed(hook, answer)


def _parsed(hook: HookType, answer: HttpAnswer) -> HookAnswer:
    if answer.status >= 500 or answer.status == 429:
        raise _TryAgain(f"the answer is {answer.status}")
    if 300 <= answer.status < 400:
        raise InvalidAnswer(f"the answer is {answer.status}, and redirects are not followed")
    if not 200 <= answer.status < 300:
        raise InvalidAnswer(f"the answer is {answer.status}")
    if answer.body is None:
        raise InvalidAnswer(f"the answer has more than {MAX_ANSWER >> 10} KiB")
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidAnswer("the Content-Type of the answer is not application/json")
    return parse_answer(hook, answer.body)


class _TryAgain(Exception):
    """An attempt that may succeed when it is repeated."""


def _unavailable(call: HookCall, host: str, reason: str) -> HookUnavailable:
    logger.warning("hook %s of %s for upload %s failed: %s", call.type, host, call.upload.id or "to be created", reason)
    return HookUnavailable(explanation=reason)


def forwarded(names: Sequence[str], headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the header fields of a client to copy onto the request to a hook."""
    return {
        canonical_name(name): headers[name]
        for name in names
        if name in headers and name not in OWN_FIELDS and not name.startswith(("content-", "webhook-"))
    }


class HttpHookSink:
    """The sink of an endpoint: hooks that tell of stored events. Any 2xx is success, whatever its body."""

    def __init__(self, name: str, url: str, client: HttpClient, options: HttpHookOptions) -> None:
        """Send to `url`; events wait under the `name`, which has no password."""
        self.name = name
        self._url = parse_http_url(url)
        self._client = client
        self._options = options

    async def open(self) -> None:
        """Connect with the first event."""
        await self._client.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, event: OutboxEvent) -> None:
        """Post an event; header fields with credentials were not stored, and are not forwarded."""
        document = parse_document(event.document)
        body = notification(hook_of(event.type), document)
        request = {} if document.request is None else document.request.headers
        names = [name for name in self._options.forward if not has_secret_header(name)]
        headers = {
            **forwarded(names, request),
            "Content-Type": "application/json",
            **signature_headers(event.id, int(time.time()), body, self._options.secrets),
        }
        try:
            answer = await self._client.post(self._url, headers, body, self._options.timeout)
        except HttpFailure as error:
            raise DeliveryError(str(error)) from error
        if 300 <= answer.status < 400:
            raise DeliveryError(f"the answer is {answer.status}, and redirects are not followed")
        if not 200 <= answer.status < 300:
            raise DeliveryError(f"the answer is {answer.status}", answer.retry_after)
