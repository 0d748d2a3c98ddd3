"""The change feed of the processes of one host: interests go to the publishers, and changes to those that want them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.timing import TIMEOUT
from tusd_py.backends.local_feed import feed as feed_module, peers
from tusd_py.backends.local_feed.feed import MAX_IDS, LocalFeed
from tusd_py.core.progress import NO_INTERESTS, Change, Interests, ProgressKind, change_of
from tusd_py.core.progress_codec import decode_change, decode_interests, encode_change
from tusd_py.core.upload import Upload, UploadKind

CHANGE = change_of(Upload("a", 1.25, length=100, offset=7, owner="ann", token=3), ProgressKind.PROGRESS, 2.5)


class Process:
    """One process of several, all of which run in the test."""

    def __init__(self, folder: Path) -> None:
        self.feed = LocalFeed(folder)
        self.changes: list[Change] = []
        self.lost = 0
        self.told = asyncio.Event()

    def changed(self, change: Change) -> None:
        self.changes.append(change)
        self.told.set()

    def lost_changes(self) -> None:
        self.lost += 1
        self.told.set()

    def interest_changed(self) -> None:
        self.told.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.told.clear()
                await self.told.wait()


@contextlib.asynccontextmanager
async def processes(folder: Path, count: int) -> AsyncIterator[list[Process]]:
    several = [Process(folder) for _ in range(count)]
    for process in several:
        await process.feed.open(process)
    try:
        yield several
    finally:
        for process in several:
            await process.feed.close()
        await asyncio.sleep(0.01)


async def test_change_goes_to_those_that_want_it(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 3) as (publisher, listener, other):
        assert not publisher.feed.is_wanted
        listener.feed.want(Interests(ids=frozenset({"a"})))
        other.feed.want(Interests(ids=frozenset({"b"})))
        await publisher.until(lambda: publisher.feed.wants("a", "") and publisher.feed.wants("b", ""))
        publisher.feed.publish(CHANGE)
        await listener.until(lambda: bool(listener.changes))
        publisher.feed.publish(replace(CHANGE, id="b"))
        await other.until(lambda: bool(other.changes))
    assert listener.changes == [CHANGE]
    assert other.changes == [replace(CHANGE, id="b")]


async def test_owner_and_everything_are_interests_too(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 2) as (publisher, listener):
        listener.feed.want(Interests(owners=frozenset({"ann"})))
        await publisher.until(lambda: publisher.feed.wants("x", "ann"))
        assert not publisher.feed.wants("x", "bob")
        listener.feed.want(Interests(everything=True))
        await publisher.until(lambda: publisher.feed.wants("x", "bob"))
        listener.feed.want(NO_INTERESTS)
        await publisher.until(lambda: not publisher.feed.is_wanted)


async def test_many_uploads_are_everything(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 2) as (publisher, listener):
        listener.feed.want(Interests(ids=frozenset(map(str, range(MAX_IDS + 1)))))
        await publisher.until(lambda: publisher.feed.wants("x", ""))


async def test_process_that_starts_later_is_told_of_interests(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 1) as (listener,):
        listener.feed.want(Interests(ids=frozenset({"a"})))
        async with processes(tmp_path / "feed", 1) as (publisher,):
            await publisher.until(lambda: publisher.feed.wants("a", ""))
            publisher.feed.publish(CHANGE)
            await listener.until(lambda: listener.changes == [CHANGE])


async def test_interests_end_with_their_process(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 1) as (publisher,):
        async with processes(tmp_path / "feed", 1) as (listener,):
            listener.feed.want(Interests(ids=frozenset({"a"})))
            await publisher.until(lambda: publisher.feed.is_wanted)
        await publisher.until(lambda: not publisher.feed.is_wanted)


async def test_each_process_answers_which_locks_it_holds(tmp_path: Path) -> None:
    async with processes(tmp_path / "feed", 3) as (asking, one, other):
        one.feed.answer_with(lambda: "[1]")
        other.feed.answer_with(lambda: f"[{'2' * 300_000}]")
        answers = await asking.feed.ask_for_locks(TIMEOUT)
        assert sorted(answers.texts) == ["[1]", f"[{'2' * 300_000}]"]
        assert answers.silent == 0
    assert (await asking.feed.ask_for_locks(TIMEOUT)).texts == []


async def test_process_without_an_answer_is_counted_and_a_dead_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "feed"
    async with processes(folder, 2) as (asking, _):
        with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as dead:
            hanging.bind(str(folder / "1-0123abcd"))
            hanging.listen()
            dead.bind(str(folder / "2-0123abcd"))
            answers = await asking.feed.ask_for_locks(0.1)
    assert (list(answers.texts), answers.silent) == (["[]"], 1)


async def test_socket_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "feed"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "1-0123abcd"))
    async with processes(folder, 1):
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


async def test_socket_of_a_process_that_starts_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "feed"
    async with processes(folder, 1) as (other,):
        tried: list[str] = []

        def connect_meanwhile(*args: Any, **options: Any) -> None:
            monkeypatch.undo()
            os.chmod(*args, **options)
            tried.extend(name for name in os.listdir(folder) if name != other.feed._name)
            for name in other.feed._others():
                with contextlib.suppress(OSError):
                    other.feed._connected(name).close()

        monkeypatch.setattr(feed_module, "os", SimpleNamespace(**vars(os) | {"chmod": connect_meanwhile}))
        async with processes(folder, 1) as (starting,):
            assert len(tried) == 1
            assert len(list(folder.iterdir())) == 2
            other.feed.want(Interests(everything=True))
            await starting.until(lambda: starting.feed.is_wanted)


async def test_socket_of_a_process_that_died_while_it_started_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "feed"
    folder.mkdir()
    for name in ("new-1-0123abcd", "new-2-0123abcd"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / name))
    os.utime(folder / "new-1-0123abcd", (1.0, 1.0))
    async with processes(folder, 1):
        assert not (folder / "new-1-0123abcd").exists()
        assert (folder / "new-2-0123abcd").exists()


async def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "feed"
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / "new-notes").touch()
    os.utime(folder / "new-notes", (1.0, 1.0))
    async with processes(folder, 2) as (publisher, listener):
        listener.feed.want(Interests(everything=True))
        await publisher.until(lambda: publisher.feed.is_wanted)
    assert sorted(path.name for path in folder.iterdir()) == ["new-notes", "notes.txt"]


async def test_process_that_does_not_read_is_sent_the_last_change_of_each_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(tmp_path / "feed", 2) as (publisher, listener):
        listener.feed.want(Interests(everything=True))
        await publisher.until(lambda: publisher.feed.is_wanted)
        (subscriber,) = publisher.feed._subscribers
        subscriber.pause_writing()
        for offset in range(1000):
            publisher.feed.publish(replace(CHANGE, offset=offset))
        assert subscriber._held is not None
        assert len(subscriber._held) == 1
        subscriber.resume_writing()
        await listener.until(lambda: [change.offset for change in listener.changes] == [999])


async def test_process_that_has_lost_changes_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_HELD", 2)
    async with processes(tmp_path / "feed", 2) as (publisher, listener):
        listener.feed.want(Interests(everything=True))
        await publisher.until(lambda: publisher.feed.is_wanted)
        (subscriber,) = publisher.feed._subscribers
        subscriber.pause_writing()
        for number in range(4):
            publisher.feed.publish(replace(CHANGE, id=str(number)))
        subscriber.resume_writing()
        await listener.until(lambda: listener.lost == 1)


async def test_folder_without_sockets_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "feed").write_text("")
    async with processes(tmp_path / "feed", 1) as (process,):
        assert not process.feed.works
        process.feed.want(Interests(everything=True))
        process.feed.publish(CHANGE)


@pytest.mark.parametrize("name", ["f" * 100, "folder"])
async def test_path_may_be_longer_than_the_name_of_a_socket(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / name
    folder.mkdir(parents=True)
    async with processes(folder / "feed", 1) as (process,):
        assert process.feed.works
        (found,) = (folder / "feed").iterdir()
        assert found.stat().st_mode & 0o777 == 0o600
        assert (folder / "feed").stat().st_mode & 0o777 == 0o700


# Lines.


@pytest.mark.parametrize(
    "change",
    [
        CHANGE,
        replace(CHANGE, length=None, concatenation=UploadKind.PARTIAL),
        replace(CHANGE, kind=ProgressKind.FAILED, code="ERR_MALWARE_FOUND", owner='"\n\u2028é'),
    ],
)
def test_change_is_the_same_after_its_way(change: Change) -> None:
    line = encode_change(change)
    assert "\n" not in line
    assert decode_change(line) == change


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[2,1]", encode_change(CHANGE)[:-9], encode_change(CHANGE).replace("[1,", "[2,")]
)
def test_text_of_another_version_is_no_change(text: str) -> None:
    assert decode_change(text) is None


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((5, value) for value in ("Infinity", "-1", "1e400", "9" * 30, "9" * 5000, "NaN", "[1]")),
        *((6, value) for value in ("Infinity", "-1", "9" * 30)),
        *((7, value) for value in ("Infinity", "-1", "9" * 30)),
        *((8, value) for value in ("NaN", "Infinity", "-1", "1e12")),
        *((9, value) for value in ("NaN", "-Infinity", "Infinity", "-1", "1e12", "1e400")),
        *((2, value) for value in ("null", '""', '"../a"', '"a/b"', "[]", '"\\ud800"')),
    ],
)
def test_broken_value_is_no_change(position: int, value: str) -> None:
    values = encode_change(CHANGE)[1:-1].split(",")
    assert decode_change(f"[{','.join(values)}]") == CHANGE
    values[position] = value
    assert decode_change(f"[{','.join(values)}]") is None


@pytest.mark.parametrize("text", ["[" * 100_000, "[1," * 100_000, '{"a":' * 100_000])
def test_deep_text_is_no_change_and_no_interests(text: str) -> None:
    assert decode_change(text) is None
    assert not decode_interests(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "1", '{"ids": 1}'])
def test_broken_interests_are_none(text: str) -> None:
    assert not decode_interests(text)
