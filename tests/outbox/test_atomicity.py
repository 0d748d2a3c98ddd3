"""Records and their events after a kill between any two SQL statements, and the statements without sinks."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tusd_py.backends.sqlite.schema import prepare
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.outbox import EventType
from tusd_py.core.upload import Status
from tusd_py.testing.outbox_suite import create, event
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
