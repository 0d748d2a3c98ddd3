"""Files with secrets or keys: read at the start, and again when they change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

logger = logging.getLogger("tusd_py.auth")

LOOK_INTERVAL = 1.0  # seconds between two looks at a file
WAIT_AFTER = 1.5  # seconds since the last look after which requests wait for the next one
LOOK_TIMEOUT = 0.4  # seconds that requests wait for a look, twice of which HEAD has: a file system may hang
SETTLING_TIME = 0.1  # seconds without a change after which a file counts as written
MAX_READINGS = 3  # of a file that goes on changing
LOG_INTERVAL = 60.0  # seconds after which a complaint is logged again
MAX_FILE_SIZE = 4 << 20  # bytes
UNCHANGED = "what was read before stays in effect"

Version: TypeAlias = tuple[int, int, int, int]  # inode number, size, times of the last change and of that of the inode


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """The content of a file, and a sentence about what is wrong with it, empty for nothing."""

    version: Version
    value: T = field(repr=False)
    complaint: str = ""


class SecretFile(Generic[T]):
    """A file whose content is parsed. A change that cannot be read leaves the earlier content in effect.

    Attributes:
        changes: the number of times that the content has changed.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], T],
        parse_change: Callable[[bytes], tuple[T, str]] | None = None,
    ) -> None:
        """Read the file. Blocks.

        Args:
            path: the file.
            parse: parses the content; raises `ValueError` with a sentence that holds no secret.
            parse_change: parses the content after a change, in place of `parse`; returns beside it a sentence about
                what is wrong with it nevertheless.

        Raises:
            ValueError: the file cannot be read or parsed; the text names it.
        """
        self._path = path
        self._parse_change = parse_change or (lambda content: (parse(content), ""))
        self._told: tuple[str, float] = ("", 0.0)  # the last complaint that was logged, and when
        self._looked_at = self._began_at = time.monotonic()  # when the last look began that has ended, and the last one
        self._looking: asyncio.Task[None] | None = None
        self.changes = 0
        version = version_of_file(path)  # before the content: a change meanwhile is read again
        self._reading = Reading(version, _parsed(path, content_of(path), parse))

    @property
    def value(self) -> T:
        """The parsed content."""
        return self._reading.value

    @property
    def is_fresh(self) -> bool:
        """Whether the last look was less than a second ago, so that `refresh` has nothing to do."""
        return self._looking is None and time.monotonic() - self._looked_at < LOOK_INTERVAL

    async def refresh(self) -> None:
        """Have the content that the file had at some time of the last two seconds, unless its file system hangs."""
        now = time.monotonic()
        looking = self._looking
        if looking is None or looking.get_loop() is not asyncio.get_running_loop():
            if now - self._looked_at < LOOK_INTERVAL:
                return
            self._began_at = now
            looking = self._looking = asyncio.create_task(self._look())
        if now - self._looked_at < WAIT_AFTER:
            return
        await asyncio.wait((looking,), timeout=max(0.0, self._began_at + LOOK_TIMEOUT - now))
        if not looking.done():
            self._tell(f"{self._path}: the file system does not answer; {UNCHANGED}")

    async def _look(self) -> None:
        began_at = self._began_at
        try:
            self._take(*await asyncio.to_thread(self._read_if_changed))
        finally:
            self._looked_at = began_at
            self._looking = None

    def _take(self, reading: Reading[T] | None, failure: str) -> None:
        """Take what a look has found. Runs where the value is used, so that it does not change in between."""
        if reading is not None:
            self._reading = reading
            self.changes += 1
        self._tell(failure or self._reading.complaint)

    def _tell(self, complaint: str) -> None:
        """Log a complaint, and the same one again after a minute; an empty one says that nothing is wrong."""
        told, told_at = self._told
        now = time.monotonic()
        if complaint != told or now - told_at >= LOG_INTERVAL:
            self._told = complaint, now
            if complaint:
                logger.error("%s", complaint)

    def _read_if_changed(self) -> tuple[Reading[T] | None, str]:
        """Return the content if the file is another one or has changed, and why it cannot be read. Blocks."""
        try:
            return (None if version_of_file(self._path) == self._reading.version else self._read()), ""
        except ValueError as error:
            return None, f"{error}; {UNCHANGED}"
        except Exception as error:  # a defect in what parses the content refuses nobody
            return None, f"{self._path}: {type(error).__name__}; {UNCHANGED}"

    def _read(self) -> Reading[T]:
        for _ in range(MAX_READINGS):
            version = version_of_file(self._path)
            time.sleep(SETTLING_TIME)  # also for changes that are too close for the times of a file
            content = content_of(self._path)
            if version_of_file(self._path) == version:
                break
        value, complaint = _parsed(self._path, content, self._parse_change)
        return Reading(version, value, complaint and f"{self._path}: {complaint}")


R = TypeVar("R")


def _parsed(path: Path, content: bytes, parse: Callable[[bytes], R]) -> R:
    try:
        return parse(content)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the file is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def content_of(path: Path) -> bytes:
    """Return the bytes of a file; raises `ValueError` if it cannot be read, or is large. Blocks."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"{path}: the file is larger than {MAX_FILE_SIZE >> 20} MiB")
    return content


def version_of_file(path: Path) -> Version:
    """Return what changes with the content of a file; raises `ValueError` if it cannot be told. Blocks."""
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
