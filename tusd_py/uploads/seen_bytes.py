"""The memory of the bytes of unfinished uploads: their digests so far, and their first bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from tusd_py.core.buffers import Buffer
from tusd_py.core.file_types import HEAD_SIZE
from tusd_py.core.upload import Upload

MAX_KEPT = 4096  # uploads; up to 2 KiB each


class SeenBytes:
    """The digests of the first `size` bytes of an upload, and the first `HEAD_SIZE` of them."""

    __slots__ = ("_hashes", "head", "size")

    def __init__(self, names: Iterable[str]) -> None:
        """Compute digests by these algorithms of `hashlib`, of no bytes so far."""
        self.size = 0
        self.head = b""
        self._hashes: dict[str, Any] = {name: hashlib.new(name) for name in names}

    def update(self, data: Buffer) -> None:
        """Add the next bytes. Runs in a worker thread."""
        self.size += len(data)
        if len(self.head) < HEAD_SIZE:
            self.head += bytes(data[: HEAD_SIZE - len(self.head)])
        for value in self._hashes.values():
            value.update(data)

    def copy(self) -> SeenBytes:
        """Return an independent copy."""
        copy = SeenBytes(())
        copy.size, copy.head = self.size, self.head
        copy._hashes = {name: value.copy() for name, value in self._hashes.items()}
        return copy

    def digest(self, name: str) -> str | None:
        """Return a digest in hex; None if this algorithm was not computed."""
        value = self._hashes.get(name)
        return None if value is None else str(value.hexdigest())


class SeenUploads:
    """The bytes of unfinished uploads as this process has seen them, in bounded memory; forgotten ones are read again.

    Bytes count only together with the token of the record that was committed after them: another process may have
    taken them back since, and stored others in their place.
    """

    def __init__(self, most: int = MAX_KEPT) -> None:
        """Remember so many uploads, those of the latest appends."""
        self._most = most
        self._kept: OrderedDict[str, tuple[int, SeenBytes]] = OrderedDict()

    def take(self, upload: Upload) -> SeenBytes | None:
        """Return, and forget, what was seen of exactly the committed bytes of an upload; None if that is not known."""
        token, seen = self._kept.pop(upload.id, (0, None))
        return seen if seen is not None and token == upload.token and seen.size == upload.offset else None

    def keep(self, upload: Upload, seen: SeenBytes) -> None:
        """Remember what was seen of the committed bytes of an upload."""
        self._kept[upload.id] = upload.token, seen
        self._kept.move_to_end(upload.id)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self, upload_id: str) -> None:
        """Forget an upload."""
        self._kept.pop(upload_id, None)
