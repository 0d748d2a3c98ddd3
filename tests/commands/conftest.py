from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tusd_directory import (
    CONTENT,
    DEFERRED,
    EMPTY,
    FINAL,
    HALF,
    METADATA,
    MIDDLE,
    OTHER_PARTIAL,
    PARTIAL,
    WHOLE,
    write_upload,
)


@pytest.fixture
def tusd(tmp_path: Path) -> Path:
    """One upload of every kind."""
    directory = tmp_path / "tusd"
    write_upload(directory, HALF, len(CONTENT), CONTENT[:MIDDLE], MetaData=METADATA)
    write_upload(directory, WHOLE, len(CONTENT), CONTENT, MetaData=METADATA)
    write_upload(directory, EMPTY, 0, b"", MetaData=None)
    write_upload(directory, DEFERRED, 0, CONTENT[:5], SizeIsDeferred=True)
    write_upload(directory, PARTIAL, 1000, CONTENT[:1000], IsPartial=True)
    write_upload(directory, OTHER_PARTIAL, 1000, CONTENT[:10], IsPartial=True)
    write_upload(directory, FINAL, 2000, CONTENT[:2000], IsFinal=True, PartialUploads=[PARTIAL, "removed"])
    (directory / f"{HALF}.lock").write_text("4711\n")
    (directory / "stray").write_bytes(b"no .info")
    return directory
