"""Records and their events after a kill between any two SQL statements, and the statements without sinks."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tusd_py.backends.sqlite.outbox import MAX_ROWS
from tusd_py.backends.sqlite.schema import prepare
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.errors import UploadExists
from tusd_py.core.outbox import EventType
from tusd_py.core.upload import Status
from tusd_py.testing.outbox_suite import OTHER, SINK, create, due, event
from tusd_py.testing.state_helpers import UPLOAD

FILES = ("records", "records-wal")  # of SQLite; the third one is made anew from them


def trace_statements(monkeypatch: pytest.MonkeyPatch, trace: Callable[[str], object]) -> None:
    """Call `trace` before every SQL statement of connections that are opened from now on."""

    def prepare_and_trace(connection: sqlite3.Connection) -> None:
        prepare(connection)
        connection.set_trace_callback(trace)

    monkeypatch.setattr("tusd_py.backends.sqlite.writer.prepare", prepare_and_trace)


async def test_record_and_events_are_both_there_or_not_after_a_kill_before_any_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of every moment are copied by another process: in this one, that would release SQLite's locks."""
    copies: list[Path] = []

    def copy(_statement: str) -> None:
        copies.append(tmp_path / str(len(copies)))
        copies[-1].mkdir()
        files = [path for name in FILES if (path := tmp_path / name).exists()]
        subprocess.run(["cp", *files, copies[-1]], check=True)

    with monkeypatch.context() as patched:
        trace_statements(patched, copy)
        state = SQLiteState(tmp_path / "records")
        await state.open()
        before = await create(state, UPLOAD.id, event(UPLOAD.id, 1))
        after = replace(before, offset=before.length or 0, status=Status.COMPLETE, event_sequence=2)
        after = await state.update(before, after, 1, events=(event(UPLOAD.id, 2, kind=EventType.FINISHED),))
        ended = replace(after, status=Status.TERMINATED, event_sequence=3)
        await state.update(after, ended, 2, events=(event(UPLOAD.id, 3, kind=EventType.TERMINATED),))
        copy("")
        await state.close()

    seen = []
    for folder in copies:
        state = SQLiteState(folder / "records")
        await state.open()
        upload = await state.get(UPLOAD.id)
        stored = [one.event.sequence for one in (await state.outbox.deliveries("", 10)).deliveries]
        await state.close()
        seen.append(0 if upload is None else upload.event_sequence)
        assert sorted(stored) == list(range(1, seen[-1] + 1))
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


async def test_no_statement_concerns_events_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    trace_statements(monkeypatch, statements.append)
    state = SQLiteState(tmp_path / "records")
    await state.open()
    before = await create(state, UPLOAD.id)
    await state.update(before, replace(before, offset=1), 1)
    await state.delete(UPLOAD.id, 2)
    await state.close()
    assert any("INSERT" in statement for statement in statements)
    assert not [statement for statement in statements if "deliveries" in statement]


async def test_the_events_of_a_transaction_are_stored_by_one_statement_without_those_of_refused_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    trace_statements(monkeypatch, statements.append)
    state = SQLiteState(tmp_path / "records")
    await state.open()
    goes_on = threading.Event()
    waiting = state._submit(lambda connection: goes_on.wait(60))
    events = [event(upload_id, 1, SINK, OTHER) for upload_id in ("a", "b", "a", "c")]
    creations = [asyncio.ensure_future(create(state, one.upload_id, one)) for one in events]
    await asyncio.sleep(0)  # all of them are submitted, and wait for the thread
    goes_on.set()
    await waiting
    outcomes = await asyncio.gather(*creations, return_exceptions=True)
    stored = await due(state)
    await state.close()
    assert [type(outcome) for outcome in outcomes].count(UploadExists) == 1
    assert stored == [events[number].id for number in (0, 1, 3)]
    assert len([statement for statement in statements if "INSERT INTO new_deliveries" in statement]) == 1


async def test_more_events_than_fit_into_a_statement_are_stored(tmp_path: Path) -> None:
    state = SQLiteState(tmp_path / "records")
    await state.open()
    events = [event("a", number, SINK, OTHER) for number in range(1, MAX_ROWS + 2)]
    await create(state, "a", *events)
    page = await state.outbox.deliveries("", 1000)
    await state.close()
    assert [(one.event.id, one.sink) for one in page.deliveries] == [
        (one.id, sink) for one in events for sink in one.sinks
    ]


async def test_a_place_that_a_later_event_has_taken_is_not_that_of_the_earlier_one(tmp_path: Path) -> None:
    first, second = SQLiteState(tmp_path / "records"), SQLiteState(tmp_path / "records")
    await first.open()
    await second.open()
    taken, waiting = event("a", 1), event("b", 1)
    await create(first, "a", taken)
    assert await due(first) == [taken.id]
    await second.outbox.delivered(SINK, [taken.id])
    await create(first, "b", waiting)
    await first.outbox.postpone(SINK, taken.id, 1, 1.0, "away")
    assert await due(first) == [waiting.id]
    await second.outbox.delivered(SINK, [taken.id])
    await first.outbox.delivered(SINK, [taken.id])
    [delivery] = await first.outbox.find_event(waiting.id)
    await first.close()
    await second.close()
    assert delivery.attempts == 0


async def test_an_event_that_fails_while_it_is_listed_is_not_passed_over(tmp_path: Path) -> None:
    state = SQLiteState(tmp_path / "records")
    await state.open()
    events = [event(upload_id, 1) for upload_id in "abcd"]
    for one in events:
        await create(state, one.upload_id, one)
    page = await state.outbox.deliveries("", 2)
    await state.outbox.postpone(SINK, events[3].id, 1, 1.0, "away")
    rest = await state.outbox.deliveries(page.after, 2)
    await state.close()
    assert [one.event.id for one in (*page.deliveries, *rest.deliveries)] == [one.id for one in events]
    assert rest.after == ""
