"""Keys of records and locks in Redis, and the index of due uploads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from redis.crc import key_slot

from tests.support.redis_hosts import UPLOAD, Holder, Host, keys_of
from tests.support.redis_server import RedisServer, shared_redis_url
from tusd_py.core.errors import LockTimeout
from tusd_py.core.upload import Status, UploadKind, UploadPart


async def test_two_prefixes_do_not_see_each_other(host: Host, prefix: str) -> None:
    async with Host(shared_redis_url(), prefix + "another:") as stranger:
        await host.state.create(replace(UPLOAD, expires_at=1.0))
        assert await stranger.state.get(UPLOAD.id) is None
        assert list(await stranger.state.due(2.0, 10)) == []
        assert [upload async for upload in stranger.state.all()] == []
        lock = await host.locker.acquire(UPLOAD.id, Holder(), 1)
        await (await stranger.locker.acquire(UPLOAD.id, Holder(), 0)).release()
        async with stranger.locker.request_commit(UPLOAD.id) as held:
            assert not held
        await stranger.state.create(UPLOAD)
        await stranger.state.delete(UPLOAD.id, 1)
        assert await host.locker.is_held(UPLOAD.id)
        await lock.release()
        assert len(await host.state.due(2.0, 10)) == 1


@pytest.mark.parametrize("pattern", ["*", "?", "[a]", "a\\", "{x}"])
async def test_a_prefix_is_no_pattern(prefix: str, pattern: str) -> None:
    async with Host(shared_redis_url(), prefix) as near, Host(shared_redis_url(), f"{prefix}{pattern}") as one:
        await near.state.create(replace(UPLOAD, id="near"))
        await one.state.create(UPLOAD)
        assert [upload.id async for upload in one.state.all()] == [UPLOAD.id]


async def test_everything_of_an_upload_is_in_one_hash_slot(host: Host, other: Host, prefix: str) -> None:
    upload = replace(UPLOAD, expires_at=5.0)
    await host.state.create(upload)
    holder = Holder()
    lock = await host.locker.acquire(upload.id, holder, 1)
    await host.state.update(upload, upload.at(10), lock.token, parts=[UploadPart(1, 10, "etag")])
    async with other.locker.request_commit(upload.id):
        pass
    with pytest.raises(LockTimeout):
        await other.locker.acquire(upload.id, Holder(), 0.2)
    keys = [key for key in keys_of(prefix) if upload.id in key.removeprefix(prefix)]
    assert len(keys) >= 3
    assert {key_slot(key.encode()) for key in keys} == {key_slot(upload.id.encode())}
    await lock.release()


async def test_nothing_of_a_deleted_upload_stays(host: Host, prefix: str) -> None:
    upload = replace(UPLOAD, expires_at=5.0)
    await host.state.create(upload)
    lock = await host.locker.acquire(upload.id, Holder(), 1)
    stored = await host.state.update(upload, upload.at(10), lock.token, parts=[UploadPart(1, 10, "etag")])
    await host.state.delete(stored.id, lock.token)
    await lock.release()
    assert keys_of(prefix) in ([], [f"{prefix}due"])
    assert list(await host.state.due(10.0, 10)) == []


@pytest.mark.parametrize("loss", ["all", "one entry"])
async def test_the_index_of_due_uploads_is_rebuilt_after_its_loss(redis: RedisServer, prefix: str, loss: str) -> None:
    async with Host(redis.url, prefix) as one:
        for number in range(450):
            await one.state.create(replace(UPLOAD, id=f"upload-{number}", expires_at=5.0))
        await one.state.create(replace(UPLOAD, id="later", expires_at=1e10))
        await one.state.create(replace(UPLOAD, id="finishing", status=Status.FINISHING, expires_at=None))
        await one.state.create(replace(UPLOAD, id="complete", status=Status.COMPLETE, expires_at=None))
        waiting = replace(UPLOAD, id="waiting", status=Status.FINISHING, concatenation=UploadKind.FINAL)
        await one.state.create(replace(waiting, expires_at=1e10))
        await one.state.repair_index()
        if loss == "all":
            redis.command("DEL", f"{prefix}due")
        else:
            redis.command("ZREM", f"{prefix}due", "upload-7")
        lacking = 453 if loss == "all" else 1
        assert len(await one.state.due(10.0, 1000)) < 451
        assert await one.state.repair_index(older_than=0) == lacking
        due = {upload.id for upload in await one.state.due(10.0, 1000)}
        assert due == {"finishing", *(f"upload-{number}" for number in range(450))}
        assert {"later", "waiting"} <= {upload.id for upload in await one.state.due(2e10, 1000)}


async def test_an_entry_made_after_a_loss_of_the_index_for_a_later_time_than_the_record_says_is_corrected(
    redis: RedisServer, prefix: str
) -> None:
    async with Host(redis.url, prefix) as one:
        await one.state.create(replace(UPLOAD, id="partial", expires_at=5.0))
        await one.state.create(replace(UPLOAD, id="finishing", status=Status.FINISHING, expires_at=None))
        redis.command("DEL", f"{prefix}due")
        redis.command("ZADD", f"{prefix}due", "3600", "partial", "3600", "finishing")

        assert await one.state.repair_index(older_than=0) == 2
        assert {upload.id for upload in await one.state.due(10.0, 10)} == {"partial", "finishing"}
        assert await one.state.repair_index(older_than=0) == 0


async def test_an_index_that_is_whole_is_not_looked_through_again(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(redis.url, prefix) as one:
        await one.state.create(replace(UPLOAD, expires_at=5.0))
        await one.state.repair_index()
        assert [upload.id for upload in await one.state.due(10.0, 10)] == [UPLOAD.id]
        monkeypatch.setattr(one.connection, "keys", None)
        assert await one.state.repair_index() == 0


async def test_an_index_that_is_lost_while_it_is_compared_is_compared_again(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Host(redis.url, prefix) as one:
        await one.state.create(replace(UPLOAD, expires_at=5.0))
        index = one.state._due_index
        repair_page = index._repair_page

        async def repair_and_lose(keys: Sequence[str], now: float) -> int:
            repaired = await repair_page(keys, now)
            await one.connection.command("DEL", f"{prefix}due")
            return repaired

        with monkeypatch.context() as patch:
            patch.setattr(index, "_repair_page", repair_and_lose)
            await one.state.repair_index()
        assert await one.state.repair_index() == 1
        assert [upload.id for upload in await one.state.due(10.0, 10)] == [UPLOAD.id]
