"""Decisions about requests: what they cost in lookups, when they have to be made, and records that cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi_calls import Call, ask, create, offset_stream
from tusd_py import (
    AuthenticationUnavailable,
    InvalidSettings,
    Principal,
    RequestContext,
    RequestFinished,
    TusServer,
    UploadCreated,
)
from tusd_py.core.upload import Upload
from tusd_py.http import app
from tusd_py.uploads.inspection import READER_TIMEOUT

UNKNOWN = "/0123456789abcdef0123456789abcdef"


class ByHeader:
    """An authenticator that knows senders by the field X-User; `root` is an administrator."""

    secret_headers = ("X-User", "X-Session")

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked_at = 0.0  # in the time of the event loop

    async def authenticate(self, context: RequestContext) -> Principal | None:
        self.asked_at = asyncio.get_running_loop().time()
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        user = context.headers.get("x-user")
        return Principal(user, frozenset({"uploads:admin"} if user == "root" else ())) if user else None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TusServer]:
    server = TusServer(upload_dir=tmp_path / "uploads", authenticator=ByHeader(), sweep_interval=0, gone_for=3600)
    async with server.lifespan():
        yield server


def by(user: str, **headers: str) -> dict[str, str]:
    return {"X-User": user, **headers}


def authenticator_of(server: TusServer) -> ByHeader:
    assert isinstance(server._authenticator, ByHeader)
    return server._authenticator


# Partial uploads of others.


async def active(server: TusServer) -> str:
    return await create(server, 4, **by("ann"), **{"Upload-Concat": "partial"})


async def complete(server: TusServer) -> str:
    path = await active(server)
    assert (await ask(server, "PATCH", path, by("ann", **offset_stream(0)), b"four")).status == 204
    return path


async def gone(server: TusServer) -> str:
    path = await active(server)
    assert (await ask(server, "DELETE", path, by("ann"))).status == 204
    return path


async def no_partial(server: TusServer) -> str:
    return await create(server, 4, **by("ann"))


async def broken(server: TusServer) -> str:
    path = await active(server)
    spoil(server, path)
    return path


def spoil(server: TusServer, path: str, owner: str = "owner") -> None:
    """Make the record of an upload unreadable; its owner becomes that of the expression `owner`."""
    file = server.settings.upload_dir / ".tusd-py" / "uploads.sqlite3"
    assert file.exists()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        changed = connection.execute(f"UPDATE uploads SET status = 'odd', owner = {owner} WHERE id = ?", (path[1:],))
        assert changed.rowcount == 1


@pytest.mark.parametrize("make", [active, complete, gone, no_partial, broken])
async def test_partial_upload_of_another_owner_costs_the_lookups_of_an_unknown_one(
    server: TusServer, make: Callable[[TusServer], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await make(server)
    looked_up: list[str] = []
    refusals: list[tuple[str, str]] = []
    records = server.service._records
    load = records.load_completion_record

    async def counted(upload_id: str) -> Upload | None:
        looked_up.append(upload_id)
        return await load(upload_id)

    monkeypatch.setattr(records, "load_completion_record", counted)
    server.events.observe(RequestFinished, lambda event: refusals.append((event.refusal, event.principal)))
    counts: list[int] = []
    bodies: list[bytes] = []
    for named in (path, UNKNOWN):
        looked_up.clear()
        answer = await ask(server, "POST", "/", by("bob", **{"Upload-Concat": f"final;{named}"}))
        assert answer.status == 404
        counts.append(len(looked_up))
        bodies.append(answer.body)
    assert counts[0] == counts[1] == 1
    assert bodies[0] == bodies[1]
    assert refusals == [("a partial upload of another owner", "bob"), ("", "bob")]


@pytest.mark.parametrize("make", [active, complete, gone, no_partial, broken])
@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_upload_of_another_owner_costs_the_lookups_of_an_unknown_one(
    server: TusServer, method: str, make: Callable[[TusServer], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await make(server)
    looked_up: list[str] = []
    records, state = server.service._records, server.service.state
    load, get = records.load_completion_record, state.get

    async def load_counted(upload_id: str) -> Upload | None:
        looked_up.append("completion record")
        return await load(upload_id)

    async def get_counted(upload_id: str) -> Upload | None:
        looked_up.append("record")
        return await get(upload_id)

    monkeypatch.setattr(records, "load_completion_record", load_counted)
    monkeypatch.setattr(state, "get", get_counted)
    headers = by("bob", **(offset_stream(4) if method == "PATCH" else {}))
    found: list[tuple[int, bytes, list[str]]] = []
    for named in (path, UNKNOWN):
        looked_up.clear()
        answer = await ask(server, method, named, headers, b"more" if method == "PATCH" else b"")
        found.append((answer.status, answer.body, [*looked_up]))
    assert found == [(404, found[0][1], ["record", "completion record"])] * 2


# Records that cannot be read.


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_broken_record_is_hidden_from_all_but_its_owner_and_administrators(
    server: TusServer, method: str
) -> None:
    path = await create(server, 4, **by("ann"))
    spoil(server, path)
    headers = offset_stream(0) if method == "PATCH" else {}
    other = await ask(server, method, path, by("bob", **headers), b"")
    unknown = await ask(server, method, UNKNOWN, by("bob", **headers), b"")
    assert (other.status, other.body) == (unknown.status, unknown.body) == (404, other.body)
    if method != "DELETE":
        for user in ("ann", "root"):
            expected = 423 if method == "HEAD" else 500
            assert (await ask(server, method, path, by(user, **headers), b"")).status == expected


@pytest.mark.parametrize("owner", ["owner", "''"], ids=["owner", "nobody"])
async def test_administrator_removes_a_broken_record(server: TusServer, owner: str) -> None:
    path = await create(server, 4, **by("ann"))
    spoil(server, path, owner)
    assert (await ask(server, "DELETE", path, by("root"))).status == 204
    assert (await ask(server, "HEAD", path, by("root"))).status == 404


async def test_broken_record_without_an_owner_makes_no_client_begin_again(server: TusServer) -> None:
    path = await create(server, 4, **by("ann"))
    spoil(server, path, "''")
    assert (await ask(server, "HEAD", path, by("ann"))).status == 423
    for method in ("GET", "DELETE"):
        assert (await ask(server, method, path, by("ann"))).status == 404


async def test_own_broken_partial_upload_is_told_of(server: TusServer) -> None:
    path = await broken(server)
    answer = await ask(server, "POST", "/", by("ann", **{"Upload-Concat": f"final;{path}"}))
    assert (answer.status, answer.body[:17]) == (500, b"ERR_BROKEN_RECORD")


# The time of a HEAD.


async def test_head_has_one_deadline_for_decision_and_answer(
    server: TusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await create(server, 4, **by("ann"))
    inspect = server.service.inspect
    deadlines: list[float | None] = []

    async def noted(upload_id: str, deadline: float | None = None) -> Upload:
        deadlines.append(deadline)
        return await inspect(upload_id, deadline)

    monkeypatch.setattr(server.service, "inspect", noted)
    assert (await ask(server, "HEAD", path, by("ann"))).status == 200
    assert deadlines[0] is not None
    assert deadlines[0] <= authenticator_of(server).asked_at + READER_TIMEOUT


async def test_deadline_of_a_head_counts_the_wait_for_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TusServer(upload_dir=tmp_path / "uploads")
    start_error = server.start_error
    began: list[float] = []
    deadlines: list[float] = []

    async def slow_start(timeout: float) -> Any:
        began.append(asyncio.get_running_loop().time())
        error = await start_error(60)
        await asyncio.sleep(0.05)
        return error

    async def noted(upload_id: str, deadline: float | None = None) -> Upload:
        deadlines.append(deadline or 0)
        return Upload(upload_id, 1.0)

    monkeypatch.setattr(server, "start_error", slow_start)
    monkeypatch.setattr(server.service, "inspect", noted)
    try:
        assert (await ask(server, "HEAD", UNKNOWN)).status == 200
    finally:
        await server.shutdown()
    assert deadlines[0] <= began[0] + READER_TIMEOUT


async def test_head_without_tus_is_answered_in_time_too(server: TusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await create(server, 0, **by("ann"))

    async def hang(upload_id: str) -> Upload:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(server.service, "get_completed", hang)
    monkeypatch.setattr(app, "HEAD_TIMEOUT", 0.2)
    call = Call(server, "HEAD", path, by("ann"))
    call._scope["headers"] = [field for field in call._scope["headers"] if field[0] != b"tus-resumable"]
    call.give(b"", more=False)
    answer = await call.answer()
    assert (answer.status, answer.headers["retry-after"]) == (423, "1")


@pytest.mark.parametrize(("method", "override"), [("HEAD", ""), ("HEAD", "GET"), ("POST", "HEAD")])
async def test_head_is_told_to_ask_later_whichever_way_it_is_one(server: TusServer, method: str, override: str) -> None:
    authenticator_of(server).error = AuthenticationUnavailable()
    headers = by("ann", **({"X-HTTP-Method-Override": override} if override else {}))
    assert (await ask(server, method, UNKNOWN, headers)).status == 423


# Fields with credentials of the application.


async def test_fields_that_an_authenticator_names_are_known_as_secret(server: TusServer) -> None:
    named: list[frozenset[str]] = []

    @server.on(UploadCreated)
    async def created(event: UploadCreated) -> None:
        assert event.request is not None
        named.append(event.request.secret_headers)

    await create(server, 4, **by("ann"))
    assert named == [frozenset({"x-user", "x-session"})]


def test_names_of_secret_fields_are_a_collection(tmp_path: Path) -> None:
    authenticator = ByHeader()
    authenticator.secret_headers = "X-User"  # type: ignore[assignment]
    with pytest.raises(InvalidSettings, match="a collection of names"):
        TusServer(upload_dir=tmp_path, authenticator=authenticator)
