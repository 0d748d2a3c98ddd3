"""The file and the mark of an upload whose process died in a sync."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.disk.sync_marks import mark_of
from tusd_py.core.upload import Upload

UPLOAD = Upload(id="upload", created_at=1_700_000_000.0, length=10)
INHERITED = replace(UPLOAD, offset=3)
FILE = "*/uploads/upload"


async def leave(storage: DiskStorage, data: bytes, upload: Upload = UPLOAD) -> Path:
    """Leave bytes that are committed, and a mark, as a process does that dies in the sync after them."""
    writer = storage.writer(upload, 1)
    await writer.flush([data], sync=False)
    await writer.close()
    path = storage.path(upload)
    mark_of(path).touch()
    return path
