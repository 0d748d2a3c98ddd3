"""The decisions of the application about uploads, by its blocking hooks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from tusd_py.contracts.hooks import BLOCKING, BlockingHooks, HookAnswer, HookCall, HookResponse, HookType
from tusd_py.core.buffers import Buffer
from tusd_py.core.errors import HookRejected, HookUnavailable, TerminationRejected, UploadStopped
from tusd_py.core.metadata import encode_metadata, parse_metadata
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.types import UploadTerminated
from tusd_py.uploads.components import Components
from tusd_py.uploads.removal import Removal
from tusd_py.uploads.validation import NewUpload

E = TypeVar("E", bound=HookRejected)

logger = logging.getLogger("tusd_py.hooks")


class naming_created:
    """A context of a creation whose upload exists: `HookUnavailable` names it."""

    __slots__ = ("_upload_id",)

    def __init__(self, upload_id: str) -> None:
        self._upload_id = upload_id

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, HookUnavailable):
            error.created = self._upload_id


class Decisions:
    """The questions to the application. Without hooks nothing is asked, and nothing is refused."""

    def __init__(self, components: Components, hooks: BlockingHooks | None, removal: Removal) -> None:
        self._hooks = hooks
        self._asked = frozenset(hook for hook in BLOCKING if hooks is not None and hooks.handles(hook))
        self._places = components.places
        self._events = components.events
        self._removal = removal
        self._metadata_limits = components.options.metadata_limits
        self._asking: set[asyncio.Timeout] = set()  # one for each question without an answer yet

    def asks(self, hook: HookType) -> bool:
        """Return whether the application decides at this point."""
        return hook in self._asked

    async def on_creation(self, new: NewUpload, preview: Upload) -> NewUpload:
        """Return a request for a new upload with the changes of the application, which decides at this point.

        Args:
            new: the request of the client.
            preview: the record that it leads to.

        Raises:
            HookRejected: the upload is not to be created.
            HookUnavailable: there is no valid answer.
        """
        answer = await self._ask(HookCall(HookType.PRE_CREATE, replace(preview, id=""), new.context))
        if answer.reject:
            raise _rejected(HookRejected, answer.response)
        _note(new.context, answer.response)
        changes = answer.changes
        if changes is None:
            return new
        metadata = new.metadata
        if changes.metadata is not None:
            metadata = encode_metadata(changes.metadata)
            try:
                parse_metadata(metadata or "", self._metadata_limits)
            except ValueError as error:
                raise unusable(preview, f"the metadata in the answer make a header that {error}") from None
        return replace(
            new,
            id=changes.id,
            metadata=metadata,
            expires_at=None if changes.expires_at is None else float(changes.expires_at),
            owner=changes.owner,
            max_size=min((size for size in (new.max_size, changes.max_size) if size is not None), default=None),
            # The quota of a token is that of its own principal.
            quota_bytes=new.quota_bytes if changes.owner in (None, preview.owner) else None,
            path=changes.path,
        )

    async def on_completion(
        self,
        upload: Upload,
        finished: Upload,
        token: int,
        request: RequestContext | None,
        read: Callable[[Upload, int, int], AsyncIterator[Buffer]] | None = None,
    ) -> None:
        """Ask whether an upload may become complete. The caller holds its lock.

        Args:
            upload: the record, in `finishing`.
            finished: the record with the finished bytes.
            token: the token of the lock.
            request: the request that brought the last bytes, if there is one.
            read: reads the finished bytes, where that is possible yet.

        Raises:
            HookRejected: it may not; it has been removed.
            HookUnavailable: there is no valid answer; it stays in `finishing`.
        """
        if not self.asks(HookType.PRE_FINISH):
            return
        storage: Mapping[str, str] = {} if self._places is None else self._places.describe(finished)
        reader = None if read is None else partial(read, replace(finished, status=Status.COMPLETE))
        answer = await self._ask(HookCall(HookType.PRE_FINISH, finished, request, storage, reader))
        if answer.reject:
            stored = replace(upload, storage_state=finished.storage_state)
            await self._removal.remove(stored, token, Status.TERMINATED, request)
            self._events.publish(UploadTerminated(stored, request, HookRejected.code))
            raise _rejected(HookRejected, answer.response)
        _note(request, answer.response)

    async def on_termination(self, upload: Upload, request: RequestContext | None) -> None:
        """Ask whether a client may remove an upload; what the application does itself is not asked.

        Raises:
            TerminationRejected: it may not.
            HookUnavailable: there is no valid answer.
        """
        if request is None or not self.asks(HookType.PRE_TERMINATE):
            return
        answer = await self._ask(HookCall(HookType.PRE_TERMINATE, upload, request, self._describe(upload)))
        if answer.reject:
            raise _rejected(TerminationRejected, answer.response)
        _note(request, answer.response)

    async def on_progress(self, upload: Upload, request: RequestContext | None) -> UploadStopped | None:
        """Tell of the progress of an upload; return the error that ends it, if the application stops it.

        Raises:
            HookUnavailable: there is no valid answer.
        """
        answer = await self._ask(HookCall(HookType.POST_RECEIVE, upload, request, self._describe(upload)))
        return _rejected(UploadStopped, answer.response) if answer.stop else None

    def _describe(self, upload: Upload) -> Mapping[str, str]:
        return {} if self._places is None else self._places.describe(upload)

    async def _ask(self, call: HookCall) -> HookAnswer:
        assert self._hooks is not None
        try:
            async with asyncio.timeout(None) as limit:
                self._asking.add(limit)
                try:
                    return await self._hooks.ask(call)
                finally:
                    self._asking.discard(limit)
        except TimeoutError:
            raise HookUnavailable(explanation="the server is shutting down") from None
        except HookUnavailable:
            raise
        except Exception as error:  # a defect of a transport: no answer, so that the upload is safe as with any other
            logger.exception("hook %s for upload %s failed", call.type, call.upload.id)
            raise HookUnavailable(explanation=type(error).__name__) from error

    def interrupt(self) -> None:
        """Go on as if the hooks that are being asked could not be reached."""
        now = asyncio.get_running_loop().time()
        for limit in list(self._asking):
            limit.reschedule(now)


def _rejected(kind: type[E], response: HookResponse | None) -> E:
    if response is None:
        return kind()
    return kind(status=response.status or 400, headers=dict(response.headers), body=response.body)


def unusable(record: Upload, reason: str) -> HookUnavailable:
    """Return the error of an answer of `pre-create` that no upload can have; the log has the reason."""
    logger.warning("hook %s for upload %s failed: %s", HookType.PRE_CREATE, record.id, reason)
    return HookUnavailable(explanation=reason)


def _note(request: RequestContext | None, response: HookResponse | None) -> None:
    """Keep what a hook wants the client to be told, for the answer to the request."""
    if request is not None and response is not None:
        request.answers.append(response)
