"""Options of the operator for uploads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from tusd_py.contracts.storage import SizeLimits
from tusd_py.core.durability import Durability
from tusd_py.core.metadata import MetadataLimits
from tusd_py.core.outbox import EventType

SizeKind: TypeAlias = Literal["declared", "deferred", "final"]


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """The name of a sink, and the kinds of events that it gets."""

    name: str
    kinds: frozenset[EventType] = frozenset(EventType)


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """The options of scans for malware.

    Attributes:
        fails_open: whether uploads that cannot be scanned are taken.
        max_size: bytes of the largest upload that is scanned; None for any.
        timeout: seconds for one scan; zero for any.
    """

    fails_open: bool = False
    max_size: int | None = None
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """The options of uploads. Sizes are bytes, times are seconds; a time of zero disables that limit."""

    max_size: int | None = None
    quota_bytes: int | None = None  # of all uploads of an owner together
    quota_uploads: int | None = None  # unfinished uploads of an owner
    expires_after: float = 0
    durability: Durability = Durability.COMPLETE
    lock_timeout: float = 10
    commit_bytes: int = 16 << 20  # a running append commits at least this often
    commit_interval: float = 1
    partial_retention: float = 3600  # concatenated partial uploads live this long
    retention: float = 0  # finished uploads are removed so long after their completion; 0: never
    gone_for: float = 0  # ended uploads are remembered (and answered as gone) this long
    allowed_types: tuple[str, ...] = ()  # media types that uploads may have, see `parse_patterns`; empty: all
    scan: ScanOptions = field(default_factory=ScanOptions)
    reserve: int = 0  # no uploads are created while the storage has less free space than this
    progress_interval: float = 1.0  # least time between two calls of the hook `post-receive` for an upload
    concatenation_unfinished: bool = False
    concatenation_parts: int = 1000  # maximum number of partial uploads that a final one may name
    concatenation_repeats: int = 10  # maximum number of times that it may name the same one
    storage: SizeLimits = field(default_factory=SizeLimits)
    sinks: tuple[SinkOptions, ...] = ()  # of stored events
    metadata_limits: MetadataLimits = field(default_factory=MetadataLimits)  # of the metadata that a hook sets

    def largest(self, kind: SizeKind = "declared") -> int | None:
        """Return the largest size of an upload of this kind; None if it is not limited."""
        limits = [limit for limit in (self.max_size, getattr(self.storage, kind)) if limit is not None]
        return min(limits, default=None)

    def limited_to(self, max_size: int | None) -> UploadOptions:
        """Return the options for an upload whose limit, unless it is None, may be smaller than that of all uploads."""
        if max_size is None or (self.max_size is not None and self.max_size <= max_size):
            return self
        return replace(self, max_size=max_size)

    def sinks_by_event(self) -> Mapping[EventType, tuple[str, ...]]:
        """Return the names of the sinks for each kind of event that any sink gets."""
        found = {kind: tuple(sink.name for sink in self.sinks if kind in sink.kinds) for kind in EventType}
        return {kind: names for kind, names in found.items() if names}
