"""Schema of the data in Redis: every key, and the fields of the hashes.

Keys of one upload, all in one hash slot (`{<id>}` is the part of the key that is hashed):

    {prefix}{<id>}:record   hash: the fields of `Upload` as `core.upload_codec` writes them, and those of `LockField`
    {prefix}{<id>}:parts    hash: part number -> JSON array of end, ETag and checksum
    {prefix}{<id>}:finals   set: ids of final uploads that wait for this partial upload; expires
    {prefix}{<id>}:lock     string "lease id:token:unreleased holders"; expires with the lease
    {prefix}{<id>}:release  string: id of the lease that is asked to end; expires
    {prefix}{<id>}:commit   string: id of the lease that is asked to commit; expires

Keys of all uploads below one prefix:

    {prefix}due             sorted set: upload id by the time when the sweeper has to look at it (`due_index.py`)
    {prefix}ids             sorted set: upload ids, all with the score 0 (`id_index.py`)
    {prefix}metadata        hash: texts that are kept beside the records
    {prefix}wishes          channel: "release <id> <lease id>", "commit <id> <lease id>", "released <id> -"

Names in Redis are those of earlier versions, whose servers may share it: code uses the names of `LockField`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LockField(StrEnum):
    """Fields of a record that the scripts keep beside those of `Upload`; the value is the name in Redis."""

    CHANGE_ID = "change"  # identifies the last change, so that a repeated attempt finds its own
    LATEST_TOKEN = "fence"  # the newest fencing token that was given out
    LAST_RELEASED_TOKEN = "released"  # the token of the last holder that released the lease itself
    UNRELEASED_HOLDERS = "suspect"  # number of earlier holders that may still write


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

    @property
    def due(self) -> str:
        """The index of due uploads."""
        return f"{self.prefix}due"

    @property
    def ids(self) -> str:
        """The index of all upload ids."""
        return f"{self.prefix}ids"

    @property
    def metadata(self) -> str:
        """Texts that are kept beside the records."""
        return f"{self.prefix}metadata"

    @property
    def channel(self) -> str:
        """The channel of the messages between lockers."""
        return f"{self.prefix}wishes"

    @property
    def all_records(self) -> str:
        """The pattern of SCAN that matches the keys of all records, and nothing else."""
        escaped = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in self.prefix)
        return f"{escaped}{{*}}:record"

    def upload_id(self, record_key: str) -> str:
        """Return the id of the upload whose record has this key."""
        return record_key.removeprefix(f"{self.prefix}{{").removesuffix("}:record")
