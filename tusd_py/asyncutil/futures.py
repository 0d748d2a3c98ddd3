"""Results of work elsewhere, a thread or a connection, for the tasks that wait for them."""

from __future__ import annotations

import asyncio
from typing import Any


def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its exception, or its result if there is none. Runs in the event loop of the future.

    A future that is done already, because the task that waited for it was cancelled, is left alone.
    """
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
