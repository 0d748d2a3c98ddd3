"""Directed scenarios of applications that decide: ids, places, lengths, expiry, completions, ends, reservations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import (
    Sending,
    append,
    change_record,
    gone,
    record_of,
    refused,
    send,
    small,
    until,
)
from tests.simulation.oracle import Expected
from tusd_py.contracts.hooks import HookAnswer, HookCall, HookResponse, UploadChanges
from tusd_py.core.errors import (
    HookRejected,
    HookUnavailable,
    MaxSizeExceeded,
    PathTaken,
    UploadExists,
)
from tusd_py.core.upload import Status
from tusd_py.uploads import progress_hooks
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import Sweeper
from tusd_py.uploads.validation import NewUpload

Answer = HookAnswer | Exception | float | None
NO = HookAnswer(HookResponse(status=422, body="no"), reject=True)


class Hooks:
    """Hooks of an application, each with one answer until the scenario sets another one; seconds let it hang."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.calls: list[HookCall] = []

    async def _answer(self, name: str, call: HookCall) -> Any:
        self.calls.append(call)
        answer = self.answers.get(name)
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pre_create(self, call: HookCall) -> Any:
        return await self._answer("create", call)

    async def pre_finish(self, call: HookCall) -> Any:
        return await self._answer("finish", call)

    async def pre_terminate(self, call: HookCall) -> Any:
        return await self._answer("terminate", call)


class WatchingHooks(Hooks):
    """Hooks that hear of progress too."""

    async def post_receive(self, call: HookCall) -> Any:
        return await self._answer("receive", call)


async def have(world: DirectedWorld, hooks: Any) -> Any:
    """Start the server again with these hooks; return them."""
    world.given["hooks"] = hooks
    await world.restart(world.host)
    return hooks


def choose(**changes: Any) -> HookAnswer:
    """Return the answer with which a new upload is created with changes."""
    return HookAnswer(changes=UploadChanges(**changes))


def new(length: int = 10, **choices: Any) -> Callable[[UploadService], Any]:
    """Return a creation to ask a service for."""
    return lambda service: service.create(NewUpload(length, **choices))


# Creations.


@scenario(settings={"max_size": 5000})
async def an_application_changes_new_uploads(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=HookAnswer(HookResponse(headers={"X-Note": "hello"}))))
    plain = await world.client.create(900)
    record = await record_of(world, plain)
    world.check(record.metadata is None, f"the upload has the metadata {record.metadata!r}")

    expiry = world.machine.wall() + 500.0
    hooks.answers["create"] = choose(metadata={"note": "yes"}, expires_at=expiry, max_size=3000, owner="eve")
    upload = await world.client.create(-1)
    upload.length = upload.wanted_length = 2000
    await world.client.append(upload, 1000)
    record = await record_of(world, upload)
    told = (record.decoded_metadata, record.expires_at, record.max_size, record.owner)
    world.check(told == ({"note": "yes"}, expiry, 3000, "eve"), f"the upload is {told}")
    await send(world, upload, bytes(2500), status=413)
    await world.client.look(upload)
    await refused(world, MaxSizeExceeded, new(3001))
    await world.client.end(upload, 2000 - upload.last_offset)

    hooks.answers["create"] = choose(metadata={"note": "x" * 100_000})
    await refused(world, HookUnavailable, new())
    hooks.answers["create"] = NO
    await refused(world, HookRejected, new())
    hooks.answers["create"] = RuntimeError("a mistake")
    await refused(world, HookUnavailable, new())


@scenario()
async def an_id_that_an_application_chooses_is_used_once(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=choose(id="mine")))
    upload = await world.client.create(1000)
    world.check(upload.id == "mine", f"the id is {upload.id}")
    await refused(world, UploadExists, new())
    await refused(world, UploadExists, new(0))
    await world.client.append(upload, 1000)
    await world.on(world.host, lambda service: service.state.delete("mine", 1 << 40))
    await refused(world, UploadExists, new())  # there are its bytes, and its completion record
    hooks.answers["create"] = None
    await world.client.download(upload)


@scenario()
async def a_place_that_an_application_chooses_is_given_once(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=choose(id="first", path="one/first")))
    upload = await world.client.create(1000)
    hooks.answers["create"] = choose(path="one/first")
    await refused(world, PathTaken, new())
    hooks.answers["create"] = choose(path="one/first/below")
    await refused(world, PathTaken, new())
    plain = await _without(hooks, world)
    hooks.answers["create"] = choose(path=f"{plain.id}/below")
    await refused(world, PathTaken, new())
    for path in ("../outside", ""):
        hooks.answers["create"] = choose(path=path)
        await refused(world, HookUnavailable, new())
    hooks.answers["create"] = choose(id=upload.id, path="another/second")
    await refused(world, UploadExists, new())
    hooks.answers["create"] = choose(id="second", path="another/second")  # which was given up
    other = await world.client.create(500)
    hooks.answers["create"] = choose(path="a/part")
    await world.client.ask("POST", "/files", {"Upload-Length": "9", "Upload-Concat": "partial"}, status=503)
    hooks.answers["create"] = None
    for each in (upload, other):
        await world.client.append(each, each.length)
        await world.client.download(each)


async def _without(hooks: Hooks, world: DirectedWorld) -> Expected:
    """Return a complete upload for which the application has chosen nothing."""
    hooks.answers["create"] = None
    return await world.complete(300)


@scenario()
async def a_place_of_an_upload_that_was_never_recorded_is_taken_over(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=choose(id="lost", path="the/next")))
    lost = await world.client.create(100)
    await world.on(world.host, lambda service: service.state.delete("lost", 1 << 40))
    lost.may_be_gone = lost.is_ending = lost.given_up = True
    hooks.answers["create"] = choose(id="next", path="the/next")
    upload = await world.client.create(800)
    await world.client.append(upload, 800)
    hooks.answers["create"] = choose(id="third", path="the/next")
    await refused(world, PathTaken, new())
    hooks.answers["create"] = None
    await world.client.download(upload)


@scenario()
async def a_creation_waits_for_the_application_no_longer_than_the_server_lives(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(create=1000.0))
    creating = asyncio.ensure_future(world.client.ask("POST", "/files", {"Upload-Length": "9"}, status=503))
    await until(world, lambda: bool(hooks.calls), "the question")
    await world.stop(world.host)
    await creating
    hooks.answers["create"] = None
    await world.host.start()
    await world.complete()


# Completions and ends.


@scenario(settings={"sweep_interval": 0})
async def a_completion_waits_for_the_application(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=RuntimeError("away")))
    upload = await world.client.create(2000)
    content = world.client.rng.randbytes(2000)
    await send(world, upload, content, status=503)
    await world.client.ask("GET", upload.path, status=404)
    record = await record_of(world, upload)
    world.check(record.status is Status.FINISHING, f"the upload is {record.status}")
    upload.known, upload.last_offset = bytearray(content), 2000
    await send(world, upload, b"", status=503)  # asks once more
    told: list[str] = []
    summary = await world.on(world.host, lambda service: Sweeper(service).sweep(told.append))
    world.check(len(told) == 1 and not summary.total, f"a sweep tells of {told}, and has {summary}")
    hooks.answers["finish"] = 1000.0
    looking = await world.client.look(upload, status=423)
    world.check(looking.offset is None, f"an offset is told, {looking.offset}")
    await world.restart(world.host)
    hooks.answers["finish"] = None
    summary = await world.on(world.host, lambda service: Sweeper(service).sweep())
    world.check(summary.completed == 1, f"a sweep has {summary}")
    await world.client.look(upload)
    await world.client.download(upload)


@scenario(settings={"sweep_interval": 0, "gone_for": 100.0})
async def what_an_application_rejects_is_removed_by_whoever_asks(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=RuntimeError("away")))
    uploads = [await world.client.create(700) for _ in range(2)]
    for upload in uploads:
        await send(world, upload, world.client.rng.randbytes(700), status=503)
    hooks.answers["finish"] = NO
    removed = await world.on(world.host, lambda service: Sweeper(service).sweep())
    world.check(removed.removed == 2, f"a sweep has {removed}")
    for upload in uploads:
        await gone(world, upload, 410)
    last = await world.client.create(0 + 600)
    await send(world, last, world.client.rng.randbytes(600), status=422)
    await gone(world, last, 410)
    await refused(world, HookRejected, new(0))


@scenario(settings={"sweep_interval": 0})
async def many_completions_that_hang_do_not_keep_a_sweep_from_removals(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(finish=RuntimeError("away")))
    waiting = [await world.client.create(100 + number) for number in range(6)]
    for upload in waiting:
        content = world.client.rng.randbytes(upload.length)
        await send(world, upload, content, status=503)
        upload.known, upload.last_offset = bytearray(content), upload.length
    hooks.answers["finish"] = 1000.0
    expired = await world.unfinished(900, 100)
    await change_record(world, expired, expires_at=world.machine.wall() - 1)
    expired.may_be_gone = expired.is_ending = True
    before = len(hooks.calls)
    began = world.loop.now
    summary = await world.on(world.host, lambda service: Sweeper(service).sweep(patience=10.0))
    world.check(summary.removed == 1, f"a sweep has {summary}")
    world.check(world.loop.now - began < 60.0, f"the sweep takes {world.loop.now - began:.0f} s")
    world.check(len(hooks.calls) - before < 6, "a sweep asks a hook that hangs again and again")
    await gone(world, expired)
    await world.restart(world.host)
    hooks.answers["finish"] = None
    for upload in waiting:
        await world.client.look(upload)
        await world.client.download(upload)


@scenario()
async def an_application_keeps_uploads_from_being_removed(world: DirectedWorld) -> None:
    hooks = await have(world, Hooks(terminate=NO))
    upload = await world.unfinished()
    await world.client.ask("DELETE", upload.path, status=422)
    await world.client.look(upload)
    hooks.answers["terminate"] = RuntimeError("a mistake")
    await world.client.ask("DELETE", upload.path, status=503)
    hooks.answers["terminate"] = HookAnswer(HookResponse(headers={"X-Note": "bye"}))
    answer = await world.client.remove(upload)
    world.check(answer.headers.get("x-note") == "bye", f"the answer has {answer.headers}")
    await gone(world, upload)


STOP = HookAnswer(HookResponse(status=403, body="enough"), stop=True)


@scenario(settings={"progress_hooks_interval": 0.1})
async def an_application_stops_an_upload_on_its_way(world: DirectedWorld) -> None:
    hooks = await have(world, WatchingHooks())
    other = await world.client.create(30_000)
    beside = Sending(world, other, 30_000)
    beside.push(1000)
    upload = await world.client.create(30_000)
    sending = Sending(world, upload, 30_000)
    sending.push(8000)
    await until(world, lambda: any(call.upload.id == upload.id for call in hooks.calls), "progress")
    hooks.answers["receive"] = STOP
    await asyncio.sleep(0.5)
    sending.push(8000)
    answer = await sending.answer(403)
    world.check(answer.body == b"enough", f"the answer is {answer.body!r}")
    await gone(world, upload)
    hooks.answers["receive"] = None
    beside.push(30_000)
    await beside.answer(204)
    await world.client.download(other)


@scenario(settings={"progress_hooks_interval": 0.1})
async def an_application_that_stops_too_late_removes_nothing(world: DirectedWorld) -> None:
    hooks = await have(world, WatchingHooks(receive=1.0))
    upload = await world.complete(500)
    hooks.answers["receive"] = STOP
    whole = await world.client.create(700)
    await send(world, whole, world.client.rng.randbytes(700))
    await asyncio.sleep(3.0)
    for each in (upload, whole):
        await world.client.look(each)
        await world.client.download(each)
    removed = await world.unfinished(900, 0)
    hooks.answers["receive"] = 1.0
    await append(world, removed, 100)
    hooks.answers["receive"] = STOP
    await world.client.remove(removed)
    await asyncio.sleep(3.0)
    await gone(world, removed)


@scenario(settings={"progress_hooks_interval": 5.0})
async def progress_of_few_uploads_is_remembered(world: DirectedWorld) -> None:
    with small(progress_hooks, MAX_REMEMBERED=2):
        hooks = await have(world, WatchingHooks())
        uploads = [await world.unfinished(900, 100) for _ in range(4)]
        await world.client.append(uploads[0], 100)  # forgotten: told again before the interval has passed
        await asyncio.sleep(0.1)
    told = [call.upload.id for call in hooks.calls if call.type == "post-receive"]
    world.check(told.count(uploads[0].id) == 2, f"progress is told of {told}")
