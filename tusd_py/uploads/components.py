"""The components of an upload service, and their optional abilities, which are looked up once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from tusd_py.contracts.health import ReportsHealth
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.outbox import StateStoreWithOutbox, SupportsOutbox
from tusd_py.contracts.scanner import Scanner
from tusd_py.contracts.state import ReadsAtOnce, StateStore, SupportsQuotas, UpdatesInThreads
from tusd_py.contracts.storage import (
    DescribesPlaces,
    MeasuresFreeSpace,
    RecognisesFinished,
    Storage,
    StoresInThreads,
    SupportsCompletionRecords,
    SupportsConcatenation,
    SupportsDownloadRedirect,
    SupportsFilePath,
    SupportsFileSending,
    SupportsIdentity,
    SupportsLocations,
    SupportsSizeLimits,
    SupportsWholeFiles,
    SyncsAll,
    TakesPlaces,
)
from tusd_py.core.clock import SteadyClock
from tusd_py.core.durability import Durability
from tusd_py.events.bus import EventBus
from tusd_py.transfer.budget import ByteBudget
from tusd_py.uploads.options import UploadOptions


class ThreadPair(NamedTuple):
    """A state store and a storage that can both work in the thread that stores the bytes."""

    state: UpdatesInThreads
    storage: StoresInThreads


@dataclass(frozen=True, slots=True)
class Components:
    """All objects that the modules of the domain share; created by `of`."""

    state: StateStore
    locker: Locker
    storage: Storage
    events: EventBus
    budget: ByteBudget
    options: UploadOptions
    clock: SteadyClock
    # Abilities of the state store and the storage; None where they lack one.
    reads_at_once: ReadsAtOnce | None
    in_threads: ThreadPair | None
    stores_in_threads: StoresInThreads | None
    outbox: StateStoreWithOutbox | None
    usage: SupportsQuotas | None
    places: DescribesPlaces | None
    chosen_places: TakesPlaces | None
    completion_records: SupportsCompletionRecords | None
    finished_uploads: RecognisesFinished | None
    concatenation: SupportsConcatenation | None
    redirects: SupportsDownloadRedirect | None
    files: SupportsFilePath | None
    free_space: MeasuresFreeSpace | None
    file_sending: SupportsFileSending | None
    whole_files: SupportsWholeFiles | None
    locations: SupportsLocations | None
    identity: SupportsIdentity | None
    whole_syncs: SyncsAll | None
    reporting_health: tuple[ReportsHealth, ...]
    scanner: Scanner | None = None
    instrumentation: Instrumentation = NO_INSTRUMENTATION

    @classmethod
    def of(
        cls,
        state: StateStore,
        locker: Locker,
        storage: Storage,
        events: EventBus,
        budget: ByteBudget,
        options: UploadOptions,
        clock: SteadyClock,
        scanner: Scanner | None = None,
        instrumentation: Instrumentation = NO_INSTRUMENTATION,
    ) -> Components:
        """Look up the abilities of the components, which would take 10 us in every request."""
        if isinstance(storage, SupportsSizeLimits):
            options = replace(options, storage=storage.size_limits)
        return cls(
            state=state,
            locker=locker,
            storage=storage,
            events=events,
            budget=budget,
            options=options,
            clock=clock,
            reads_at_once=state if isinstance(state, ReadsAtOnce) else None,
            in_threads=_thread_pair(state, storage),
            stores_in_threads=storage if isinstance(storage, StoresInThreads) else None,
            outbox=cast(StateStoreWithOutbox, state) if isinstance(state, SupportsOutbox) else None,
            usage=state if isinstance(state, SupportsQuotas) else None,
            places=storage if isinstance(storage, DescribesPlaces) else None,
            chosen_places=storage if isinstance(storage, TakesPlaces) else None,
            completion_records=storage if isinstance(storage, SupportsCompletionRecords) else None,
            finished_uploads=storage if isinstance(storage, RecognisesFinished) else None,
            concatenation=storage if isinstance(storage, SupportsConcatenation) else None,
            redirects=storage if isinstance(storage, SupportsDownloadRedirect) else None,
            files=storage if isinstance(storage, SupportsFilePath) else None,
            free_space=storage if isinstance(storage, MeasuresFreeSpace) else None,
            file_sending=storage if isinstance(storage, SupportsFileSending) else None,
            whole_files=storage if isinstance(storage, SupportsWholeFiles) else None,
            locations=storage if isinstance(storage, SupportsLocations) else None,
            identity=storage if isinstance(storage, SupportsIdentity) else None,
            whole_syncs=storage if isinstance(storage, SyncsAll) else None,
            reporting_health=tuple(one for one in (state, storage) if isinstance(one, ReportsHealth)),
            scanner=scanner,
            instrumentation=instrumentation,
        )

    @property
    def syncs_completion(self) -> bool:
        """Whether a complete upload is synced before its client is told."""
        return self.options.durability is not Durability.NEVER


def _thread_pair(state: StateStore, storage: Storage) -> ThreadPair | None:
    if isinstance(state, UpdatesInThreads) and isinstance(storage, StoresInThreads) and storage.stores_in_threads:
        return ThreadPair(state, storage)
    return None
