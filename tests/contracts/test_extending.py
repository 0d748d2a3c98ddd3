"""The example storage of docs/extending.md, run as it stands on the page."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

from tests.support.harness import ROOT
from tusd_py.contracts.storage import Storage
from tusd_py.testing.storage_suite import StorageSuite

PAGE = ROOT / "docs" / "extending.md"
MAX_LINES = 150


def example() -> str:
    """Return the block of code that defines the storage."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return next(block for block in blocks if "class FolderStorage:" in block)


def run_example() -> dict[str, Any]:
    module = types.ModuleType("extending_example")
    sys.modules[module.__name__] = module
    exec(compile(example(), str(PAGE), "exec"), vars(module))
    return vars(module)


EXAMPLE = run_example()


class TestFolderStorage(StorageSuite):
    def make(self, place: Path) -> Storage:
        storage: Storage = EXAMPLE["FolderStorage"](place / "uploads")
        return storage


def test_example_storage_stays_short() -> None:
    assert len(example().splitlines()) <= MAX_LINES
