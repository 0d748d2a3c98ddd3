"""Several hooks as one: asked in order, and the first that rejects decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tusd_py.contracts.hooks import (
    NO_OPINION,
    AsksHooks,
    HookAnswer,
    HookCall,
    HookResponse,
    HookType,
    UploadChanges,
)
from tusd_py.contracts.instrumentation import Instrumentation
from tusd_py.http_client.client import HttpClient


class HookChain:
    """Hooks that are asked one after the other. Each sees the upload as the client wants it."""

    def __init__(self, hooks: Sequence[AsksHooks], client: HttpClient, instrumentation: Instrumentation) -> None:
        """Ask these hooks, some of them by a client that belongs to the chain, and measure each call."""
        self._instrumentation = instrumentation
        self._hooks = hooks
        self._client = client

    async def open(self) -> None:
        """See `BlockingHooks.open`."""
        await self._client.open()

    async def close(self) -> None:
        """See `BlockingHooks.close`."""
        await self._client.close()

    def handles(self, hook: HookType) -> bool:
        """Return whether any of them is asked."""
        return any(one.handles(hook) for one in self._hooks)

    async def ask(self, call: HookCall) -> HookAnswer:
        """Ask until one rejects or stops; return what all that were asked want together."""
        whole = NO_OPINION
        for hooks in self._hooks:
            if hooks.handles(call.type):
                whole = _joined(whole, await self._ask(hooks, call))
                if whole.reject or whole.stop:
                    break
        return whole

    async def _ask(self, hooks: AsksHooks, call: HookCall) -> HookAnswer:
        started, succeeded = time.monotonic(), False
        try:
            answer = await hooks.ask(call)
            succeeded = True
            return answer
        finally:
            self._instrumentation.hook_called(call.type, time.monotonic() - started, succeeded)


def _joined(first: HookAnswer, second: HookAnswer) -> HookAnswer:
    if second.reject or second.stop:  # the answer of the one that decides stands alone
        return replace(second, changes=None)
    response = first.response if second.response is None else (first.response or HookResponse()).merged(second.response)
    return HookAnswer(response=response, changes=_joined_changes(first.changes, second.changes))


def _joined_changes(first: UploadChanges | None, second: UploadChanges | None) -> UploadChanges | None:
    if first is None or second is None:
        return second or first
    later = {name: value for name in UploadChanges.__slots__ if (value := getattr(second, name)) is not None}
    return replace(first, **later)
