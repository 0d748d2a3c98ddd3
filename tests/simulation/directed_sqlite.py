"""Directed scenarios of the records in SQLite."""

from __future__ import annotations

from tests.simulation.directed import DirectedWorld, scenario


@scenario()
async def removals_need_no_room_on_a_full_disk(world: DirectedWorld) -> None:
    """The first one takes the reserved room, the others that of those before; appends find room, or change nothing."""
    uploads = [await world.unfinished() for _ in range(6)]
    kept, *removed = uploads
    world.machine.files.is_full = True
    await world.client.ask("POST", "/files", {"Upload-Length": "10"}, status=(201, 507))
    world.machine.files.is_full = True  # also of the log of the records, whose room another program has taken
    for upload in removed:
        await world.client.append(kept, 50, status=(204, 507))
        await world.client.remove(upload)
        await world.client.look(kept)
    world.machine.files.is_full = False
    await world.client.append(kept, kept.length - kept.last_offset)


@scenario(lacks=("removal when full",))
async def a_file_that_a_full_disk_does_not_let_be_removed_is_emptied_first(world: DirectedWorld) -> None:
    upload = await world.unfinished()
    world.machine.files.is_full = True
    await world.client.remove(upload)
    world.machine.files.is_full = False
