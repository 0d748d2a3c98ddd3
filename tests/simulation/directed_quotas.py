"""Directed scenarios of the quotas of owners, for uploads whose length is not known."""

from __future__ import annotations

import asyncio
import base64
import hashlib

from tests.simulation.directed import DirectedWorld, scenario
from tests.simulation.directed_appends import refuse
from tests.simulation.directed_calls import Sending, append, create, refused, send
from tests.simulation.oracle import Attempt
from tests.support.services import Body
from tusd_py.core.errors import ChecksumMismatch, QuotaExceeded
from tusd_py.uploads.checksum import AnnouncedChecksum
from tusd_py.uploads.validation import AppendRequest, NewUpload


@scenario(settings={"quota_bytes": 6000})
async def the_quota_of_an_owner_holds_for_uploads_of_unknown_length(world: DirectedWorld) -> None:
    await refused(
        world,
        QuotaExceeded,
        lambda service: service.create_with(NewUpload(None), AppendRequest(0, Body(bytes(6001)))),
    )
    upload = await create(world, None, world.client.rng.randbytes(1000), planned=4000)
    await refuse(world, QuotaExceeded, upload, 5001)
    await refuse(world, QuotaExceeded, upload, 10, length=6001)
    await append(world, upload, 500, arrived=False, declared=False)
    checksum = AnnouncedChecksum("sha1", hashlib.sha1(b"another").digest())
    await refuse(world, ChecksumMismatch, upload, 100, length=4000, verification=checksum)
    await world.client.look(upload)
    content = world.client.rng.randbytes(2500)
    right = {"Upload-Checksum": f"sha1 {base64.b64encode(hashlib.sha1(content).digest()).decode()}"}
    await send(world, upload, content, headers={**right, "Upload-Length": "4000"}, is_whole=True)
    await world.client.download(upload)

    filling = await create(world, None, planned=2000)
    content = world.client.rng.randbytes(2500)
    filling.attempts.append(Attempt(0, content[:2000]))
    endless = AppendRequest(0, Body(content, declared=False, piece_size=500))
    await refused(world, QuotaExceeded, lambda service: service.append(filling.id, endless))
    filling.known += content[:2000]
    filling.last_offset = 2000
    await world.client.look(filling)
    await append(world, filling, 0, length=2000)
    await world.client.download(filling)


@scenario(settings={"quota_bytes": 6000})
async def the_room_of_a_quota_is_taken_by_whoever_comes_first(world: DirectedWorld) -> None:
    upload = await create(world, None, planned=3000)
    sending = Sending(world, upload, 3000, headers={"Upload-Length": "3000"})
    sending.push(100)
    await asyncio.sleep(3.0)
    await refused(world, QuotaExceeded, lambda service: service.create(NewUpload(3001)))
    other = await create(world, 3000)
    sending.push(2900)
    await sending.answer(204)
    await append(world, other, 3000)
    await world.client.download(upload)


@scenario(settings={"quota_bytes": 6000})
async def bytes_for_which_another_upload_has_taken_the_room_are_dropped(world: DirectedWorld) -> None:
    upload = await create(world, None, planned=4000)
    sending = Sending(world, upload, 4000)
    sending.push(1000)
    await asyncio.sleep(3.0)
    other = await create(world, 4500)
    sending.push(3000)
    await sending.answer(413)
    await world.client.look(upload)
    await world.client.remove(other)
    await append(world, upload, 4000 - upload.last_offset, length=4000)
    await world.client.download(upload)
