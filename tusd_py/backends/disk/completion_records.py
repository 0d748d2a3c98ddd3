"""Completion records: copies of the records of finished uploads, in case the state store loses them; one file each."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tusd_py.backends.disk.files import FileTree, Modes
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import decode_upload, encode_upload

PRIVATE = Modes(0o600, 0o700)
MAX_RECORD_SIZE = 16 << 20  # bytes


class CompletionRecords:
    """The completion records in one folder. Every method blocks, and raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._files = FileTree(folder, PRIVATE)

    def read(self, upload_id: str) -> Upload | None:
        """Return the record of a finished upload; None if it is missing or cannot be read."""
        try:
            with self._files.opened(self._path(upload_id), os.O_RDONLY) as descriptor:
                return decode_upload(json.loads(os.read(descriptor, MAX_RECORD_SIZE)))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, upload: Upload) -> None:
        self._files.replace(self._path(upload.id), json.dumps(encode_upload(upload)).encode())

    def remove(self, upload_id: str) -> None:
        self._files.unlink(self._path(upload_id))

    def _path(self, upload_id: str) -> str:
        return f"{self._files.top}/{upload_id[:2]}/{upload_id}.json"
