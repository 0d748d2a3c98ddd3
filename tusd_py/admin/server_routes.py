"""Routes about the work of the server: events that wait, orphans, locks, settings, the description of the API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from tusd_py.admin.app import Answer, Route
from tusd_py.admin.documents import delivery_document, settings_document
from tusd_py.admin.requests import AdminRequest, BadParameter, parse_limit
from tusd_py.contracts.outbox import Outbox, SupportsOutbox
from tusd_py.contracts.storage import Orphan
from tusd_py.core.clock import rfc3339
from tusd_py.core.lock_reports import LockReport
from tusd_py.http.errors import HTTPError
from tusd_py.server import TusServer
from tusd_py.uploads.sweeping import OrphanCleaner

ORPHANS_AGE = 30.0  # seconds for which the same orphans are told again
MAX_LISTED = 1000  # orphans
MAX_CURSOR_LENGTH = 512  # characters
BAD_CURSOR = "after is `next` of the page before"


class UnknownEvent(HTTPError):
    """A request about an event that does not wait."""

    def __init__(self) -> None:
        super().__init__(404, "ERR_EVENT_NOT_FOUND", "no such event waits")


class ServerRoutes:
    """The routes about the work of one server."""

    def __init__(self, server: TusServer, description: Callable[[], dict[str, Any]]) -> None:
        """Take the server, and what describes the API."""
        self._server = server
        self._description = description
        self._search: asyncio.Task[Sequence[Orphan]] | None = None
        self._searched_at = 0.0  # monotonic seconds

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        page = ("limit", "after")
        return (
            Route(
                "GET",
                "events",
                "List events that wait, and dead letters.",
                self.events,
                page,
                "Events",
            ),
            Route("POST", "events/{id}/retry", "Deliver an event now.", self.retry),
            Route("GET", "orphans", "List bytes that belong to no upload.", self.orphans, (), "Orphans"),
            Route("GET", "locks", "List the locks that the processes hold.", self.locks, (), "Locks"),
            Route("GET", "settings", "Show the settings in effect, without secrets.", self.settings, (), "Settings"),
            Route("GET", "queue", "List the jobs that wait.", self.queue, (), "Queue"),
            Route("GET", "openapi.json", "Describe this API.", self.openapi, (), "Description"),
        )

    async def events(self, request: AdminRequest) -> Answer:
        """Return a page of events."""
        outbox, limit = self._outbox(), parse_limit(request.parameters)
        after = request.parameters.get("after", "")
        if len(after) > MAX_CURSOR_LENGTH or not after.isprintable():
            raise BadParameter(BAD_CURSOR)
        if outbox is None:
            return Answer({"events": [], "next": None})
        try:
            page = await outbox.deliveries(after, limit)
        except ValueError:
            raise BadParameter(BAD_CURSOR) from None
        return Answer({"events": [delivery_document(one) for one in page.deliveries], "next": page.after or None})

    async def retry(self, request: AdminRequest) -> Answer:
        """Make an event due now, a dead letter too."""
        outbox = self._outbox()
        if outbox is None or not await outbox.retry([request.id]):
            raise UnknownEvent
        return Answer(status=204)

    def _outbox(self) -> Outbox | None:
        state = self._server.service.state
        return state.outbox if isinstance(state, SupportsOutbox) else None

    async def orphans(self, request: AdminRequest) -> Answer:
        """Return the orphans that a cleanup would remove. A search goes on when nobody waits for it any more."""
        now = time.monotonic()
        if self._search is None or (self._search.done() and now - self._searched_at >= ORPHANS_AGE):
            self._searched_at = now
            self._search = asyncio.create_task(self._find_orphans())
            self._search.add_done_callback(_ended)
        return Answer({"orphans": [_orphan(orphan) for orphan in await asyncio.shield(self._search)]})

    async def _find_orphans(self) -> Sequence[Orphan]:
        """Return those that are told, since the result of a search is kept until the next one."""
        return (await OrphanCleaner(self._server.service).clean(dry_run=True))[:MAX_LISTED]

    async def locks(self, request: AdminRequest) -> Answer:
        """Return the locks of all processes that tell theirs in time, the oldest first."""
        known = await self._server.locks.all()
        locks = [_lock(lock) for lock in known.locks]
        return Answer({"locks": locks, "processes": known.processes, "silent": known.silent})

    async def settings(self, request: AdminRequest) -> Answer:
        """Return the settings in effect."""
        return Answer(settings_document(self._server.settings))

    async def queue(self, request: AdminRequest) -> Answer:
        """Return no jobs: this server has none."""
        return Answer({"jobs": []})

    async def openapi(self, request: AdminRequest) -> Answer:
        """Return the description of the API."""
        return Answer(self._description())


def _ended(search: asyncio.Task[Sequence[Orphan]]) -> None:
    """Mark the error of a search as seen: it is told to whoever waits."""
    if not search.cancelled():
        search.exception()


def _orphan(orphan: Orphan) -> dict[str, Any]:
    return {
        "kind": orphan.kind,
        "name": orphan.name,
        "upload_id": orphan.upload_id,
        "created_at": rfc3339(orphan.created_at),
    }


def _lock(lock: LockReport) -> dict[str, Any]:
    return {
        "upload_id": lock.upload_id,
        "since": rfc3339(lock.since),
        "method": lock.method,
        "path": lock.path,
        "client": lock.client,
        "principal": lock.principal,
        "host": lock.host,
        "pid": lock.pid,
    }
