"""Routes of single uploads and of their lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tusd_py.admin.app import Answer, Route
from tusd_py.admin.documents import LOOKS, history_document, upload_document
from tusd_py.admin.requests import LIST_PARAMETERS, AdminRequest, parse_list
from tusd_py.asyncutil.groups import call_in_groups
from tusd_py.core.errors import UploadNotFound
from tusd_py.core.queries import encode_cursor
from tusd_py.core.upload import Upload
from tusd_py.server import TusServer


class UploadRoutes:
    """The routes of uploads of one server."""

    def __init__(self, server: TusServer) -> None:
        self._server = server

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            Route("GET", "uploads", "List uploads, in pages.", self.list, LIST_PARAMETERS, "Page"),
            Route("GET", "uploads/{id}", "Show an upload, also one that has ended.", self.show, (), "Upload"),
            Route("GET", "uploads/{id}/history", "Show the history of an upload.", self.history, (), "History"),
            Route("DELETE", "uploads/{id}", "Remove an upload with its bytes.", self.terminate),
            Route("POST", "uploads/{id}/expire", "End an unfinished upload before its time.", self.expire),
            Route("POST", "uploads/{id}/complete", "Complete a recording at its offset.", self.complete, (), "Upload"),
        )

    async def list(self, request: AdminRequest) -> Answer:
        """Return a page of uploads."""
        wanted = parse_list(request.parameters)
        page = await self._server.queries.find(wanted.query, wanted.text)
        uploads = await call_in_groups(partial(self._document, request), page.uploads, LOOKS)
        following = None if page.next is None else encode_cursor(wanted.query, page.next)
        return Answer({"uploads": uploads, "next": following})

    async def show(self, request: AdminRequest) -> Answer:
        """Return one upload."""
        upload = await self._server.service.find(request.id)
        if upload is None:
            raise UploadNotFound
        return Answer(await self._document(request, upload))

    async def history(self, request: AdminRequest) -> Answer:
        """Return what happened to an upload, in order of time."""
        upload = await self._server.service.find(request.id)
        if upload is None:
            raise UploadNotFound
        entries = await self._server.history.of(upload)
        return Answer({"history": [history_document(entry) for entry in entries]})

    async def terminate(self, request: AdminRequest) -> Answer:
        """Remove an upload."""
        await self._server.service.terminate(request.id, request.context)
        return Answer(status=204)

    async def expire(self, request: AdminRequest) -> Answer:
        """End an unfinished upload as if its time had run out."""
        await self._server.service.expire(request.id, request.context)
        return Answer(status=204)

    async def complete(self, request: AdminRequest) -> Answer:
        """Declare the offset of an abandoned recording as its length."""
        upload = await self._server.service.complete(request.id, request.context)
        self._server.history.add("completed", upload, request.context)
        return Answer(await self._document(request, upload))

    async def _document(self, request: AdminRequest, upload: Upload) -> dict[str, Any]:
        locked = await self._server.service.locker.is_held(upload.id)
        base = self._base_url(request)
        return upload_document(upload, None if base is None else f"{base}/{upload.id}", locked=locked)

    def _base_url(self, request: AdminRequest) -> str | None:
        """Return the creation URL; None if it cannot be told from a request to another port."""
        settings = self._server.settings
        if settings.admin_port is not None and settings.public_url is None:
            return None
        scope = request.context.scope
        outside = {**scope, "root_path": scope.get("app_root_path", "")}
        return self._server.urls.base(outside, request.context.headers) + settings.base_path.rstrip("/")
