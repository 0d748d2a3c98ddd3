"""Contract suites, backends in memory and a small client: for authors of components. See docs/extending.md.

The suites are in `tusd_py.testing.storage_suite`, `.state_suite` and `.locker_suite`; they need pytest and
pytest-asyncio: `pip install 'tusd-py[testing]'`. Tests that are added to a suite come with minor releases.
"""

from __future__ import annotations

import sys

from tusd_py.backends.memory.locker import MemoryLocker, MemoryLocks
from tusd_py.backends.memory.state import MemoryRecords, MemoryState
from tusd_py.backends.memory.storage import MemoryStorage, StoredBytes
from tusd_py.testing.client import Answer, TusClient, TusError

__all__ = [
    "Answer",
    "MemoryLocker",
    "MemoryLocks",
    "MemoryRecords",
    "MemoryState",
    "MemoryStorage",
    "StoredBytes",
    "TusClient",
    "TusError",
]

if (pytest := sys.modules.get("pytest")) is not None:  # failed assertions of the suites show their values
    _SUITES = (
        "commit_request_suite",
        "concatenation_suite",
        "due_suite",
        "listing_suite",
        "locker_helpers",
        "locker_suite",
        "outbox_suite",
        "part_list_suite",
        "query_suite",
        "quota_suite",
        "reading_suite",
        "snapshot_suite",
        "state_suite",
        "storage_helpers",
        "storage_suite",
    )
    pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))
