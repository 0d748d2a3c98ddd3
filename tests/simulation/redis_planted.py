"""Defects of several hosts with Redis to plant in the server, as in `planted.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.simulation.planted import change, nothing, soon
from tusd_py.backends.disk import shared, storage
from tusd_py.backends.redis import connection, due_index, lease_keeper, locker, pipeline, scripts, state
from tusd_py.core import clock
from tusd_py.core.errors import StateUnavailable, UploadExists
from tusd_py.core.upload import Status
from tusd_py.core.upload_codec import encode_upload
from tusd_py.uploads import completion

REDIS_PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    REDIS_PLANTS[function.__name__] = function
    return function


def edit(script: scripts.Script, old: str, new: str) -> None:
    """Change the text of a script, before anybody has asked for its digest."""
    assert old in script.text, f"{script.name} has no {old!r} any more"
    object.__setattr__(script, "text", script.text.replace(old, new))


# Fencing.


@plant
def update_without_fencing_and_comparison() -> None:
    """One of both alone does no harm: a stale holder is stopped by the other."""
    for script in (scripts.UPDATE, scripts.END):
        edit(script, "if tonumber(latest_token or 0) > token or tonumber(record_token or 0) > token", "if false")
        edit(script, "if offset ~= arguments.offset or status ~= arguments.status", "if false")


@plant
def tokens_follow_the_clock_of_redis() -> None:
    for script in (scripts.ACQUIRE, scripts.ACQUIRE_WITHOUT_ROOM):
        edit(script, "token = math.max(token,", "token = math.min(token, 1e18) + 0 * math.max(1,")


@plant
def tokens_follow_the_clock_of_the_host() -> None:
    real = locker.RedisLocker._try_acquire

    async def try_acquire(self: Any, lock: Any, script: Any, *, request: bool) -> float:
        expires_in = await real(self, lock, script, request=request)
        lock.token = lock.token and int(locker.time.time() * 1e6)  # type: ignore[attr-defined]
        return expires_in

    change(locker.RedisLocker, "_try_acquire", try_acquire)


# Leases.


@plant
def lease_not_renewed() -> None:
    async def renew(self: Any, lock: Any) -> None:
        lock.renewed_at = lease_keeper.time.monotonic()  # type: ignore[attr-defined]
        lock.renewing = False

    change(lease_keeper.LeaseKeeper, "_renew", renew)


@plant
def lease_of_another_released() -> None:
    edit(scripts.RELEASE, "if holder == lease_id then", "if holder then")


@plant
def lease_taken_up_again_without_a_look_at_the_record() -> None:
    edit(scripts.RENEW, "if latest_token ~= token or last_released_token == token then return {0, 0, 0} end", "")
    edit(scripts.ACQUIRE, "if record[1] then redis.call('HSET', KEYS[2], 'fence', token) end", "")


@plant
def unreleased_holders_not_counted() -> None:
    for script in (scripts.ACQUIRE, scripts.ACQUIRE_WITHOUT_ROOM):
        edit(script, "unreleased = unreleased + 1", "")


@plant
def unreleased_holders_forgotten_by_the_next_one() -> None:
    for script in (scripts.ACQUIRE, scripts.ACQUIRE_WITHOUT_ROOM):
        edit(script, "redis.call('HSET', KEYS[2], 'suspect', unreleased)", "")


@plant
def release_that_another_reply_lost_counts_as_clean() -> None:
    edit(scripts.RELEASE, "(latest_token or record_token) == token then", "latest_token then token = latest_token")


@plant
def leases_released_as_clean_at_the_end() -> None:
    real = lease_keeper.LeaseKeeper._release_lease

    async def release(self: Any, lock: Any, *, clean: bool) -> None:
        await real(self, lock, clean=True)

    change(lease_keeper.LeaseKeeper, "_release_lease", release)


@plant
def lease_lasts_as_long_as_the_old_clock_says() -> None:
    for script in (scripts.ACQUIRE, scripts.ACQUIRE_WITHOUT_ROOM):
        edit(script, "left > 10 * ttl", "false")


# Repetition of calls whose answer was lost.


@plant
def lost_answer_to_a_creation_taken_for_a_failure() -> None:
    edit(scripts.CREATE_INDEXED, "redis.call('HGET', KEYS[1], 'change') == ARGV[3] and 1 or 0", "0")


@plant
def lost_answer_to_a_change_taken_for_a_failure() -> None:
    for script in (scripts.UPDATE, scripts.END):
        edit(script, "if change_id == arguments.change_id then return 1 end", "")


@plant
def change_counted_as_made_after_a_lost_answer() -> None:
    real = connection.RedisConnection.run

    async def run(self: Any, script: Any, keys: Any, arguments: Any, timeout: float = 1.5) -> Any:
        try:
            return await real(self, script, keys, arguments, timeout)
        except StateUnavailable:
            if script is scripts.UPDATE:
                return 1
            raise

    change(connection.RedisConnection, "run", run)


@plant
def replies_of_cancelled_calls_given_to_others() -> None:
    real = pipeline._Connection.call

    def call(self: Any, words: Sequence[Any], deadline: float) -> asyncio.Future[Any]:
        def forget(reply: asyncio.Future[Any]) -> None:
            if reply.cancelled():
                with contextlib.suppress(ValueError):
                    self._replies.remove((reply, deadline))

        reply = real(self, words, deadline)
        reply.add_done_callback(forget)
        return reply

    change(pipeline._Connection, "call", call)


@plant
def silent_connection_kept() -> None:
    def check_deadlines(self: Any) -> None:
        self._timer = None
        now = self._loop.time()
        for reply, deadline in self._replies:
            if deadline <= now:
                pipeline._settle(reply, TimeoutError())
        later = [deadline for _, deadline in self._replies if deadline > now]
        if later:
            self._set_timer(min(later))

    change(pipeline._Connection, "_check_deadlines", check_deadlines)


@plant
def scripts_not_sent_again() -> None:
    async def run(self: Any, script: Any, keys: Any, arguments: Any, timeout: float = 1.5) -> Any:
        word = script.source if script.digest not in sent else script.digest
        name = "EVAL" if script.digest not in sent else "EVALSHA"
        sent.add(script.digest)
        words = (name, word, len(keys), *keys, *arguments)
        return await self._call(script.name, lambda deadline: self._send(words, deadline), timeout)

    sent: set[str] = set()
    change(connection.RedisConnection, "run", run)


# Clocks.


@plant
def clock_of_the_host_instead_of_that_of_redis() -> None:
    change(clock.RemoteClock, "synchronize", nothing)


# Indexes.


@plant
def index_entry_after_the_record() -> None:
    async def create(self: Any, upload: Any, *, durable: bool = False) -> None:
        values = encode_upload(upload)
        arguments = ["0", *(word for pair in values.items() for word in pair)]
        if not await self._redis.run(scripts.CREATE, [self._keys.record(upload.id)], arguments):
            raise UploadExists
        await self._index_new(upload)

    change(state.RedisState, "create", create)


@plant
def lost_index_not_rebuilt() -> None:
    async def repair(self: Any, older_than: float) -> int:
        return 0

    change(due_index.DueIndex, "repair", repair)


@plant
def expiry_not_noted_when_it_comes_nearer() -> None:
    change(state.RedisState, "_update_due_index", soon)


# A full Redis.


@plant
def removal_needs_memory() -> None:
    change(state, "END", scripts.UPDATE)
    change(locker, "ACQUIRE_WITHOUT_ROOM", scripts.ACQUIRE)


# Files that several hosts have open.


@plant
def file_of_an_unreleased_holder_continued() -> None:
    real = shared.SharedDiskWriter._open

    def open_file(self: Any) -> None:
        self._unreleased_predecessors = 0
        real(self)

    change(shared.SharedDiskWriter, "_open", open_file)


@plant
def longer_file_continued() -> None:
    def open_if_own(self: Any, path: Any) -> bool:
        flags = shared.os.O_RDWR | (shared.os.O_CREAT if self._start == 0 else 0)  # type: ignore[attr-defined]
        with contextlib.suppress(FileNotFoundError):
            descriptor = self._shared.files.open(path, flags)
            if shared.os.fstat(descriptor).st_size >= self._start:  # type: ignore[attr-defined]
                self._descriptor = descriptor
                return True
            shared.os.close(descriptor)  # type: ignore[attr-defined]
        return False

    change(shared.SharedDiskWriter, "_open_if_own", open_if_own)


@plant
def segments_removed_before_the_record() -> None:
    real = shared.SharedDiskStorage.finish

    async def finish(self: Any, upload: Any, parts: Any = (), *, sync: bool) -> str:
        result = await real(self, upload, parts, sync=sync)
        await self.discard_superseded(upload)
        return result

    change(shared.SharedDiskStorage, "finish", finish)


@plant
def segments_joined_under_one_name() -> None:
    change(shared, "_unique_name", lambda path: path.with_name(f"{path.name}.0"))


@plant
def earlier_segments_not_synced() -> None:
    change(shared.SharedDiskStorage, "sync_segments", nothing)


@plant
def segments_of_records_removed_as_orphans() -> None:
    change(shared, "_is_named", lambda *_: False)


@plant
def segments_removed_without_the_lock() -> None:
    async def remove(self: Any, orphan: Any, token: str, records: Any) -> bool:
        await self.run(lambda: self.files.unlink(Path(orphan.name)))
        return True

    change(shared.SharedDiskStorage, "_remove_orphan", remove)


@plant
def segments_kept_when_an_upload_is_removed() -> None:
    change(shared.SharedDiskStorage, "delete", storage.DiskStorage.delete)


# Finished uploads whose records Redis has lost.


@plant
def completion_record_not_written() -> None:
    change(storage.DiskStorage, "save_completion_record_in_thread", nothing)


@plant
def completion_record_not_read() -> None:
    change(storage.DiskStorage, "read_completion_record", nothing)


@plant
def completion_record_written_before_the_change() -> None:
    real = completion.Completion.finish

    async def finish(self: Any, upload: Any, token: int, request: Any = None) -> Any:
        early = replace(upload, status=Status.COMPLETE, completed_at=self._clock.wall())
        await self.save_completion_record(early)
        return await real(self, upload, token, request)

    change(completion.Completion, "finish", finish)
