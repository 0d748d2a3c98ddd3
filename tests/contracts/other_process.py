"""Actions of tests in a process that they kill:

`hold LOCKER PLACE UPLOAD` takes a lock, prints its token and keeps it;
`create STORE PLACE` creates records without end and prints the id of each once it is acknowledged.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.contracts.parts import LOCKERS, PATIENCE, STATE_STORES
from tusd_py.core.upload import Upload


class Stubborn:
    """Never lets go."""

    def release_requested(self) -> None: ...

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


async def hold(name: str, place: Path, upload_id: str) -> None:
    locker = LOCKERS[name](place)
    await locker.open()
    lock = await locker.acquire(upload_id, Stubborn(), PATIENCE)
    print(lock.token, flush=True)
    await asyncio.Event().wait()


async def create(name: str, place: Path) -> None:
    store = STATE_STORES[name](place)
    await store.open()
    number = 0
    while True:
        await store.create(Upload(id=f"upload-{number}", created_at=number))
        print(f"upload-{number}", flush=True)
        number += 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", name, place, upload_id]:
            asyncio.run(hold(name, Path(place), upload_id))
        case ["create", name, place]:
            asyncio.run(create(name, Path(place)))
