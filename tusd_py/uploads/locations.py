"""Locations of uploads whose records name none, since an earlier version created them."""

from __future__ import annotations

from tusd_py.contracts.storage import Storage, SupportsLocations
from tusd_py.core.upload import Upload


class Locations:
    """The locations of the uploads in one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage if isinstance(storage, SupportsLocations) else None

    async def located(self, upload: Upload) -> Upload:
        """Return the record with its location, as far as the storage can find it."""
        if upload.location or self._storage is None:
            return upload
        return await self._storage.located(upload)
