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
from tusd_py.backends.redis import (
    connection,
    due_index,
    lease_keeper,
    locker,
    outbox,
    outbox_index,
    pipeline,
    scripts,
    state,
)
from tusd_py.core import clock
from tusd_py.core.errors import StateUnavailable, UploadExists
from tusd_py.core.upload import Status
from tusd_py.core.upload_codec import encode_upload
from tusd_py.uploads import completion, recovery

REDIS_PLANTS: dict[str, Callable[[], None]] = {}


def plant(function: Callable[[], None]) -> Callable[[], None]:
    REDIS_PLANTS[function.__name__] = function
    return function


def edit(script: scripts.Script, old: str, new: str) -> None:
    """Change the text of a script, before anybody has asked for its digest."""
    assert old in script.text, f"{script.name} has no {old!r} any more"
    object.__setattr__(script, "text", script.text.replace(old, new))


ACQUIRING = (scripts.ACQUIRE, scripts.ACQUIRE_WITHOUT_ROOM)
CHANGING = (scripts.UPDATE, scripts.END)
NO_CHANGE = scripts.Script("update", "return 1")


# Fencing.


@plant
def update_without_fencing_and_comparison() -> None:
    """One of both alone does no harm: a stale holder is stopped by the other."""
    for script in CHANGING:
        edit(script, "if tonumber(latest_token or 0) > token or tonumber(record_token or 0) > token", "if false")
        edit(script, "if offset ~= arguments.offset or status ~= arguments.status", "if false")
        edit(script, "if arguments.compares and differs", "if false")


@plant
def tokens_follow_the_clock_of_the_host() -> None:
    real = locker.RedisLocker._try_acquire

    async def try_acquire(self: Any, lock: Any, script: Any, *, request: bool) -> float:
        expires_in = await real(self, lock, script, request=request)
        lock.token = lock.token and int(locker.time.time() * 1e6)  # type: ignore[attr-defined]
        return expires_in

    change(locker.RedisLocker, "_try_acquire", try_acquire)


@plant
def tokens_follow_the_clock_of_redis() -> None:
    for script in ACQUIRING:
        edit(script, "token = math.max(token, ", "token = math.min(token, 1e18) + 0 * math.max(1, ")


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
def unreleased_holders_not_counted() -> None:
    for script in ACQUIRING:
        edit(script, "unreleased = unreleased + 1", "")


@plant
def unreleased_holders_forgotten_by_the_next_one() -> None:
    for script in ACQUIRING:
        edit(script, "redis.call('HSET', KEYS[2], 'suspect', unreleased)", "")


@plant
def leases_released_as_clean_at_the_end() -> None:
    real = lease_keeper.LeaseKeeper._release_lease

    async def release(self: Any, lock: Any, *, clean: bool) -> None:
        await real(self, lock, clean=True)

    change(lease_keeper.LeaseKeeper, "_release_lease", release)


@plant
def lease_lasts_as_long_as_the_old_clock_says() -> None:
    for script in ACQUIRING:
        edit(script, "left > 10 * ttl", "false")


@plant
def offset_told_on_the_word_of_a_dead_holder() -> None:
    async def lacks_bytes(self: Any, upload: Any) -> bool:
        return False

    change(recovery.Recovery, "lacks_bytes", lacks_bytes)


# Repetition of calls whose answer was lost.


@plant
def calls_made_after_their_sender_gave_up() -> None:
    change(scripts, "DEADLINE", "table.remove(ARGV)\n")


@plant
def lost_answer_to_a_creation_taken_for_a_failure() -> None:
    edit(scripts.CREATE_INDEXED, "redis.call('HGET', KEYS[1], 'change') == change_id and 2 or 0", "0")


@plant
def late_attempt_of_a_creation_brings_a_removed_upload_back() -> None:
    edit(scripts.CREATE_INDEXED, "if redis.call('GET', KEYS[2]) == created_at then return 2 end", "")


@plant
def lost_answer_to_a_change_taken_for_a_failure() -> None:
    for script in CHANGING:
        edit(script, "if change_id == arguments.change_id then return 2 end", "")


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
        if script.has_deadline:
            words = (*words, int((self.clock.earliest() + 1) * 1e6))
        return await self._call(script.name, lambda deadline: self._send(words, deadline), timeout)

    sent: set[str] = set()
    change(connection.RedisConnection, "run", run)


@plant
def clock_of_the_host_instead_of_that_of_redis() -> None:
    def earliest(self: Any) -> float:  # which alone follows Redis, or nothing would be done
        return real(self) - self._error  # type: ignore[no-any-return]

    real = clock.RemoteClock.wall
    change(clock.RemoteClock, "earliest", earliest)
    change(clock.RemoteClock, "wall", lambda self: self._clock.wall())


# Indexes and events.


@plant
def events_stored_after_their_change() -> None:
    """A process that dies between both calls loses the events."""

    async def change_first(
        self: Any, script: Any, keys: Any, arguments: Any, events: Any, timeout: float = connection.RETRY_DEADLINE
    ) -> Any:
        result = await self._redis.run(script, keys, arguments, timeout)
        if result == 1:
            await real(self, NO_CHANGE, [], [], events, timeout)
        return result

    real = outbox.RedisOutbox.change
    change(outbox.RedisOutbox, "change", change_first)


@plant
def lost_index_of_events_not_restored() -> None:
    change(outbox_index.OutboxIndex, "_compare", soon)


@plant
def removed_uploads_count_for_their_owner() -> None:
    edit(scripts.DELETE, "if record[3] and KEYS[3] then tally(KEYS[1], KEYS[3], true) end", "")
    for script in CHANGING:
        edit(script, "local ended = status == 'terminated' or status == 'expired'", "local ended = false")


@plant
def index_entry_after_the_record() -> None:
    async def create(self: Any, upload: Any, *, durable: bool = False, events: Any = ()) -> None:
        arguments = ["0", "0", *(word for pair in encode_upload(upload).items() for word in pair)]
        keys = [self._keys.record(upload.id), self._keys.removed_creation(upload.id)]
        if not await self._redis.run(scripts.CREATE, keys, arguments):
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
    change(due_index.DueIndex, "moved", soon)


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
    change(shared, "_is_needed", lambda *_: False)


@plant
def segments_removed_without_the_lock() -> None:
    async def remove(self: Any, orphan: Any, records: Any) -> bool:
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
