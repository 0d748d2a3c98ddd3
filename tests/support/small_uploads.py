"""Uploads of small bodies in a service on one disk, and looks at what it has stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.redis_server import shared_redis_url
from tests.support.services import Body
from tusd_py.uploads.pace import SAMPLES
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest


def records_in_redis(tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a service of this test with its records in Redis."""
    return {"redis_url": shared_redis_url(), "redis_prefix": f"{tmp_path.name}:", "lock_ttl": 60}


def small_append(data: bytes, offset: int = 0) -> AppendRequest:
    """Return the request of a body that is in memory when its request begins."""
    return AppendRequest(offset, Body(data, arrived=True))


def content(tmp_path: Path, upload_id: str) -> bytes:
    """Return the bytes in the file of an upload."""
    return (tmp_path / "uploads" / upload_id).read_bytes()


def completion_records(tmp_path: Path) -> list[str]:
    """Return the ids of the uploads that have a completion record."""
    return [path.stem for path in (tmp_path / "uploads" / ".tusd-py" / "finished").rglob("*.json")]


def make_fast(service: UploadService) -> None:
    """Have the service know the syncs as fast, whatever the disk of the test is."""
    pace = service._appending._pace
    for _ in range(SAMPLES):
        pace.begin(pace)
        pace.end(pace, counts=True)
    assert pace.is_fast
