"""The bytes that are uploaded, and the check that a server has stored exactly these."""

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError, Connection, build

BLOCK_BYTES = 8 << 20
CHECKED_UPLOADS = 20


@dataclass(frozen=True, slots=True)
class Payload:
    descriptor: int
    size: int
    bytes: mmap.mmap


@dataclass(frozen=True, slots=True)
class Upload:
    """One finished upload: its URL path and the piece of the payload that it must hold."""

    path: str
    start: int
    length: int


@contextlib.contextmanager
def payload_file(path: Path, size: int) -> Iterator[Payload]:
    with path.open("wb+") as file:
        for start in range(0, size, BLOCK_BYTES):
            file.write(os.urandom(min(BLOCK_BYTES, size - start)))
        file.flush()
        # Synced now, or the kernel would write the file back in the middle of a measurement.
        os.fsync(file.fileno())
        # Not closed explicitly: an interrupted workload may still hold a view of the memory.
        yield Payload(file.fileno(), size, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def verify(port: int, directory: Path, uploads: Sequence[Upload], payload: Payload, with_bytes: bool) -> None:
    """Check that HEAD tells the whole length and the stored file holds the bytes, for up to 20 of the uploads."""
    step = max(1, len(uploads) // CHECKED_UPLOADS)
    stored = stored_files(directory) if with_bytes else {}
    with Connection(port) as connection:
        for upload in uploads[::step]:
            response = connection.exchange(build("HEAD", upload.path)).expect(200, "HEAD of a finished upload")
            offset = response.headers.get("upload-offset")
            if offset != str(upload.length):
                raise BenchError(f"HEAD of a finished upload tells offset {offset} instead of {upload.length}")
            name = upload.path.rpartition("/")[2]
            if with_bytes and not any(same_bytes(file, upload, payload) for file in stored.get(name, ())):
                raise BenchError(f"no stored file holds the bytes of {upload.path}")


def stored_files(directory: Path) -> dict[str, list[Path]]:
    """Return the stored files by upload id: a file's name up to its first dot, or else its folder's name."""
    found: dict[str, list[Path]] = {}
    for file in directory.rglob("*"):
        if file.is_file():
            for name in {file.name, file.name.partition(".")[0], file.parent.name}:
                found.setdefault(name, []).append(file)
    return found


def same_bytes(file: Path, upload: Upload, payload: Payload) -> bool:
    if file.stat().st_size != upload.length:
        return False
    with file.open("rb") as stored:
        position = upload.start
        while piece := stored.read(BLOCK_BYTES):
            if payload.bytes[position : position + len(piece)] != piece:
                return False
            position += len(piece)
    return True


def delete(port: int, directory: Path, uploads: Sequence[Upload]) -> None:
    """End the uploads over HTTP; a large file that is still there after that is removed by hand."""
    if not uploads:
        return
    with contextlib.suppress(BenchError, OSError), Connection(port) as connection:
        for upload in uploads:
            connection.exchange(build("DELETE", upload.path)).expect(204, "DELETE")
    for file in directory.rglob("*"):
        with contextlib.suppress(OSError):
            if file.is_file() and file.stat().st_size >= min(upload.length for upload in uploads) >= 1 << 20:
                file.unlink()
