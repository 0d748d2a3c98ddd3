"""Directed scenarios of files and SQLite on one host."""

from __future__ import annotations

from tests.simulation.directed import DirectedWorld, scenario


@scenario()
async def a_client_uploads_and_downloads(world: DirectedWorld) -> None:
    upload = await world.unfinished(3000, 1000)
    await world.restart(world.host)
    await world.client.look(upload)
    await world.client.append(upload, 2000)
    await world.client.download(upload)
