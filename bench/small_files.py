"""CPU time of a small file beside the byte path: aiofiles against one job of the storage's threads.

    .venv/bin/python -m bench.small_files

Prints microseconds of CPU time, of all threads of the process together, for each way and operation.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import aiofiles
import aiofiles.os
import uvloop

from tusd_py.asyncutil.threads import Threads
from tusd_py.backends.disk.files import FileTree, Modes

RECORD = b"x" * 600  # bytes, as a completion record has
CALLS = 1000  # in a round
ROUNDS = 9


async def measure(call: Callable[[int], Awaitable[object]]) -> float:
    """Return the median over the rounds, in microseconds a call."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for number in range(CALLS):
            await call(number % 100)
        rounds.append((time.process_time() - began) / CALLS * 1e6)
    return statistics.median(rounds)


async def main() -> None:
    """Measure and print every way."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        files, threads = FileTree(folder, Modes(0o600, 0o700)), Threads(4, "bench")

        def path(number: int) -> str:
            return f"{folder}/{number}"

        async def write_with_aiofiles(number: int) -> None:
            new = f"{path(number)}.new"
            async with aiofiles.open(new, "wb") as file:
                await file.write(RECORD)
            await aiofiles.os.replace(new, path(number))

        async def read_with_aiofiles(number: int) -> bytes:
            async with aiofiles.open(path(number), "rb") as file:
                content: bytes = await file.read()
                return content

        def read(number: int) -> bytes:
            with files.opened(path(number), os.O_RDONLY) as descriptor:
                return os.read(descriptor, 1 << 20)

        def write(number: int) -> None:
            files.replace(path(number), RECORD)

        async def write_within_job(number: int) -> None:
            write(number)

        ways: dict[str, Callable[[int], Awaitable[object]]] = {
            "write and rename, aiofiles": write_with_aiofiles,
            "write and rename, one job": lambda number: threads.run(partial(write, number)),
            "write and rename, within a job": write_within_job,
            "read, aiofiles": read_with_aiofiles,
            "read, one job": lambda number: threads.run(partial(read, number)),
        }
        for name, way in ways.items():
            print(f"{name}: {await measure(way):.0f} us")
        threads.close()


if __name__ == "__main__":
    uvloop.run(main())
