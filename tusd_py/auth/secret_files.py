"""Files with secrets or keys: read at the start, and again when they change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

logger = logging.getLogger("tusd_py.auth")

LOOK_INTERVAL = 1.0  # seconds between two looks at a file
MAX_FILE_SIZE = 4 << 20  # bytes

Version: TypeAlias = tuple[int, int, int]  # inode number, size, time of the last change


class SecretFile(Generic[T]):
    """A file whose content is parsed. A change that cannot be read leaves the earlier content in effect.

    Attributes:
        value: the parsed content.
        changes: the number of times that the content has changed.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        """Read the file. Blocks.

        Args:
            path: the file.
            parse: parses the content; raises `ValueError` with a sentence that holds no secret.

        Raises:
            ValueError: the file cannot be read or parsed; the text names it.
        """
        self._path = path
        self._parse = parse
        self._refused = ""  # the last reason that was logged
        self._looked_at = time.monotonic()
        self._reading: asyncio.Task[None] | None = None
        self.changes = 0
        self._version, self.value = self._read()

    @property
    def is_fresh(self) -> bool:
        """Whether the last look was less than a second ago, so that `refresh` has nothing to do."""
        return self._reading is None and time.monotonic() - self._looked_at < LOOK_INTERVAL

    async def refresh(self) -> None:
        """Read the file again if it has changed since the last look, a second ago or more."""
        if self.is_fresh:
            return
        if self._reading is None or self._reading.get_loop() is not asyncio.get_running_loop():
            self._reading = asyncio.create_task(self._look())
        await asyncio.shield(self._reading)

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self._read_again)
        finally:
            self._looked_at = time.monotonic()
            self._reading = None

    def _read_again(self) -> None:
        """Read the file if it is another one or has changed; log once why that is not possible. Blocks."""
        try:
            if version_of(self._path) == self._version:
                return
            self._version, self.value = self._read()
            self.changes += 1
            self._refused = ""
        except OSError as error:
            self._keep(f"{self._path}: {error.strerror}")
        except ValueError as error:
            self._keep(str(error))

    def _keep(self, reason: str) -> None:
        if reason != self._refused:
            self._refused = reason
            logger.error("%s; what was read before stays in effect", reason)

    def _read(self) -> tuple[Version, T]:
        try:
            version = version_of(self._path)  # before the content: a change meanwhile is read again
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_SIZE + 1)
        except OSError as error:
            raise ValueError(f"{self._path}: {error.strerror}") from error
        if len(content) > MAX_FILE_SIZE:
            raise ValueError(f"{self._path}: the file is larger than {MAX_FILE_SIZE >> 20} MiB")
        try:
            return version, self._parse(content)
        except UnicodeDecodeError:
            raise ValueError(f"{self._path}: the file is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None


def version_of(path: Path) -> Version:
    """Return what changes with the content of a file. Blocks."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
