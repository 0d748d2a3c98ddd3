"""The hook `post-receive`: the application hears of the progress of uploads, and may stop them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tusd_py.core.errors import HookUnavailable, UploadError, UploadStopped
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.events.types import UploadProgressed
from tusd_py.uploads.decisions import Decisions
from tusd_py.uploads.locked_work import LockedWork

MAX_REMEMBERED = 10_000  # uploads whose last call is remembered
MAX_CALLS = 64  # calls at a time; progress beyond is not told

Stop = Callable[[Upload, UploadStopped, RequestContext | None], Awaitable[None]]


class ProgressHooks:
    """Calls of `post-receive`, one at a time for each upload and at most one in each interval, outside its lock."""

    def __init__(self, decisions: Decisions, work: LockedWork, interval: float, stop: Stop) -> None:
        """Call `stop` with an upload that the application stops. `interval` is in seconds."""
        self._decisions = decisions
        self._work = work
        self._interval = interval
        self._stop = stop
        self._called_at: OrderedDict[str, float] = OrderedDict()  # monotonic time of the last call for an upload
        self._running: set[str] = set()

    def progressed(self, event: UploadProgressed) -> None:
        """Call the hook unless that was done just now."""
        upload_id, now = event.upload.id, time.monotonic()
        if event.received == 0 or upload_id in self._running or len(self._running) >= MAX_CALLS:
            return
        if now - self._called_at.get(upload_id, float("-inf")) < self._interval or self._work.is_draining:
            return
        self._called_at[upload_id] = now
        self._called_at.move_to_end(upload_id)
        if len(self._called_at) > MAX_REMEMBERED:
            self._called_at.popitem(last=False)
        self._running.add(upload_id)
        self._work.start_unlocked(self._call(event.upload, event.request))

    async def _call(self, upload: Upload, request: RequestContext | None) -> None:
        try:
            stopped = await self._decisions.on_progress(upload, request)
            if stopped is not None:
                await self._stop(upload, stopped, request)
        except HookUnavailable:  # progress is told again after the interval
            pass
        except UploadError:  # the upload has ended meanwhile
            pass
        finally:
            self._running.discard(upload.id)
