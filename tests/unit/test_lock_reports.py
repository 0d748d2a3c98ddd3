"""Locks as lines between processes, and the questions about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from tusd_py.core.clock import SystemClock
from tusd_py.core.errors import StateUnavailable
from tusd_py.core.lock_reports import (
    MAX_REPORTED,
    MAX_SIZE,
    MAX_TEXT,
    Answers,
    LockReport,
    decode_reports,
    encode_reports,
)
from tusd_py.core.request_context import RequestContext
from tusd_py.uploads.lock_reports import LockReports
from tusd_py.uploads.locked_work import HeldLock

REPORT = LockReport("a", 12.5, "one.example", 7, "PATCH", "/files/a", "192.0.2.1", "ann")


class Others:
    """The other processes, which send what they are told to."""

    def __init__(self, answers: Answers | None) -> None:
        self.answers = answers
        self.asked = 0

    def answer_with(self, reports: Callable[[], str]) -> None:
        self.own = reports

    async def ask_for_locks(self, timeout: float) -> Answers:
        self.asked += 1
        await asyncio.sleep(0)
        if self.answers is None:
            raise StateUnavailable
        return self.answers


def reports_beside(others: object, held: Sequence[HeldLock] = ()) -> LockReports:
    return LockReports(lambda: held, SystemClock(), others)


@pytest.mark.parametrize("report", [REPORT, LockReport("b", 0.0, "", 1)])
def test_report_is_read_as_it_was_written(report: LockReport) -> None:
    assert decode_reports(encode_reports([report])) == [report]


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "7", "null", "[7]", "[[]]", '[["a"]]', '[["a",1e999,"h",1,null,null,null,null]]',
        '[["a",NaN,"h",1,null,null,null,null]]', '[["a",-1,"h",1,null,null,null,null]]',
        '[["a",1,"h",1,null,null,null,null,null]]', '[[7,1,"h",1,null,null,null,null]]', "[" * 100_000,
    ],
)  # fmt: skip
def test_broken_report_is_none(text: str) -> None:
    assert decode_reports(text) is None


def test_reports_are_bounded_and_the_oldest_stay() -> None:
    many = [LockReport(str(number), float(number), "h", 1) for number in range(2 * MAX_REPORTED)]
    assert decode_reports(encode_reports(reversed(many))) == many[:MAX_REPORTED]
    large = [LockReport(str(number), float(number), "h", 1, path="\u0900" * MAX_TEXT) for number in range(1000)]
    text = encode_reports(large)
    assert len(text) <= MAX_SIZE
    told = decode_reports(text)
    assert told
    assert told == large[: len(told)]


class SeenContext(RequestContext):
    """A request that notes when somebody looks at its path."""

    seen: ClassVar[list[str]] = []

    @property
    def path(self) -> str:
        self.seen.append("path")
        return "/files/a"


async def test_reports_are_made_of_the_oldest_locks_alone() -> None:
    context = object.__new__(SeenContext)
    for name, value in (("method", "PATCH"), ("client", "192.0.2.1"), ("principal", "ann")):
        object.__setattr__(context, name, value)
    held = [HeldLock(str(number), float(number), context) for number in reversed(range(3 * MAX_REPORTED))]
    known = await reports_beside(None, held).all()
    assert [lock.upload_id for lock in known.locks] == [str(number) for number in range(MAX_REPORTED)]
    assert len(SeenContext.seen) == MAX_REPORTED


async def test_path_in_a_report_has_no_capability_and_is_bounded() -> None:
    context = RequestContext("PATCH", f"/files/a?k=secret&{'x' * 5000}", {}, "192.0.2.1", principal="ann")
    known = await reports_beside(None, [HeldLock("a", 1.0, context), HeldLock("b", 2.0, None)]).all()
    first, second = known.locks
    assert first.path is not None
    assert "secret" not in first.path
    assert len(first.path) <= MAX_TEXT
    assert (first.method, first.client, first.principal) == ("PATCH", "192.0.2.1", "ann")
    assert (second.method, second.path) == (None, None)


async def test_locks_of_all_processes_are_told_and_broken_answers_counted() -> None:
    others = Others(Answers([encode_reports([REPORT]), "broken"], silent=2))
    reports = reports_beside(others, [HeldLock("b", 1.0, None)])
    known = await reports.all()
    assert [lock.upload_id for lock in known.locks] == ["a", "b"]
    assert (known.processes, known.silent) == (2, 3)
    (own,) = decode_reports(others.own()) or ()
    assert own.upload_id == "b"


async def test_callers_at_the_same_time_share_a_question() -> None:
    others = Others(Answers())
    reports = reports_beside(others)
    await asyncio.gather(*(reports.all() for _ in range(10)))
    assert others.asked == 1
    await reports.all()
    assert others.asked == 2


async def test_question_that_cannot_be_asked_is_an_error_and_the_next_one_is_asked() -> None:
    others = Others(None)
    reports = reports_beside(others)
    with pytest.raises(StateUnavailable):
        await reports.all()
    others.answers = Answers()
    assert (await reports.all()).processes == 1
