"""Events as POST requests with a CloudEvent, signed by Standard Webhooks."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence

from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.outbox import OutboxEvent
from tusd_py.hooks.signing import signature_headers
from tusd_py.http_client.client import HttpClient, parse_http_url
from tusd_py.http_client.response_parser import HttpFailure
from tusd_py.outbox.cloudevents import MEDIA_TYPE
from tusd_py.outbox.sink_urls import SinkAddress

TIMEOUT = 15.0  # seconds for one request


class HttpSink:
    """A sink that posts every event to an endpoint; any 2xx is success, whatever its body."""

    def __init__(
        self,
        address: SinkAddress,
        render: Callable[[OutboxEvent], bytes],
        secrets: Sequence[bytes],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = address.name
        self._url = parse_http_url(address.url)
        self._render = render
        self._secrets = secrets
        self._client = HttpClient(context=context)

    async def open(self) -> None:
        """Connect with the first event."""
        await self._client.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, event: OutboxEvent) -> None:
        """Post an event."""
        body = self._render(event)
        headers = {
            "Content-Type": MEDIA_TYPE,
            **signature_headers(event.id, int(time.time()), body, self._secrets),
        }
        try:
            answer = await self._client.post(self._url, headers, body, TIMEOUT)
        except HttpFailure as error:
            raise DeliveryError(str(error)) from error
        if 300 <= answer.status < 400:
            raise DeliveryError(f"the answer is {answer.status}, and redirects are not followed")
        if not 200 <= answer.status < 300:
            raise DeliveryError(f"the answer is {answer.status}", answer.retry_after)
