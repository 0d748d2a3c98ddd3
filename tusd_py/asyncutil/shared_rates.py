"""Rates counted by all processes of one host in a file that they map into memory (`tusd_py.contracts.rates`)."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tusd_py.asyncutil.local_rates import LocalRates, next_share
from tusd_py.contracts.rates import CountsRates

VARIABLE = "TUSDPY_SHARED_RATES"  # of the environment: the path of the file
KEY_SIZE = 16  # bytes
BUCKETS = 2048
WAYS = 8  # rates of a bucket: the file is 256 KiB
ENTRY = struct.Struct("=Qd")  # tag of a name, and the time at which all that was taken is used up
BUCKET = struct.Struct("=" + "Qd" * WAYS)


def create(path: Path) -> None:
    """Create the file, without rates. Blocks. Raises OSError, also if there is no room for it."""
    with path.open("xb") as file:  # without holes: on a full disk, one would kill the process that writes to it
        file.write(os.urandom(KEY_SIZE) + bytes(BUCKETS * BUCKET.size))


def rates_of_host() -> CountsRates:
    """Return the rates that the processes of a supervisor share, else new ones of this process. Blocks."""
    path = os.environ.get(VARIABLE)
    if path:
        with contextlib.suppress(OSError):  # a process that a worker has started, and that has outlived the supervisor
            return SharedRates(Path(path))
    return LocalRates()


class SharedRates:
    """The rates of a file, in bounded memory: a new one takes the place of that which was used up first.

    Nothing is locked, so that no process waits for another one, which may have been stopped. Where two processes count
    the same name within a microsecond, one of the two shares may be lost.

    Names are found by a keyed hash, so that nobody can choose names that push out the rate of another one.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Map the file. `clock`, in seconds, has to be the same for all processes. Blocks. Raises OSError."""
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), KEY_SIZE + BUCKETS * BUCKET.size)
        self._key = self._memory[:KEY_SIZE]
        self._clock = clock

    async def take_rate(self, name: str, seconds: float, burst: float, *, refuse: bool) -> float:
        """See `CountsRates.take_rate`."""
        now = self._clock()
        position, tag, used_up = self._find(name)
        wait, after = next_share(now, used_up, seconds, burst, refuse=refuse)
        if after != used_up:
            ENTRY.pack_into(self._memory, position, tag, after)
        return wait

    def _find(self, name: str) -> tuple[int, int, float]:
        """Return the position and the tag of a rate, and the time at which it is used up; 0 for a new one."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
        tag = int.from_bytes(digest[:8]) or 1  # 0 is an entry that was never used
        start = KEY_SIZE + int.from_bytes(digest[8:]) % BUCKETS * BUCKET.size
        fields = BUCKET.unpack_from(self._memory, start)
        tags, times = fields[::2], fields[1::2]
        if tag in tags:
            way = tags.index(tag)
            return start + way * ENTRY.size, tag, times[way]
        way = min(range(WAYS), key=times.__getitem__)
        return start + way * ENTRY.size, tag, 0.0
