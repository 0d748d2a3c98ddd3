"""The means of directed scenarios of one storage in files: a directory of its own, led call by call."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from tests.simulation.directed import DirectedWorld, Script, scenario
from tests.simulation.filesystem import File
from tests.simulation.worlds import DISK
from tusd_py.backends.disk.segment_map import segments
from tusd_py.backends.disk.shared import SharedDiskStorage, segment_path
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_marks import mark_of
from tusd_py.core.errors import UploadError
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.core.upload import Upload

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=3000)


class Directory:
    """One directory with one upload, whose storage may be opened again as another process does.

    Attributes:
        storage: the storage that is open now.
        upload: the record of the upload, as it was committed last.
        sent: its bytes.
    """

    def __init__(self, world: DirectedWorld, kind: Callable[..., DiskStorage]) -> None:
        self.world, self.files = world, world.machine.files
        self.kind = kind
        self.name = f"directory-{world.next_upload()}"
        self.top = Path(self.files.top, self.name, "uploads")
        self.upload, self.sent = UPLOAD, b""

    async def open(self) -> None:
        self.storage = self.kind(self.top, self.top.parent / "notes")
        await self.storage.open()

    async def open_again(self) -> None:
        """Close the storage, and open it as the next process does."""
        await self.storage.close()
        await self.open()

    @property
    def path(self) -> Path:
        return self.storage.path(self.upload)

    @property
    def shared(self) -> SharedDiskStorage:
        assert isinstance(self.storage, SharedDiskStorage)
        return self.storage

    def check(self, condition: object, text: str) -> None:
        self.world.check(condition, text)

    def file(self, path: Path | None = None) -> File:
        """Return what the kernel has of a file, that of the upload without a path."""
        found = self.files.find(str(path or self.path))
        assert isinstance(found, File)
        return found

    def names(self) -> set[str]:
        """Return the names of all files of uploads, with their marks."""
        prefix = f"{self.name}/uploads/"
        names = {name.removeprefix(prefix) for name in self.files.names() if name.startswith(prefix)}
        return {name for name in names if not name.startswith(PRIVATE_FOLDER)}

    def random(self, size: int) -> bytes:
        return self.world.client.rng.randbytes(size)

    def mark(self, path: Path | None = None) -> None:
        """Leave a mark, as a process does that dies in a sync."""
        self.storage.syncs.marks.make(path or self.path)

    def lose(self, path: Path | None = None) -> None:
        """Have the sync of a process that has died fail: its bytes can be read, and never reach the device."""
        self.files.fail_sync(self.file(path))

    def is_marked(self, path: Path | None = None) -> bool:
        return mark_of(path or self.path).name in self.names()

    async def append(self, size: int, token: int = 1, *, predecessors: int = 0, sync: bool = True) -> None:
        """Append bytes, and commit them."""
        writer = self.storage.writer(self.upload, token, unreleased_predecessors=predecessors)
        try:
            await self.flush(writer, size, sync=sync)
        finally:
            await writer.close()

    async def flush(self, writer: Any, size: int, *, sync: bool) -> None:
        """Have a writer store bytes, and commit them."""
        content = self.random(size)
        await writer.flush([content], sync=sync)
        self.commit(writer, content)

    def commit(self, writer: Any, content: bytes = b"") -> None:
        """Commit what a writer has stored."""
        done = writer.snapshot()
        self.sent += content
        self.upload = replace(
            self.upload, offset=done.offset, synced=done.synced, storage_state=done.storage_state or ""
        )
        writer.committed(done)
        self.check_stored()

    def check_stored(self) -> None:
        """Check that the bytes of the upload are those sent, and that those which count as synced are on the device."""
        for end, source in ((self.upload.offset, "data"), (self.upload.synced, "durable")):
            held = b""
            for segment in segments(self.upload.storage_state, end):
                file = self.file(segment_path(self.path, segment.token)) if end else File(0, 0)
                held += bytes(getattr(file, source)[segment.start : segment.end])
            self.check(held == self.sent[:end], f"{len(held)} {source} bytes are not the first {end} that were sent")

    async def finish(self) -> None:
        """Finish the upload, and check that all its bytes are on the device, in one file."""
        await self.storage.finish(self.upload, sync=True)
        await self.storage.discard_superseded(self.upload)
        self.upload = replace(self.upload, storage_state="", synced=self.upload.offset)
        self.check_stored()
        self.check(self.names() == {self.path.name}, f"the files {self.names()} are left")

    def go_back(self, offset: int) -> None:
        """Have the record follow a loss of bytes."""
        self.upload = replace(self.upload, offset=offset, synced=min(self.upload.synced, offset))
        self.sent = self.sent[:offset]

    async def refused(self, kind: type[Exception], asked: Awaitable[object]) -> Any:
        """Await something that has to be refused with an error of this kind; return the error."""
        try:
            result = await asked
        except (UploadError, OSError) as error:
            self.check(isinstance(error, kind), f"{error!r} instead of {kind.__name__}")
            return error
        self.check(False, f"{result!r} instead of {kind.__name__}")
        return None


Steps: TypeAlias = Callable[[Directory], Awaitable[None]]


def directory(kind: Callable[..., DiskStorage] = DiskStorage, **options: Any) -> Callable[[Steps], Script]:
    """Make a scenario of the function below, which leads a storage of this kind; see `scenario` for the options."""

    def register(steps: Steps) -> Script:
        @functools.wraps(steps)
        async def script(world: DirectedWorld) -> None:
            place = Directory(world, kind)

            async def run(_: object) -> None:
                place.top.parent.mkdir()
                await place.open()
                try:
                    await steps(place)
                finally:
                    await place.storage.close()

            await world.on(world.host, run)
            world.machine.files.mounted.entries.pop(place.name)

        return scenario("redis" if kind is SharedDiskStorage else DISK, **options)(script)

    return register
