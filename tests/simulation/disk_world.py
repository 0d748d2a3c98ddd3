"""The world whose bytes and records are on one disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.simulation.faults import Fault
from tests.simulation.filesystem import File
from tests.simulation.oracle import Expected
from tests.simulation.patches import Modules
from tests.simulation.profiles import DISK_PROFILES, Profile
from tests.simulation.world import EXPIRY_PATIENCE, TOP, World

RECORDS = f"{TOP}/.tusd-py/uploads.sqlite3"
LOG = f"{RECORDS}-wal"


class DiskWorld(World):
    """One run with files and SQLite."""

    profiles: Sequence[Profile] = DISK_PROFILES
    applications = 0.35
    operators = 0.25

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        super().__init__(seed, modules, without, profile)
        self._backup: dict[str, bytes] = {}  # the content of the files of the records, by path

    def _own_settings(self) -> dict[str, Any]:
        return {"reserve_disk": 4096} if Random(f"{self.seed} reserve").random() < 0.1 else {}

    def _apply(self, fault: Fault) -> None:
        if fault.kind == "backup":
            files = self.machine.files
            found = {path: files.read(path) for path in (RECORDS, LOG)}
            self._backup = {path: content for path, content in found.items() if content is not None}
        else:
            super()._apply(fault)

    def _look_for_remains(self, records: set[str]) -> None:
        """Check what the storage has; a process that is killed in a sync leaves a mark, which a later writer needs."""
        unfinished = {upload.id for upload in self.oracle.uploads if not upload.complete}
        super()._look_for_remains(records | {f".{name}.sync" for name in records & unfinished})

    async def _restore_backup(self) -> None:
        """Start the servers with the records of the backup, and look for every finished upload once they expire."""
        finished = [upload for upload in self.oracle.uploads if self._is_finished(upload)]
        if RECORDS not in self._backup or not finished:
            return
        self.log("the operator restores the records of the backup")
        for host in self.hosts:
            await host.shut_down()
            host.end_lingering()
        for path in (RECORDS, LOG):
            self._replace(path, self._backup.get(path, b""))
        self.orphans_possible = True
        self.oracle.losses += 1
        saved = [upload for upload in finished if self._has_completion_record(upload)]
        for host in self.hosts:
            await host.start()
        await asyncio.sleep(self.settings["expires_after"] + EXPIRY_PATIENCE)
        for upload in finished:
            if (self._stored(upload.id) or b"")[: upload.length] != upload.known:
                self.complain(f"upload {upload.number} was finished, and its bytes are gone after a restore")
        for upload in saved:
            await self.client_of(upload).verify(upload)

    def _is_finished(self, upload: Expected) -> bool:
        self.oracle.note_expiry(upload)
        is_whole = upload.complete and upload.kind != "partial"
        return is_whole and not (upload.may_be_gone or self.oracle.retention)

    def _has_completion_record(self, upload: Expected) -> bool:
        return self.machine.files.read(f"{TOP}/.tusd-py/finished/{upload.id[:2]}/{upload.id}.json") is not None

    def _replace(self, path: str, content: bytes) -> None:
        folder, name = self.machine.files.place(path)
        found: Any = folder.entries.get(name)
        assert found is None or isinstance(found, File)
        if found is None:
            found = self.machine.files.new_file(0o600)
            folder.change((name, found))
        found.cut(0)
        found.write(0, content)
        found.sync()
        folder.sync()
