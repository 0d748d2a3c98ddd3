"""Notes of finished uploads, one small file each: their records, should the state store lose or forget them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path

from tusd_py.backends.disk.files import FileTree, Modes
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import decode, encode

PRIVATE = Modes(0o600, 0o700)
MAX_RECORD_SIZE = 16 << 20  # bytes


class CompletionRecords:
    """The notes in one folder. Every call blocks, and raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._files = FileTree(folder, PRIVATE)

    def read(self, upload_id: str) -> Upload | None:
        """The record of a finished upload; None if there is no note, or none that can be read."""
        try:
            with self._files.opened(self._path(upload_id), os.O_RDONLY) as descriptor:
                return decode(json.loads(os.read(descriptor, MAX_RECORD_SIZE)))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, upload: Upload) -> None:
        note = self._path(upload.id)
        content = json.dumps(encode(upload)).encode()
        new = note.with_name(f"{note.name}.{secrets.token_hex(8)}")
        try:
            with self._files.opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, "the note was cut off")
            self._files.rename(new, note)
        except OSError:
            with contextlib.suppress(OSError):
                self._files.unlink(new)
            raise

    def remove(self, upload_id: str) -> None:
        self._files.unlink(self._path(upload_id))

    def _path(self, upload_id: str) -> Path:
        return self._files.top / upload_id[:2] / f"{upload_id}.json"
