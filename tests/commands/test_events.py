"""`tusd-py events list | show | retry | drop`, on the records of SQLite and of Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import assert_refused_in_one_line, execute
from tests.support.event_receiver import EventReceiver
from tests.support.harness import ServerProcess
from tests.support.redis_server import free_port, shared_redis_url
from tests.support.services import running_service
from tests.support.timing import wait_until
from tests.support.wire.requests import complete, create
from tusd_py.contracts.outbox import SupportsOutbox
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.uploads.validation import NewUpload

SINK = "http://127.0.0.1:9/events"
METADATA = "filename 5pel5pysLnR4dA==,other /wD/"  # "日本.txt", and bytes that are no text


@dataclass
class Records:
    """The records of one test, with settings for Python and for the command line."""

    upload_dir: Path
    options: dict[str, Any] = field(default_factory=dict)

    def flags(self) -> list[str]:
        options = {"upload_dir": str(self.upload_dir), **self.options}
        return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]

    def events(self, *arguments: str) -> Any:
        """Return what `tusd-py events ... --json` prints."""
        done = execute("events", *arguments, "--json", *self.flags())
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def text(self, *arguments: str) -> str:
        done = execute("events", *arguments, *self.flags())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def store(self, count: int = 1) -> Sequence[Upload]:
        """Create uploads, and with them their events."""

        async def create_all() -> list[Upload]:
            settings = {"upload_dir": self.upload_dir, "events_to": SINK, **self.options}
            async with running_service(settings) as service:
                context = RequestContext("POST", "/files", {"user-agent": "test"}, "192.0.2.1")
                new = NewUpload(5, metadata=METADATA, context=context)
                return [await service.create(new) for _ in range(count)]

        return asyncio.run(create_all())

    def bury(self, event_id: str) -> None:
        async def run() -> None:
            async with running_service({"upload_dir": self.upload_dir, **self.options}) as service:
                assert isinstance(service.state, SupportsOutbox)
                await service.state.outbox.bury(SINK, event_id, 7, "it answered 410")

        asyncio.run(run())


@pytest.fixture(params=["sqlite", "redis"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Records:
    options = {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}
    return Records(tmp_path / "uploads", options if request.param == "redis" else {})


def test_list_prints_every_event_that_waits_with_its_state(records: Records) -> None:
    uploads = records.store(3)
    listed = records.events("list")
    assert {one["upload"] for one in listed} == {upload.id for upload in uploads}
    for one in listed:
        assert set(one) == {"id", "type", "upload", "sequence", "time", "sink", "attempts", "status",
                            "next_attempt_at", "error"}  # fmt: skip
        assert (one["type"], one["sequence"], one["sink"]) == ("tus.upload.created", 1, SINK)
        assert (one["attempts"], one["status"], one["error"]) == (0, "waiting", None)
    lines = records.text("list").splitlines()
    assert len(lines) == 3
    for one in listed:
        assert any(one["id"] in line and SINK in line and "0 attempts" in line for line in lines)


def test_list_without_events_prints_an_empty_array_or_a_sentence(records: Records) -> None:
    records.store(0)
    assert records.events("list") == []
    assert records.text("list") == "no event waits, and there are no dead letters\n"


def test_show_prints_an_event_with_its_data_and_deliveries(records: Records) -> None:
    [upload] = records.store()
    [listed] = records.events("list")
    records.bury(listed["id"])
    shown = records.events("show", listed["id"])
    assert shown["id"] == listed["id"]
    [delivery] = shown["deliveries"]
    assert (delivery["sink"], delivery["status"], delivery["attempts"]) == (SINK, "dead", 7)
    assert delivery["error"] == "it answered 410"
    assert shown["data"]["id"] == upload.id
    assert shown["data"]["metadata"] == {"filename": "日本.txt", "other": {"base64": "/wD/"}}
    assert shown["data"]["request"]["client"] == "192.0.2.1"
    assert "日本.txt" in records.text("show", listed["id"])


def test_retry_makes_a_dead_letter_wait_again(records: Records) -> None:
    records.store(2)
    first, second = (one["id"] for one in records.events("list"))
    records.bury(first)
    assert {one["id"]: one["status"] for one in records.events("list")} == {first: "dead", second: "waiting"}
    assert records.events("retry", first) == {"changed": [first], "unknown": []}
    assert {one["status"] for one in records.events("list")} == {"waiting"}
    records.bury(second)
    assert set(records.events("retry", "--all")["changed"]) == {first, second}
    assert {one["status"] for one in records.events("list")} == {"waiting"}
    assert records.text("retry", "--all") == "2 events due now\n"


def test_drop_removes_events_for_good(records: Records) -> None:
    records.store(3)
    first, second, third = (one["id"] for one in records.events("list"))
    assert records.events("drop", first) == {"changed": [first], "unknown": []}
    assert records.text("drop", second) == "1 event dropped\n"
    assert [one["id"] for one in records.events("list")] == [third]


@pytest.mark.parametrize("action", ["show", "retry", "drop"])
def test_an_unknown_event_is_refused_in_one_line(records: Records, action: str) -> None:
    records.store()
    result = execute("events", action, "no\x1bsuch", *records.flags())
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no?such" in result.stderr
    assert len(records.events("list")) == 1


@pytest.mark.parametrize("arguments", [[], ["--all", "someid"]], ids=["nothing", "all and one"])
def test_retry_of_nothing_or_of_two_things_is_refused(records: Records, arguments: list[str]) -> None:
    assert_refused_in_one_line(
        execute("events", "retry", *arguments, *records.flags()), 2, "give the ids of events, or --all"
    )


def test_a_directory_without_records_is_refused_and_left_alone(tmp_path: Path) -> None:
    result = execute("events", "list", "--upload-dir", str(tmp_path / "uploads"))
    assert_refused_in_one_line(result, 1, "there are no records in", str(tmp_path))
    assert not (tmp_path / "uploads").exists()


def test_a_redis_that_is_away_is_named(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    result = execute("events", "list", "--upload-dir", str(tmp_path), "--redis-url", f"redis://:secret@{place}/0")
    assert_refused_in_one_line(result, 1, place)
    assert "secret" not in result.stderr


def test_events_of_a_running_server_are_shown_and_retried(tmp_path: Path, records: Records) -> None:
    with (
        EventReceiver(tmp_path, "refuse") as receiver,
        ServerProcess(records.upload_dir, events_to=receiver.url, **records.options) as server,
    ):
        paths = [create(server.port, 4) for _ in range(2)]
        complete(server.port, paths[0], b"four")
        wait_until(lambda: any(one["attempts"] for one in records.events("list")), "an attempt has failed")
        listed = records.events("list")
        assert len(listed) == 3
        assert {one["status"] for one in listed} == {"waiting"}
        assert any("503" in (one["error"] or "") for one in listed)
        dropped = next(one for one in listed if one["upload"] == paths[1].rpartition("/")[2])
        records.events("drop", dropped["id"])
        receiver.restart("take")
        records.events("retry", "--all")
        wait_until(lambda: records.events("list") == [], "all events are delivered")
        kept = [one["id"] for one in sorted(listed, key=lambda one: int(one["sequence"])) if one != dropped]
        assert [event["id"] for event in receiver.received() if event["id"] != dropped["id"]] == kept
