"""Records that servers of earlier versions, which know fewer fields, create and change beside those of this one."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from redis import Redis

from tests.support.redis_server import shared_redis_url
from tusd_py.backends.redis.state import RedisState
from tusd_py.contracts.state import StateStore
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import FIELDS, encode_row, encode_upload

NEW_FIELDS = ("client", "updated_at")
KNOWN = [name for name in FIELDS if name not in NEW_FIELDS]


def change_as_earlier_version(state: StateStore, place: Path, changed: Upload, created: Upload) -> None:
    """Replace one record and add another, with the fields that an earlier version knows."""
    if isinstance(state, RedisState):
        with Redis.from_url(shared_redis_url()) as client:
            for upload in (changed, created):
                values = {name: value for name, value in encode_upload(upload).items() if name in KNOWN}
                client.hset(f"{place}:{{{upload.id}}}:record", mapping=values)
        return
    with contextlib.closing(sqlite3.connect(place / "uploads.sqlite3", isolation_level=None)) as database:
        update = f"UPDATE uploads SET {', '.join(f'{name} = ?' for name in KNOWN)} WHERE id = ?"
        database.execute(update, (*known_values(changed), changed.id))
        places = ", ".join("?" * len(KNOWN))
        database.execute(f"INSERT INTO uploads ({', '.join(KNOWN)}) VALUES ({places})", known_values(created))


def known_values(upload: Upload) -> list[object]:
    return [value for name, value in zip(FIELDS, encode_row(upload), strict=True) if name in KNOWN]


async def test_fields_unknown_to_an_earlier_server_stay_and_come_with_the_next_change(
    state: StateStore, tmp_path: Path
) -> None:
    new = Upload(id="changed", created_at=1.0, client="192.0.2.1")
    await state.create(new)
    stored = await state.update(new, new.at(5), 1)
    change_as_earlier_version(state, tmp_path, stored.at(9), Upload(id="created", created_at=2.0))
    changed, created = await state.get("changed"), await state.get("created")
    assert changed is not None
    assert created is not None
    assert (changed.offset, changed.client, changed.updated_at) == (9, "192.0.2.1", stored.updated_at)
    assert (created.client, created.updated_at, created.changed_at) == ("", None, 2.0)
    assert (await state.update(created, created.at(1), 1)).updated_at is not None
