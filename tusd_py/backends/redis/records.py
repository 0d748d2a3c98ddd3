"""Reading of the records in Redis: one, several in one round trip, or all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from tusd_py.backends.redis.connection import RedisConnection
from tusd_py.backends.redis.schema import Keys
from tusd_py.core.errors import BrokenRecord
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import BrokenRecords, broken, decode_upload


class RedisRecords:
    """The records below one prefix. A broken one is logged once, and a `BrokenRecord` stands in its place."""

    def __init__(self, connection: RedisConnection, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._broken = BrokenRecords()

    async def get(self, upload_id: str) -> Upload | None:
        """Return a record, None if there is none; raises `BrokenRecord`."""
        return _decode(upload_id, await self._redis.command("HGETALL", self._keys.record(upload_id)))

    async def several(self, upload_ids: Sequence[str]) -> Sequence[Upload | BrokenRecord | None]:
        """Return the records of these ids, in their order and in one round trip."""
        if not upload_ids:
            return ()
        commands = [("HGETALL", self._keys.record(upload_id)) for upload_id in upload_ids]
        records = await self._redis.commands(*commands)
        return [self.decode(upload_id, values) for upload_id, values in zip(upload_ids, records, strict=True)]

    async def readable(self, upload_ids: Sequence[str]) -> Sequence[Upload]:
        """Return those of the records that are there and can be read, in the order of the ids."""
        return [record for record in await self.several(upload_ids) if isinstance(record, Upload)]

    async def all(self) -> AsyncIterator[Upload | BrokenRecord]:
        """Yield every record once, in no order."""
        seen: set[str] = set()
        async for key in self._redis.keys(self._keys.all_records):
            if key in seen:
                continue
            seen.add(key)
            upload_id = self._keys.upload_id(key)
            record = self.decode(upload_id, await self._redis.command("HGETALL", key))
            if record is not None:
                yield record

    def decode(self, upload_id: str, values: Mapping[str, str]) -> Upload | BrokenRecord | None:
        """Return the record of the fields of a hash, which may be some of them; None if there are none."""
        try:
            return _decode(upload_id, values)
        except BrokenRecord as error:
            self._broken.log_once(error)
            return error


def _decode(upload_id: str, values: Mapping[str, str]) -> Upload | None:
    try:
        return decode_upload(values)
    except ValueError as error:
        raise broken(upload_id, values, error) from None
