"""The interrupted appends of one process, by which later ones are known to resume their uploads."""

from __future__ import annotations

MAX_INTERRUPTED = 10_000  # uploads


class Interruptions:
    """The ids of the uploads whose last append was interrupted; beyond `MAX_INTERRUPTED` the oldest are forgotten."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}  # in the order of their interruptions

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, upload_id: str) -> None:
        """Note that an append was interrupted."""
        self._ids[upload_id] = None
        if len(self._ids) > MAX_INTERRUPTED:
            del self._ids[next(iter(self._ids))]

    def take(self, upload_id: str) -> bool:
        """Forget an upload, whose next append begins; return whether the last one was interrupted."""
        if upload_id not in self._ids:
            return False
        del self._ids[upload_id]
        return True
