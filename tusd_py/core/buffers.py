"""Types of bytes in memory, shared by everything that moves them."""

from __future__ import annotations

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
