"""The world of the backends in memory: one process, whose server is shut down and started again, and never killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.oracle import Expected
from tests.simulation.patches import Modules
from tests.simulation.profiles import CANCELLING, EVENTS, EXPIRY, Profile
from tests.simulation.world import World
from tusd_py.backends.memory.locker import MemoryLocker, MemoryLocks
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.memory.storage import MemoryStorage, StoredBytes

KINDS = {"pause": 3, "shutdown": 5, "clock": 1}
PROFILES = (
    replace(EXPIRY, kinds={"pause": 2, "shutdown": 3}),
    replace(EVENTS, kinds={"pause": 2, "shutdown": 3}, processes=(1,)),
    Profile("cancellations", kinds={"pause": 1, "shutdown": 2}, most_faults=4, habits=CANCELLING),
)


class MemoryWorld(World):
    """One run whose uploads are in memory, which outlives the server, as a process does that embeds it."""

    kinds: Mapping[str, int] = KINDS
    profiles: Sequence[Profile] = PROFILES
    process_counts = (1,)
    most_faults = 4
    applications = 0.35
    operators = 0.25
    has_files = False

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        self._bytes: StoredBytes = {}
        self._records = MemoryRecords()
        self._locks = MemoryLocks()
        super().__init__(seed, modules, without, profile)

    def components(self) -> dict[str, Any]:
        return {
            "storage": MemoryStorage(self._bytes),
            "state": MemoryState(self._records),
            "locker": MemoryLocker(self._locks),
        }

    def _stored(self, upload_id: str) -> bytes | None:
        found = self._bytes.get(upload_id)
        return None if found is None else bytes(found)

    def _look_for_remains(self, records: set[str]) -> None:
        for upload in self.oracle.uploads:
            self.oracle.note_expiry(upload)
            self._check_remains(upload, set(self._bytes), records)
        for upload_id in sorted(self._bytes.keys() - records):
            self.complain(f"the bytes of {upload_id[:8]} are left over")
        if self._locks.held:
            self.complain(f"the locks of {sorted(self._locks.held)} are left over")

    def removed(self, upload: Expected) -> None:
        if upload.id in self._bytes:
            self.complain(f"upload {upload.number} was removed, and its bytes are left over")
