"""Results of threads and connections, set on the futures of the tasks that wait for them."""

from __future__ import annotations

import asyncio
from typing import Any


def settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Set the exception of a future, or its result if `error` is None. Runs in the event loop of the future.

    A future that is done already, because the waiting task was cancelled, stays unchanged.
    """
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
