"""The events that are stored with the changes of uploads, whichever way the bytes take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.redis_server import shared_redis_url
from tests.support.services import Body, running_service
from tusd_py.composition import GivenComponents, build_service
from tusd_py.contracts.outbox import SupportsOutbox
from tusd_py.contracts.state import StateStore
from tusd_py.core.errors import ClientDisconnected
from tusd_py.core.event_document import EventDocument, parse_document
from tusd_py.core.outbox import OutboxEvent
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload, UploadKind
from tusd_py.events.bus import EventBus
from tusd_py.settings import InvalidSettings, from_arguments
from tusd_py.testing import MemoryLocker, MemoryState, MemoryStorage
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

SINK = "http://127.0.0.1:9/events"
SMALL, LARGE = b"x" * 1000, b"y" * 300_000  # the fast path of small appends, and the slow one
REQUEST = RequestContext(
    "PATCH", "/files/x", {"user-agent": "test", "authorization": "Bearer secret", "cookie": "a=b"}, "192.0.2.1"
)


@dataclass
class Host:
    service: UploadService

    async def append(self, upload: Upload, data: bytes, **options: Any) -> Upload:
        source = Body(data, arrived=len(data) <= len(SMALL), **options)
        return await self.service.append(upload.id, AppendRequest(upload.offset, source, context=REQUEST))

    async def events(self, upload_id: str) -> list[OutboxEvent]:
        """Return the stored events of an upload; their numbers ascend from 1 without a gap."""
        assert isinstance(self.service.state, SupportsOutbox)
        page = await self.service.state.outbox.deliveries("", 1000)
        found = [delivery.event for delivery in page.deliveries if delivery.event.upload_id == upload_id]
        found.sort(key=lambda event: event.sequence)
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        assert len({event.id for event in found}) == len(found)
        return found

    async def history(self, upload_id: str) -> list[str]:
        return [event.type for event in await self.events(upload_id)]

    async def documents(self, upload_id: str) -> list[EventDocument]:
        return [parse_document(event.document) for event in await self.events(upload_id)]


def redis_options(tmp_path: Path) -> dict[str, Any]:
    return {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:"}


@pytest.fixture(params=["disk and sqlite", "disk and sqlite without syncs", "disk and redis", "memory"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    options = redis_options(tmp_path) if request.param.endswith("redis") else {}
    options["durability"] = "never" if request.param.endswith("syncs") else "complete"
    given = GivenComponents()
    if request.param == "memory":
        given = GivenComponents(MemoryStorage(), MemoryState(), MemoryLocker())
    async with running_service({"upload_dir": tmp_path / "up", "events_to": SINK, **options}, given=given) as service:
        yield Host(service)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_creation_and_completion_store_an_event_each(host: Host, data: bytes) -> None:
    upload = await host.service.create(NewUpload(len(data), metadata="filename eA==", context=REQUEST))
    assert await host.history(upload.id) == ["created"]
    upload = await host.append(upload, data)
    assert upload.is_complete
    assert await host.history(upload.id) == ["created", "finished"]
    created, finished = await host.documents(upload.id)
    assert (created.offset, created.status, created.length) == (0, "active", len(data))
    assert (finished.offset, finished.status, finished.metadata) == (len(data), "complete", "filename eA==")
    assert finished.request is not None
    assert finished.request.client == "192.0.2.1"
    assert dict(finished.request.headers) == {"user-agent": "test"}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("missing", [0, 1], ids=["whole", "not whole"])
async def test_a_creation_with_bytes_stores_the_same_events(host: Host, data: bytes, missing: int) -> None:
    body = AppendRequest(0, Body(data, arrived=data is SMALL), context=REQUEST)
    upload = await host.service.create_with(NewUpload(len(data) + missing, context=REQUEST), body)
    assert upload.offset == len(data)
    assert await host.history(upload.id) == ["created", "finished"][: 2 - missing]
    assert [document.offset for document in await host.documents(upload.id)] == [0, len(data)][: 2 - missing]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_several_appends_store_one_completion(host: Host, data: bytes) -> None:
    upload = await host.service.create(NewUpload(3 * len(data)))
    for _ in range(3):
        upload = await host.append(upload, data)
    await host.append(upload, b"")
    assert await host.history(upload.id) == ["created", "finished"]


async def test_an_empty_upload_is_created_and_finished(host: Host) -> None:
    upload = await host.service.create(NewUpload(0))
    assert await host.history(upload.id) == ["created", "finished"]


async def test_a_final_upload_has_events_of_its_own(host: Host) -> None:
    partials = []
    for _ in range(2):
        partial = await host.service.create(NewUpload(len(SMALL), concatenation=UploadKind.PARTIAL))
        partials.append(await host.append(partial, SMALL))
    new = NewUpload(None, concatenation=UploadKind.FINAL, partial_ids=tuple(one.id for one in partials))
    for _ in range(2):  # the same request again leads to the same upload, and tells of nothing new
        final = await host.service.concatenate(new)
    for upload in (*partials, final):
        assert await host.history(upload.id) == ["created", "finished"]
    document = (await host.documents(final.id))[-1]
    assert (document.concatenation, document.length) == ("final", 2 * len(SMALL))
    assert document.partial_ids == new.partial_ids


@pytest.mark.parametrize("finished", [False, True])
async def test_a_termination_stores_an_event_that_outlives_the_record(host: Host, finished: bool) -> None:
    upload = await host.service.create(NewUpload(len(SMALL)))
    if finished:
        await host.append(upload, SMALL)
    await host.service.terminate(upload.id, REQUEST)
    assert await host.service.state.get(upload.id) is None
    assert (await host.history(upload.id))[-1] == "terminated"
    assert (await host.documents(upload.id))[-1].status == "terminated"


@pytest.mark.parametrize("options_of", [lambda _: {}, redis_options], ids=["sqlite", "redis"])
async def test_an_expiry_stores_an_event(tmp_path: Path, options_of: Callable[[Path], dict[str, Any]]) -> None:
    options = {"upload_dir": tmp_path / "up", "events_to": SINK, "expires_after": "1s", **options_of(tmp_path)}
    async with running_service(options) as service:
        upload = await service.create(NewUpload(5))
        over = await service.state.update(upload, replace(upload, expires_at=upload.created_at - 10), 1)
        assert await service.sweep(over) is not None
        assert await Host(service).history(upload.id) == ["created", "expired"]


async def test_an_append_that_breaks_off_stores_an_interruption(host: Host) -> None:
    upload = await host.service.create(NewUpload(2 * len(LARGE)))
    with pytest.raises(ClientDisconnected):
        await host.append(upload, LARGE, breaks_off=True)
    assert await host.history(upload.id) == ["created", "interrupted"]
    document = (await host.documents(upload.id))[-1]
    assert (document.offset, document.status) == (len(LARGE), "active")


async def test_observers_hear_of_every_change_that_stored_events(host: Host) -> None:
    heard: list[int] = []
    host.service.observe_stored_events(lambda: heard.append(1))

    def new() -> bool:
        before, heard[:] = len(heard), []
        return before > 0

    upload = await host.service.create(NewUpload(len(SMALL)))
    assert new()
    await host.append(upload, SMALL)
    assert new()
    await host.service.terminate(upload.id)
    assert new()


async def test_nothing_is_stored_without_sinks(tmp_path: Path) -> None:
    async with running_service({"upload_dir": tmp_path / "up"}) as service:
        host = Host(service)
        upload = await service.create(NewUpload(len(SMALL)))
        await host.append(upload, SMALL)
        await service.terminate(upload.id)
        assert await host.events(upload.id) == []
        assert upload.event_sequence == 0


class StateWithoutOutbox:
    """A state store of another package, which is not asked for anything else."""


def test_records_that_cannot_keep_events_are_refused(tmp_path: Path) -> None:
    settings = from_arguments({"upload_dir": tmp_path, "events_to": SINK})
    given = GivenComponents(state=cast(StateStore, StateWithoutOutbox()))
    with pytest.raises(InvalidSettings, match="events_to needs records that keep events: SQLite and Redis do, StateW"):
        build_service(settings, EventBus(), given=given)
