"""Steps beside the transactions of a SQLite file that hang: only their own uploads wait."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.parts import within
from tusd_py.backends.sqlite.job_threads import MAX_BLOCKED, TIMEOUT, Job, JobThreads
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.core.errors import LockLost, StorageBehind, UploadExists
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.upload import Upload

UPLOAD = Upload(id="upload", created_at=1.0, length=1)
TOKEN = 1
ROUNDS = 100  # of a race


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[SQLiteState]:
    state = SQLiteState(tmp_path / "uploads.sqlite3")
    await state.open()
    yield state
    await state.close()


class Step:
    """A step that hangs until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self, *_: object) -> None:
        self.begun.set()
        assert self.released.wait(60)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 60)


def nothing(*_: object) -> None: ...


def update(
    state: SQLiteState,
    before: Upload,
    step: Callable[[], object] = nothing,
    conclude: Callable[[Upload], object] = nothing,
    new: Upload | None = None,
) -> asyncio.Future[Upload]:
    def store() -> tuple[Upload, Upload, Sequence[OutboxEvent]]:
        step()
        return before, replace(before, offset=1), ()

    return state.update_after(store, TOKEN, conclude, new=new)


async def created(state: SQLiteState, upload_id: str) -> Upload:
    upload = replace(UPLOAD, id=upload_id)
    await within(state.create(upload))
    return upload


@pytest.mark.parametrize("where", ["before", "after"])
async def test_changes_of_others_do_not_wait_for_a_step_that_hangs(state: SQLiteState, where: str) -> None:
    hanging, other, later = [await created(state, upload_id) for upload_id in ("hanging", "other", "later")]
    step = Step()
    first = update(state, hanging, *((step,) if where == "before" else (nothing, step)))
    change, creation = update(state, other), asyncio.create_task(state.create(replace(UPLOAD, id="new")))
    await step.wait()
    await within(change)
    await within(creation)
    assert (await within(update(state, later))).offset == 1
    record = await state.get("hanging")
    assert record is not None
    assert record.offset == (0 if where == "before" else 1)
    assert not first.done()
    step.released.set()
    assert (await within(first)).offset == 1
    record = await state.get("hanging")
    assert record is not None
    assert record.offset == 1


async def test_a_step_that_hangs_is_taken_once(state: SQLiteState) -> None:
    calls: list[str] = []
    step = Step()

    def store() -> None:
        calls.append("store")
        step()

    change = update(state, await created(state, "hanging"), store, lambda upload: calls.append("conclude"))
    await step.wait()
    await created(state, "other")
    step.released.set()
    await within(change)
    assert calls == ["store", "conclude"]


async def test_a_step_that_hangs_and_fails_changes_nothing(state: SQLiteState) -> None:
    step = Step()

    def fail() -> None:
        step()
        raise StorageBehind(0)

    change = update(state, await created(state, "hanging"), fail)
    await step.wait()
    await created(state, "other")
    step.released.set()
    with pytest.raises(StorageBehind):
        await within(change)
    assert await state.get("hanging") == replace(UPLOAD, id="hanging")


async def test_a_change_after_a_step_that_hung_still_needs_the_lock(state: SQLiteState) -> None:
    step = Step()
    before = await created(state, "hanging")
    change = update(state, before, step)
    await step.wait()
    await within(state.update(before, replace(before, metadata="taken over"), TOKEN + 1))
    step.released.set()
    with pytest.raises(LockLost):
        await within(change)


async def test_several_steps_that_hang_at_once_hold_nobody_else(state: SQLiteState) -> None:
    steps = [Step() for _ in range(MAX_BLOCKED)]
    changes = [update(state, await created(state, f"hanging-{number}"), step) for number, step in enumerate(steps)]
    for step in steps:
        await step.wait()
    await created(state, "other")
    for step in steps:
        step.released.set()
    for change in changes:
        assert (await within(change)).offset == 1


async def test_a_last_step_that_hangs_after_an_earlier_one_did_holds_nobody_else(state: SQLiteState) -> None:
    first, last = Step(), Step()
    change = update(state, await created(state, "hanging"), first, last)
    await first.wait()
    await created(state, "other")
    await asyncio.sleep(3 * TIMEOUT)  # nothing but the time says that nobody else needs the thread
    first.released.set()
    await last.wait()
    await created(state, "later")
    last.released.set()
    assert (await within(change)).offset == 1


@pytest.mark.parametrize("where", ["before", "after"])
async def test_more_steps_that_hang_than_threads_may_be_blocked_hold_nobody_else(
    state: SQLiteState, where: str
) -> None:
    steps = [Step() for _ in range(2 * MAX_BLOCKED)]
    names = [f"hanging-{number}" for number in range(len(steps))]
    uploads = [await created(state, name) for name in names]
    changes = [
        update(state, upload, *((step,) if where == "before" else (nothing, step)))
        for upload, step in zip(uploads, steps, strict=True)
    ]
    for step in steps[:MAX_BLOCKED]:
        await step.wait()
    await created(state, "other")
    assert not any(change.done() for change in changes)
    for step in steps:
        step.released.set()
    for change in changes:
        assert (await within(change)).offset == 1


async def test_a_store_closes_after_the_step_that_hangs(tmp_path: Path) -> None:
    state = SQLiteState(tmp_path / "uploads.sqlite3")
    await state.open()
    step = Step()
    change = update(state, await created(state, "hanging"), step)
    await step.wait()
    await created(state, "other")
    closing = asyncio.create_task(state.close())
    step.released.set()
    await within(closing)
    assert (await within(change)).offset == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "tusd-py-state"]


async def test_a_new_record_is_committed_before_its_step(state: SQLiteState) -> None:
    new = replace(UPLOAD, id="new", token=TOKEN)
    step = Step()
    change = update(state, new, step, new=new)
    await step.wait()
    await created(state, "other")
    assert await state.get("new") == new
    step.released.set()
    assert (await within(change)).offset == 1
    assert await state.get("new") == await change


async def test_a_new_record_stays_when_its_step_fails(state: SQLiteState) -> None:
    new = replace(UPLOAD, id="new", token=TOKEN)

    def fail() -> None:
        raise StorageBehind(0)

    with pytest.raises(StorageBehind):
        await within(update(state, new, fail, new=new))
    assert await state.get("new") == new


async def test_no_step_is_taken_for_a_record_that_cannot_be_added(state: SQLiteState) -> None:
    old = await created(state, "old")
    steps: list[str] = []
    changes = [
        update(state, old, lambda: steps.append("old"), lambda _: steps.append("conclude"), new=old),
        update(state, UPLOAD, lambda: steps.append("new"), new=UPLOAD),
    ]
    with pytest.raises(UploadExists):
        await within(changes[0])
    assert (await within(changes[1])).offset == 1
    assert steps == ["new"]
    assert await state.get("old") == old


class Threads:
    """A limit on the threads of the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_room = True
        self.refused = threading.Event()
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._start_or_refuse(thread))

    def _start_or_refuse(self, thread: threading.Thread) -> None:
        if not self.has_room and thread.name == "tusd-py-state":
            self.refused.set()
            raise RuntimeError("can't start new thread")
        self._start(thread)


async def test_changes_go_on_after_a_step_for_which_no_other_thread_could_be_started(
    state: SQLiteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, other = await created(state, "hanging"), await created(state, "other")
    step = Step()
    threads = Threads(monkeypatch)
    threads.has_room = False
    first = update(state, hanging, step)
    change = update(state, other)
    assert await asyncio.to_thread(threads.refused.wait, 60)
    step.released.set()
    assert (await within(first)).offset == 1
    assert (await within(change)).offset == 1
    assert (await within(update(state, await created(state, "later")))).offset == 1


async def test_another_thread_takes_over_as_soon_as_it_can_be_started(
    state: SQLiteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, other = await created(state, "hanging"), await created(state, "other")
    step = Step()
    threads = Threads(monkeypatch)
    threads.has_room = False
    first = update(state, hanging, step)
    assert await asyncio.to_thread(threads.refused.wait, 60)
    threads.has_room = True
    assert (await within(update(state, other))).offset == 1
    assert not first.done()
    step.released.set()
    assert (await within(first)).offset == 1


async def test_jobs_of_the_turn_in_which_the_threads_are_closed_keep_their_order() -> None:
    """The event loop and the thread of the close hand over the same jobs, here at the same time."""
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(ROUNDS):
            done: list[Job] = []
            threads = JobThreads(done.extend, nothing, nothing)
            jobs = [Job(nothing, False, asyncio.get_running_loop().create_future()) for _ in range(1000)]
            for job in jobs:
                threads.submit(job)
            closing = threading.Thread(target=threads.close, args=(60,))
            closing.start()
            await within(asyncio.gather(*(job.done for job in jobs if job.done is not None)))
            await asyncio.to_thread(closing.join)
            assert not threads._thread.is_alive()
            assert done == jobs
    finally:
        sys.setswitchinterval(switch_interval)
