"""Actions of contract suites in a process that they kill.

`hold MODULE CLASS PLACE UPLOAD` acquires a lock, prints its token and keeps it;
`create MODULE CLASS PLACE` creates records without end and prints the id of each once it is acknowledged.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

from tusd_py.core.upload import Upload

TIMEOUT = 30.0  # seconds


class StubbornHolder:
    """A lock holder that ignores every request."""

    def release_requested(self) -> None:
        """Do nothing."""

    def commit_requested(self) -> None:
        """Do nothing."""

    def lock_lost(self) -> None:
        """Do nothing."""


async def hold(locker: Any, upload_id: str) -> None:
    """Acquire a lock, print its token, and keep it until the process is killed."""
    await locker.open()
    lock = await locker.acquire(upload_id, StubbornHolder(), TIMEOUT)
    print(lock.token, flush=True)
    await asyncio.Event().wait()


async def create(store: Any) -> None:
    """Create records until the process is killed, and print each id after its record is stored."""
    await store.open()
    number = 0
    while True:
        await store.create(Upload(id=f"upload-{number}", created_at=number))
        print(f"upload-{number}", flush=True)
        number += 1


def main(action: str, module: str, suite: str, place: str, *arguments: str) -> None:
    """Run one action with a component that the test class makes."""
    component = getattr(importlib.import_module(module), suite)().make(Path(place))
    if action == "hold":
        asyncio.run(hold(component, *arguments))
    else:
        asyncio.run(create(component))


if __name__ == "__main__":
    main(*sys.argv[1:])
