"""`tusd-py uploads list | show | terminate | complete | stats`: the records, with and without a running server."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from tusd_py.admin.documents import LOOKS, history_document, totals_document, upload_document
from tusd_py.asyncutil.groups import call_in_groups
from tusd_py.commands.events import CommandError
from tusd_py.commands.tables import Column, line, plain, size
from tusd_py.composition import build_service
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import BrokenRecord, UploadError, UploadNotFound
from tusd_py.core.listing import UploadFilter
from tusd_py.core.queries import UploadQuery
from tusd_py.core.upload import Upload, is_upload_id
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import opened, opened_records
from tusd_py.migration.state_copy import has_records, records_file
from tusd_py.settings import Settings
from tusd_py.uploads.history import HistoryRecorder
from tusd_py.uploads.queries import RecordQueries

PAGE_SIZE = 2000  # uploads
COLUMNS = (
    Column("ID", 32, cut=False),
    Column("STATUS", 10),
    Column("STORED", 10, right=True),
    Column("LENGTH", 10, right=True),
    Column("CREATED", 19),
    Column("OWNER", 16),
    Column("NAME"),
)
HISTORY = (
    Column("TIME", 19),
    Column("EVENT", 11),
    Column("STORED", 10, right=True),
    Column("BY", 16),
    Column("FROM", 15, cut=False),
    Column("CODE"),
)
SHARES = (Column("UPLOADS", 10, right=True), Column("STORED", 10, right=True), Column("", cut=False))


def run_uploads(settings: Settings, action: str, ids: Sequence[str], condition: UploadFilter, *, as_json: bool) -> None:
    """Run one of the commands, and print its result.

    Args:
        settings: choose the records.
        action: `list`, `show`, `terminate`, `complete` or `stats`.
        ids: of the uploads to show or to change; one but for `terminate`.
        condition: the uploads that `list` prints.
        as_json: print JSON.

    Raises:
        CommandError: an upload is unknown, the change is refused, or there are no records.
        InvalidSettings, UploadError: the records cannot be used.
    """
    if not (settings.redis.url or settings.state_plugin or has_records(settings)):
        raise CommandError(f"there are no records in {records_file(settings)}")
    if action in ("terminate", "complete"):
        asyncio.run(_change(settings, action, ids, as_json=as_json))
        return
    looks: dict[str, Callable[[_Look], Awaitable[None]]] = {
        "list": lambda look: look.list(condition),
        "show": lambda look: look.show(ids[0]),
        "stats": lambda look: look.stats(),
    }

    async def run() -> None:
        async with opened_records(settings) as (state, locker):
            await looks[action](_Look(settings, state, locker, as_json=as_json))

    asyncio.run(run())


async def _change(settings: Settings, action: str, ids: Sequence[str], *, as_json: bool) -> None:
    """Terminate or complete uploads, each by itself; raises `CommandError` after the last one if one was refused."""
    refused: list[str] = []
    changed: list[str] = []
    async with opened(build_service(settings, EventBus()), settings) as service:
        for upload_id in dict.fromkeys(ids):
            try:
                if not is_upload_id(upload_id):
                    raise UploadNotFound
                await (service.terminate(upload_id) if action == "terminate" else service.complete(upload_id))
                changed.append(upload_id)
            except UploadError as error:
                refused.append(f"{plain(upload_id)[:64]}: {plain(error.message)}")
    if as_json:
        print(json.dumps({"changed": changed, "refused": refused}))
    else:
        for upload_id in changed:
            print(f"{upload_id} {'terminated' if action == 'terminate' else 'completed'}")
    if refused:
        raise CommandError("; ".join(refused))


class _Look:
    """A look at records that are open."""

    def __init__(self, settings: Settings, state: StateStore, locker: Locker, *, as_json: bool) -> None:
        self._settings = settings
        self._state = state
        self._locker = locker
        self._queries = RecordQueries(state)
        self._as_json = as_json
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    async def list(self, condition: UploadFilter) -> None:
        """Print uploads, the newest first."""
        query, first = UploadQuery(condition, limit=PAGE_SIZE), True
        while True:
            page = await self._queries.find(query)
            documents = await call_in_groups(self._document, page.uploads, LOOKS)
            for document in documents:
                if self._as_json:
                    sys.stdout.write(f"{'[' if first else ','}\n{json.dumps(document)}")
                else:
                    self._print_row(document, first=first)
                first = False
            if page.next is None:
                break
            query = replace(query, after=page.next)
        if self._as_json:
            sys.stdout.write("[]\n" if first else "\n]\n")
        elif first:
            print("there are no such uploads")

    def _print_row(self, document: dict[str, Any], *, first: bool) -> None:
        if first:
            print(line(COLUMNS, [column.title for column in COLUMNS], self._width))
        length = document["length"]
        values = (
            document["id"],
            document["status"],
            size(document["offset"]),
            "?" if length is None else size(length),
            _time(document["created_at"]),
            document["owner"] or "",
            document["filename"] or "",
        )
        print(line(COLUMNS, values, self._width))

    async def show(self, upload_id: str) -> None:
        """Print one upload and its history."""
        upload = await self._find(upload_id)
        if upload is None:
            raise CommandError(f"there is no upload {plain(upload_id)[:64]}")
        document = await self._document(upload)
        entries = await HistoryRecorder(EventBus(), self._state).of(upload)
        history = [history_document(entry) for entry in entries]
        if self._as_json:
            print(json.dumps({**document, "history": history}))
            return
        for name, value in document.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"{name}: {plain(text)}")
        print()
        self._print_history(history)

    def _print_history(self, history: Sequence[dict[str, Any]]) -> None:
        print(line(HISTORY, [column.title for column in HISTORY], self._width))
        for entry in history:
            values = (
                _time(entry["time"]),
                entry["event"],
                size(entry["offset"]),
                entry["actor"] or "",
                entry["client"] or "",
                entry["code"] or "",
            )
            print(line(HISTORY, values, self._width))

    async def _find(self, upload_id: str) -> Upload | None:
        try:
            return await self._state.get(upload_id) if is_upload_id(upload_id) else None
        except BrokenRecord as error:
            raise CommandError(f"the record of upload {upload_id} cannot be read: {plain(error.reason)}") from None

    async def stats(self) -> None:
        """Print the number of uploads and their bytes."""
        counted = await self._queries.totals()
        document = totals_document(counted.totals, counted.as_of)
        if self._as_json:
            print(json.dumps(document))
            return
        print(line(SHARES, [column.title for column in SHARES], None))
        for status, share in document["by_status"].items():
            self._print_share(share, status)
        self._print_share(document["total"], "together")
        for share in document["by_owner"]:
            self._print_share(share, "of no owner" if share["owner"] is None else f"of {share['owner']}")
        if document["oldest"] is not None:
            print(f"the oldest unfinished upload is of {document['oldest']}")

    def _print_share(self, share: dict[str, Any], name: str) -> None:
        print(line(SHARES, [str(share["count"]), size(share["bytes"]), name], None))

    async def _document(self, upload: Upload) -> dict[str, Any]:
        public, base = self._settings.public_url, self._settings.base_path.rstrip("/")
        url = None if public is None else f"{public.rstrip('/')}{base}/{upload.id}"
        return upload_document(upload, url, locked=await self._locker.is_held(upload.id))


def _time(text: str | None) -> str:
    """Return a time of a document for a table."""
    return (text or "?")[:19].replace("T", " ")
