"""The bound of the time in which a client takes what is sent to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tusd_py.core.errors import WriteTimeout
from tusd_py.http.body import RequestBody


@contextlib.asynccontextmanager
async def write_limit(body: RequestBody, size: int, *, idle_timeout: float, min_rate: float) -> AsyncIterator[None]:
    """Bound the seconds in which a client takes `size` bytes, unless the server itself watches the connection.

    Args:
        body: the body of the request that is answered.
        size: the bytes that are sent.
        idle_timeout: seconds that the client may take beside the time for the bytes; 0 for no bound.
        min_rate: bytes a second that the client has to take at least; 0 for no time for the bytes.

    Raises:
        WriteTimeout: the client has taken too long.
    """
    limit = None
    if idle_timeout and not body.is_watched:
        limit = idle_timeout + (size / min_rate if min_rate else 0.0)
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError:
        raise WriteTimeout from None
