"""Locations of uploads whose records do not name one: they were made by a version that knew no locations."""

from __future__ import annotations

from tusd_py.contracts.storage import Storage, SupportsLocations
from tusd_py.core.upload import Upload


async def located(storage: Storage, upload: Upload) -> Upload:
    """The record with its location, as far as the storage can see it."""
    if upload.location or not isinstance(storage, SupportsLocations):
        return upload
    return await storage.located(upload)
