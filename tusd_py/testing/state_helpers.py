"""Records for the suites of a state store."""

from __future__ import annotations

from dataclasses import replace

from tusd_py.core.upload import Upload

MAX_INTEGER = (1 << 63) - 1

UPLOAD = Upload(id="upload", created_at=1_700_000_000.125)

STORED = replace(UPLOAD, length=100, offset=10, token=5)
