"""Directed scenarios of the sockets by which the processes of one host tell each other of changes and locks."""

from __future__ import annotations

import asyncio
import stat
from typing import Any

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_calls import Sending, small, until
from tests.simulation.filesystem import Folder
from tests.simulation.followers import Follower
from tests.simulation.oracle import Expected
from tests.simulation.servers import Host
from tests.simulation.unix_sockets import SocketName
from tusd_py.backends.local_feed import peers
from tusd_py.backends.local_feed.feed import NEW, NEW_TIME, LocalFeed

SOON = 0.6  # seconds; a comparison with the records comes a second later
LONG = 3600.0  # seconds that a listener stays


def feed_of(host: Host) -> LocalFeed:
    assert host.server is not None
    found: Any = host.server._feed
    assert isinstance(found, LocalFeed)
    return found


def folder_of(world: DirectedWorld) -> Folder:
    """Return the folder of the sockets."""
    found = world.machine.files.find(f"{world.machine.files.top}/.tusd-py/feed")
    assert isinstance(found, Folder)
    return found


async def with_sockets(world: DirectedWorld, *, serving: int = 0) -> None:
    """Start all processes again, with sockets; requests go to one of them."""
    for machine in world.machines:
        machine.has_sockets = True
    for host in world.hosts:
        await world.restart(host)
    vars(world)["host_for"] = lambda _: world.hosts[serving]
    world.check(all(feed_of(host).works for host in world.hosts), "a process has no socket")


async def listening(world: DirectedWorld, host: Host, upload: Expected | None) -> asyncio.Task[bool]:
    """Return a listener of a process to an upload, or to all, once the other processes know of it."""
    task = Follower(world, world.client.rng).start(host, upload, LONG)
    others = [feed_of(other) for other in world.hosts if other is not host and other.is_up]
    await until(world, lambda: all(other.is_wanted for other in others), "the other processes know of no listener", 5.0)
    return task


async def told_soon(world: DirectedWorld, listener: asyncio.Task[bool], what: str) -> None:
    await until(world, listener.done, f"a listener is told of {what} late, if at all", SOON)
    world.check(listener.done() and listener.result(), f"a listener is not told of {what}")


@scenario(processes=2)
async def a_listener_is_told_at_once_of_what_another_process_does(world: DirectedWorld) -> None:
    await with_sockets(world)
    upload = await world.unfinished()
    listener = await listening(world, world.hosts[1], upload)
    await world.client.append(upload, 2000)
    await told_soon(world, listener, "the end")
    await until(world, lambda: not feed_of(world.hosts[0]).is_wanted, "a listener that has left is wanted", 5.0)
    other = await world.unfinished()
    listener = await listening(world, world.hosts[1], other)
    await world.stop(world.hosts[1])
    listener.cancel()
    await world.hosts[1].start()


@scenario(processes=2)
async def a_process_that_starts_tells_those_that_listen(world: DirectedWorld) -> None:
    await with_sockets(world, serving=1)
    upload = await world.unfinished()
    await world.stop(world.hosts[1])
    listener = await listening(world, world.hosts[0], upload)
    await world.hosts[1].start()
    await until(world, lambda: feed_of(world.hosts[1]).is_wanted, "a process that started knows of no listener", 5.0)
    await world.client.append(upload, 2000)
    await told_soon(world, listener, "the end")


@scenario(processes=3)
async def the_socket_of_a_process_that_died_is_removed_and_holds_nobody_up(world: DirectedWorld) -> None:
    await with_sockets(world)
    upload = await world.unfinished()
    world.hosts[2].kill()
    world.check(len(folder_of(world).entries) == 3, "the socket of a process that died is gone with it")
    listener = Follower(world, world.client.rng).start(world.hosts[1], upload, LONG)
    await until(world, lambda: len(folder_of(world).entries) == 2, "the socket of a process that died stays", 5.0)
    await until(world, lambda: feed_of(world.hosts[0]).is_wanted, "the process that lives knows of no listener", 5.0)
    await world.client.append(upload, 2000)
    await told_soon(world, listener, "the end")
    await world.hosts[2].start()


@scenario(processes=2)
async def sockets_on_which_nobody_has_ever_listened_are_removed_after_a_while(world: DirectedWorld) -> None:
    await with_sockets(world)
    files, now = world.machine.files, world.machine.wall()
    for name, age in (("1-00000001", NEW_TIME + 1), ("2-00000002", NEW_TIME / 2)):
        made = SocketName(files._next(), stat.S_IFSOCK | 0o600, modified_at=now - age)
        folder_of(world).change((f"{NEW}{name}", made))
    await world.restart(world.hosts[1])
    left = [name for name in folder_of(world).entries if name.startswith(NEW)]
    world.check(left == [f"{NEW}2-00000002"], f"the sockets {left} are left")


@scenario(processes=3)
async def the_locks_of_all_processes_are_known_to_each(world: DirectedWorld) -> None:
    await with_sockets(world)
    upload = await world.unfinished()
    sending = Sending(world, upload, 2000)
    sending.push(500)
    await asyncio.sleep(0.5)

    async def known(_: Any) -> Any:
        assert world.hosts[1].server is not None
        return await world.hosts[1].server.locks.all()

    locks = await world.on(world.hosts[1], known)
    world.check([lock.upload_id for lock in locks.locks] == [upload.id], f"the known locks are {locks}")
    world.check((locks.processes, locks.silent) == (3, 0), f"the processes that answer are {locks}")
    names: list[Any] = [entry for entry in folder_of(world).entries.values() if isinstance(entry, SocketName)]
    for name in names:
        name.listener.is_busy = name.listener.process is world.hosts[2].process
    locks = await world.on(world.hosts[1], known)
    world.check((locks.processes, locks.silent) == (2, 1), f"a busy process is told as {locks}")
    for name in names:
        name.listener.is_busy = False
    assert world.hosts[2].process is not None
    world.hosts[2].process.pause()
    locks = await world.on(world.hosts[1], known)
    world.check((locks.processes, locks.silent) == (2, 1), f"a process that stands still is told as {locks}")
    world.hosts[2].process.go_on()
    sending.push(1500)
    await sending.answer(204)


@scenario(processes=2)
async def a_process_that_reads_late_is_told_the_last_changes_or_that_some_are_lost(world: DirectedWorld) -> None:
    """The event loop pauses the writing to a process whose socket is full."""
    await with_sockets(world)
    first, second = await world.unfinished(), await world.unfinished()
    listeners = [await listening(world, world.hosts[1], upload) for upload in (first, second)]
    await asyncio.sleep(1.0)
    (subscriber,) = feed_of(world.hosts[0])._subscribers
    subscriber.pause_writing()
    await world.client.append(first, 500)
    await world.client.append(first, 1500)
    subscriber.resume_writing()
    await told_soon(world, listeners[0], "the last change")
    third = await world.unfinished()
    listeners.append(await listening(world, world.hosts[1], third))
    await asyncio.sleep(1.0)
    with small(peers, MAX_HELD=1):
        subscriber.pause_writing()
        await world.client.append(second, 2000)
        await world.client.append(third, 2000)
        subscriber.resume_writing()
    for listener in listeners[1:]:
        await told_soon(world, listener, "changes of which some are lost")


@scenario(processes=2)
async def a_process_that_talks_nonsense_is_cut_off(world: DirectedWorld) -> None:
    await with_sockets(world)
    feed = feed_of(world.hosts[0])
    (name,) = [name for name in folder_of(world).entries if name != feed._name]

    async def talk(text: bytes) -> Any:
        async def connect(_: Any) -> Any:
            sock: Any = feed._connected(name)
            sock.send(text)
            return sock

        sock = await world.on(world.hosts[0], connect)
        await asyncio.sleep(0.2)
        return sock

    for text in (b"weather fine\n", b"hello ../../records\n", b'want {"ids": 3}\n', b"want \xff\xfe\n"):
        sock = await talk(text)
        world.check(sock.peer.is_open, f"a process that says {text!r} is cut off")
        sock.close()
    with small(peers, MAX_LINE=100):
        sock = await talk(b"want " + b"x" * 200)
        world.check(not sock.peer.is_open, "a line without an end is held")
    upload = await world.unfinished()
    listener = await listening(world, world.hosts[1], upload)
    await world.client.append(upload, 2000)
    await told_soon(world, listener, "the end")
