"""The state of a watched upload: changes that are late, lost or doubled end in the state of the record."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings, strategies

from tests.support.followed import UPLOAD
from tusd_py.core.progress import FINAL_KINDS, Change, ProgressKind, change_of
from tusd_py.core.upload import Status, Upload
from tusd_py.progress.listener import Listener
from tusd_py.progress.messages import Message
from tusd_py.progress.watched import Watched

KINDS = [ProgressKind.STARTED, ProgressKind.PROGRESS, ProgressKind.ENDED, ProgressKind.INTERRUPTED]


@strategies.composite
def histories(draw: strategies.DrawFn) -> tuple[list[Change], Upload, list[int]]:
    """Return the changes of an upload, its record after them, and which of them arrive in what order."""
    changes: list[Change] = []
    offset, token, time = 0, 0, 1.0
    for _ in range(draw(strategies.integers(1, 8))):
        token += draw(strategies.integers(0, 1))
        time += 1.0
        kind = draw(strategies.sampled_from(KINDS))
        if kind is ProgressKind.PROGRESS:
            offset += draw(strategies.integers(0, 9))
        changes.append(change_of(replace(UPLOAD, offset=offset, token=token), kind, time))
    end = draw(strategies.sampled_from([Status.ACTIVE, Status.COMPLETE, Status.FINISHING]))
    arriving = draw(strategies.lists(strategies.integers(0, len(changes) - 1)))
    return changes, replace(UPLOAD, offset=offset, token=token, status=end), arriving


@given(histories())
@settings(deadline=None)
def test_any_order_and_loss_of_changes_ends_in_the_state_of_the_record(
    history: tuple[list[Change], Upload, list[int]],
) -> None:
    changes, record, arriving = history

    async def follow() -> list[Message]:
        numbers = iter(range(0, 10_000, 2))
        watched = Watched(
            "a", lambda last: next(numbers) + last, lambda watched, listeners: None, lambda kind, count: None
        )
        listener = Listener(("a",))
        watched.listeners.add(listener)
        told: list[Message] = []
        watched.reconcile(UPLOAD, 1.0)
        for index in arriving:
            watched.take(changes[index])
            while listener._pending:
                told += await listener.next() or ()
        watched.reconcile(record, 100.0)
        assert watched.last is not None
        assert (watched.last.status, watched.last.offset) == (record.status, record.offset)
        watched.close()
        while listener._pending:
            told += await listener.next() or ()
        return told

    told = asyncio.run(follow())
    assert all(before.number < after.number for before, after in pairwise(told))
    assert not any(message.kind in FINAL_KINDS for message in told[:-1])
