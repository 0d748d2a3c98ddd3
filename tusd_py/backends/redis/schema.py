"""Schema of the data in Redis: every key, and the fields of the hashes.

Keys of one upload, all in one hash slot (`{<id>}` is the part of the key that is hashed):

    {prefix}{<id>}:record   hash: the fields of `Upload` as `core.upload_codec` writes them, and those of `LockField`
    {prefix}{<id>}:parts    hash: part number -> JSON array of end, ETag and checksum
    {prefix}{<id>}:removed  string: creation time of a record that was removed soon after it; expires
    {prefix}{<id>}:history  list: entries of the history, for administrators; expires (`queries.py`)
    {prefix}{<id>}:events   hash: the stored events of the upload, which outlive its record (`outbox.py`)
    {prefix}{<id>}:finals   set: ids of final uploads that wait for this partial upload; expires
    {prefix}{<id>}:lock     string "lease id:token:unreleased holders"; expires with the lease
    {prefix}{<id>}:release  string: id of the lease that is asked to end; expires
    {prefix}{<id>}:commit   string: id of the lease that is asked to commit; expires

Keys of all uploads below one prefix:

    {prefix}due             sorted set: upload id by the time when the sweeper has to look at it (`due_index.py`)
    {prefix}ids             sorted set: upload ids, all with the score 0 (`id_index.py`)
    {prefix}created         sorted set: upload id by creation time (`created_index.py`)
    {prefix}created:<digest>  the same of the uploads of one owner
    {prefix}open            the same of those that are not complete
    {prefix}usage           hash: what each owner has, and the generation of the count (`usage.py`)
    {prefix}metadata        hash: texts that are kept beside the records
    {prefix}{rate-<digest>}:rate  string: microseconds since the epoch at which a rate is used up; expires then
    {prefix}{:outbox}:...   the indexes of the stored events, in one hash slot (`outbox_index.py`)
    {prefix}wishes          channel: "release <id> <lease id>", "commit <id> <lease id>", "released <id> -",
                            "watch <process> <JSON>", "hello <process>", "locks <process> <name>" (`feed.py`)
    {prefix}changes:<process>  channel: changes of uploads that the process wants to hear of
    {prefix}changes:<process>:<name>  channel: the locks of other processes, which the process has asked for

Names in Redis are those of earlier versions, whose servers may share it: code uses the names of `LockField`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class LockField(StrEnum):
    """Fields of a record that the scripts keep beside those of `Upload`; the value is the name in Redis."""

    CHANGE_ID = "change"  # identifies the last change, so that a repeated attempt finds its own
    LATEST_TOKEN = "fence"  # the newest fencing token that was given out
    LAST_RELEASED_TOKEN = "released"  # the token of the last holder that released the lease itself
    REPLICATION_ID = "replid"  # of the Redis that gave out the latest token; empty if it is not known
    UNRELEASED_HOLDERS = "suspect"  # number of earlier holders that may still write
    COUNTED = "counted"  # the share of the upload in the usage of its owner


@dataclass(frozen=True, slots=True)
class SinkKeys:
    """The names of the keys of one sink, each a sorted set with members "<event id> <upload id>".

    Attributes:
        by_time: the deliveries that wait, by the time when they are due (`outbox_index.py`).
        waiting: the same deliveries, in the order of the event ids.
        dead: the dead letters, in the order of the event ids.
    """

    by_time: str
    waiting: str
    dead: str

    @property
    def all(self) -> list[str]:
        """All keys, in the order in which scripts take them."""
        return [self.by_time, self.waiting, self.dead]


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the keys below one prefix."""

    prefix: str

    def record(self, upload_id: str) -> str:
        """Return the key of the record of an upload."""
        return f"{self.prefix}{{{upload_id}}}:record"

    def parts(self, upload_id: str) -> str:
        """Return the key of the part list of an upload."""
        return f"{self.prefix}{{{upload_id}}}:parts"

    def removed_creation(self, upload_id: str) -> str:
        """Return the key of the creation time of a record that was removed soon after its creation."""
        return f"{self.prefix}{{{upload_id}}}:removed"

    def history(self, upload_id: str) -> str:
        """Return the key of the history of an upload."""
        return f"{self.prefix}{{{upload_id}}}:history"

    def events(self, upload_id: str) -> str:
        """Return the key of the stored events of an upload."""
        return f"{self.prefix}{{{upload_id}}}:events"

    def waiting_finals(self, upload_id: str) -> str:
        """Return the key of the final uploads that wait for a partial upload."""
        return f"{self.prefix}{{{upload_id}}}:finals"

    def lock(self, name: str) -> str:
        """Return the key of the lease of an upload, or of a named lock."""
        return f"{self.prefix}{{{name}}}:lock"

    def release_request(self, name: str) -> str:
        """Return the key of a request to the holder of a lease to release it."""
        return f"{self.prefix}{{{name}}}:release"

    def commit_request(self, name: str) -> str:
        """Return the key of a request to the holder of a lease to commit."""
        return f"{self.prefix}{{{name}}}:commit"

    def rate(self, name: str) -> str:
        """Return the key of a rate, whose name may be a text of any client."""
        return f"{self.prefix}{{rate-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}}}:rate"

    @property
    def due(self) -> str:
        """The index of due uploads."""
        return f"{self.prefix}due"

    @property
    def ids(self) -> str:
        """The index of all upload ids."""
        return f"{self.prefix}ids"

    @property
    def created(self) -> str:
        """The index of all uploads by their creation."""
        return f"{self.prefix}created"

    def created_by(self, owner: str) -> str:
        """Return the index of the uploads of an owner by their creation."""
        return f"{self.prefix}created:{hashlib.sha256(owner.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"

    @property
    def unfinished(self) -> str:
        """The index of the uploads that are not complete, by their creation."""
        return f"{self.prefix}open"

    @property
    def usage(self) -> str:
        """The usage of each owner."""
        return f"{self.prefix}usage"

    @property
    def metadata(self) -> str:
        """Texts that are kept beside the records."""
        return f"{self.prefix}metadata"

    @property
    def sinks(self) -> str:
        """The names of the sinks that have had events."""
        return f"{self.prefix}{{:outbox}}:sinks"

    def of_sink(self, sink: str) -> SinkKeys:
        """Return the keys of the indexes of a sink."""
        place = f"{self.prefix}{{:outbox}}:{hashlib.sha256(sink.encode()).hexdigest()[:16]}"
        return SinkKeys(f"{place}:due", f"{place}:waiting", f"{place}:dead")

    @property
    def changes(self) -> str:
        """The beginning of the names of the channels of changes."""
        return f"{self.prefix}changes:"

    @property
    def channel(self) -> str:
        """The channel of the messages between lockers."""
        return f"{self.prefix}wishes"

    @property
    def all_records(self) -> str:
        """The pattern of SCAN that matches the keys of all records, and nothing else."""
        return f"{self._escaped_prefix}{{*}}:record"

    @property
    def all_events(self) -> str:
        """The pattern of SCAN that matches the keys of the events of all uploads, and nothing else."""
        return f"{self._escaped_prefix}{{*}}:events"

    @property
    def _escaped_prefix(self) -> str:
        return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in self.prefix)

    def upload_id(self, key: str) -> str:
        """Return the id of the upload whose record or events have this key."""
        return key.removeprefix(f"{self.prefix}{{").rpartition("}:")[0]
