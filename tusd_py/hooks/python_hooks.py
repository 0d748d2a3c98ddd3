"""Hooks that are methods of a Python object of the application."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from tusd_py.contracts.hooks import NO_OPINION, HookAnswer, HookCall, HookType
from tusd_py.contracts.outbox import DeliveryError
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import HookUnavailable
from tusd_py.core.event_document import EventDocument, parse_document
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload, UploadKind
from tusd_py.hooks.event_names import hook_of
from tusd_py.hooks.held_loop import LoopWatch, Watched
from tusd_py.hooks.payload import InvalidAnswer, check_changes, check_response

logger = logging.getLogger("tusd_py.hooks")

TIMEOUT = 30.0  # seconds that a hook may take

Reader = Callable[[Upload, int, int], AsyncIterator[Buffer]]


def method_of(hook: HookType) -> str:
    """Return the name of the method of a hook: `pre_create` of `pre-create`."""
    return hook.replace("-", "_")


def check_hooks(hooks: object) -> None:
    """Raise `ValueError` unless the object has a hook, and all its hooks are async methods with one argument."""
    found = 0
    for hook in HookType:
        method = getattr(hooks, method_of(hook), None)
        if method is None:
            continue
        if not inspect.iscoroutinefunction(method):
            raise ValueError(f"{method_of(hook)} of {type(hooks).__name__} is not an async method")
        found += 1
    if not found:
        raise ValueError(f"{type(hooks).__name__} has no hook such as pre_create or post_finish")


class PythonHooks:
    """Blocking hooks of an object; a method that it lacks has no opinion."""

    def __init__(self, hooks: object, timeout: float = TIMEOUT) -> None:
        """Give each method `timeout` seconds."""
        self._hooks = hooks
        self._timeout = timeout
        self._watch = LoopWatch()

    def handles(self, hook: HookType) -> bool:
        """Return whether the object has the method."""
        return getattr(self._hooks, method_of(hook), None) is not None

    async def ask(self, call: HookCall) -> HookAnswer:
        """Call the method; None as its answer is no opinion."""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await Watched(getattr(self._hooks, method_of(call.type))(call), call.type, self._watch)
            return _checked(answer)
        except TimeoutError:
            logger.warning("hook %s for upload %s took more than %g s", call.type, call.upload.id, self._timeout)
            raise HookUnavailable(explanation=f"it took more than {self._timeout:g} s") from None
        except InvalidAnswer as error:
            logger.warning("hook %s for upload %s failed: %s", call.type, call.upload.id, error)
            raise HookUnavailable(explanation=str(error)) from None
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            logger.exception("hook %s for upload %s failed", call.type, call.upload.id)
            raise HookUnavailable(explanation=type(error).__name__) from None
        except Exception as error:  # code of the application: its mistakes are logged, and no client sees them
            logger.exception("hook %s for upload %s failed", call.type, call.upload.id)
            raise HookUnavailable(explanation=type(error).__name__) from None


def _is_cancelled() -> bool:
    """Return whether the server cancels the running task; otherwise the code of the application raised the error."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _checked(answer: Any) -> HookAnswer:
    if answer is None:
        return NO_OPINION
    if not isinstance(answer, HookAnswer):
        raise InvalidAnswer(f"the answer is {type(answer).__name__}, not HookAnswer or None")
    if answer.response is not None:
        check_response(answer.response)
    if answer.changes is not None:
        check_changes(answer.changes)
    return answer


class PythonHookSink:
    """The sink of an object: methods that are called with stored events. A method that it lacks takes every event."""

    def __init__(self, name: str, hooks: object, read: Reader, timeout: float = TIMEOUT) -> None:
        """Let hooks read the bytes of complete uploads by `read`; events wait under the `name`."""
        self.name = name
        self._hooks = hooks
        self._read = read
        self._timeout = timeout
        self._watch = LoopWatch()

    async def open(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def send(self, event: OutboxEvent) -> None:
        """Call the method of an event; it has taken the event when it returns."""
        hook = hook_of(event.type)
        method = getattr(self._hooks, method_of(hook), None)
        if method is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await Watched(method(_call(hook, parse_document(event.document), self._read)), hook, self._watch)
        except TimeoutError:
            raise DeliveryError(f"{method_of(hook)} took more than {self._timeout:g} s") from None
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise DeliveryError(f"{method_of(hook)} raised CancelledError") from error
        except Exception as error:  # code of the application: the event is delivered again
            logger.exception("hook %s for upload %s failed", hook, event.upload_id)
            raise DeliveryError(f"{method_of(hook)} raised {type(error).__name__}") from error


def _call(hook: HookType, document: EventDocument, read: Reader) -> HookCall:
    upload = Upload(
        id=document.id,
        created_at=document.created_at,
        length=document.length,
        deferred=document.deferred,
        offset=document.offset,
        status=Status(document.status),
        metadata=document.metadata,
        concatenation=UploadKind(document.concatenation),
        partial_ids=document.partial_ids,
        owner=document.owner,
    )
    request = document.request
    context = (
        None
        if request is None
        else RequestContext(
            request.method,
            request.path,
            request.headers,
            request.client,
            request.principal or None,
            port=request.port,
        )
    )
    return HookCall(hook, upload, context, document.storage, partial(read, upload))
