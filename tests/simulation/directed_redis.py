"""Directed scenarios of Redis: servers that cannot be used, refusals that pass, counts that are lost."""

from __future__ import annotations

from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import refused, small, start_error
from tests.simulation.directed_identity import SharedWorld
from tusd_py.backends.redis import usage
from tusd_py.core.errors import StateFull, StateUnavailable
from tusd_py.uploads.service import UploadService

UNUSABLE = (
    (b"server", "# Server\r\nredis_version:6.2.14\r\n", "7.0 or later"),
    (b"server", "# Server\r\n", "unknown"),
    (b"memory", "maxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n", "evicts the records"),
)
USABLE = (
    (b"server", ""),  # nobody may ask
    (b"memory", ""),
    (b"memory", "maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n"),
    (b"memory", "maxmemory:1000\r\nmaxmemory_policy:volatile-ttl\r\n"),
    (b"memory", "# Memory\r\n"),
)


@scenario("redis")
async def a_redis_that_loses_records_or_is_too_old_is_not_used(world: SharedWorld) -> None:
    for section, text, reason in UNUSABLE:
        await world.stop(world.host)
        world.redis.commands.infos = {section: text}
        error = await start_error(world.host)
        world.check(reason in str(error), f"with {text!r} the start ends with {error!r}")
        world.redis.commands.infos = {}
        await world.host.start()
    for section, text in USABLE:
        world.redis.commands.infos = {section: text}
        await world.restart(world.host)
        upload = await world.complete(300)
        await world.client.download(upload)
    world.redis.commands.infos = {}


@scenario("redis")
async def refusals_of_redis_pass_or_are_told(world: SharedWorld) -> None:
    """A former master refuses changes for a moment; what another attempt would meet again is told at once."""

    def read(service: UploadService) -> Any:
        return service.state.get("a" * 32)

    commands = world.redis.commands
    for text in ("READONLY You can't write against a read only replica.", "LOADING Redis is loading", "BUSY a script"):
        commands.refuses = [text]
        world.check(await world.on(world.host, read) is None, f"after {text!r} a record is found")
    for text, kind in (
        ("NOAUTH Authentication required.", StateUnavailable),
        ("NOPERM no permissions", StateUnavailable),
        ("OOM command not allowed", StateFull),
        ("ERR strange", StateUnavailable),
    ):
        commands.refuses = [text]
        error = await refused(world, kind, read)
        world.check(not commands.refuses, f"{text!r} was not met")
        world.check("NOAUTH" not in text or "password" in str(error), f"{text!r} is told as {error}")


@scenario("redis", processes=2, settings={"quota_bytes": 20_000})
async def a_usage_that_redis_has_lost_is_counted_anew(world: SharedWorld) -> None:
    uploads = [await world.unfinished(3000, 1000) for _ in range(5)]
    store = world.redis.store
    with small(usage, PAGE_SIZE=2):
        for upload in uploads:
            store.put(b"tus:usage", None)
            await world.client.append(upload, 500)
            for host in world.hosts:
                used = await world.on(host, _usage)
                world.check(used.bytes == 15_000, f"after a loss the usage is {used}")
        store.put(b"tus:usage", None)
        await world.client.ask("POST", "/files", {"Upload-Length": "5001"}, status=413)
        last = await world.client.create(5000)
    await world.client.append(last, 5000)


async def _usage(service: UploadService) -> Any:
    state: Any = service.state
    return await state.usage_of("")


@scenario("redis")
async def a_server_that_has_ended_uses_redis_no_more(world: SharedWorld) -> None:
    upload = await world.unfinished()
    assert world.host.server is not None
    server = world.host.server
    process = world.host.process
    assert process is not None
    await world.host.shut_down()
    asking = world.loop.create_task(_refused(server.service, upload.id), context=process.context.copy())
    world.check(await asking, "a record is read after the end of the server")
    world.host.end_lingering()
    await world.host.start()
    await world.client.append(upload, 2000)


async def _refused(service: UploadService, upload_id: str) -> bool:
    try:
        await service.state.get(upload_id)
    except StateUnavailable:
        return True
    return False


@scenario()
async def a_server_that_has_ended_uses_its_records_no_more(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    server, process = world.host.server, world.host.process
    assert server is not None
    assert process is not None
    record = await world.on(world.host, lambda service: service.state.get(upload.id))
    state: Any = server.service.state
    await world.host.shut_down()
    calls = {
        "get": lambda: state.get(upload.id),
        "update": lambda: state.update(record, record, 10**9),
        "usage_of": lambda: state.usage_of(""),
        "all": lambda: anext(state.all()),
        "update_in_thread": lambda: _later(state.update_in_thread, record, record, 10**9),
        "update_after": lambda: _later(state.update_after, lambda: (record, record, ()), 10**9, lambda _: None),
        "get_in_thread": lambda: _later(state.get_in_thread, upload.id),
    }
    for name, call in calls.items():
        asking = world.loop.create_task(_is_unavailable(call), context=process.context.copy())
        world.check(await asking, f"{name} of a store that is closed succeeds")
    world.check(state.get_at_once(upload.id) is None, "a store that is closed has a record")
    world.host.end_lingering()
    await world.host.start()
    await world.client.append(upload, 2000)


async def _later(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


async def _is_unavailable(call: Any) -> bool:
    try:
        await call()
    except StateUnavailable:
        return True
    return False
