"""The life of a service: its components opened and closed in the order in which they guard each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.composition import NO_COMPONENTS, choose_state_and_locker
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.outbox import Outbox
from tusd_py.contracts.state import StateStore, SupportsQuotas
from tusd_py.contracts.storage import Storage, SupportsConcatenation
from tusd_py.core.durability import Durability
from tusd_py.core.errors import StateUnavailable, StorageUnavailable, UploadError
from tusd_py.places import bucket, errors_at, make_private_folder, redis, upload_directory
from tusd_py.plugins import check_writer, is_own, one_line
from tusd_py.settings import Settings
from tusd_py.sinks import outbox_of
from tusd_py.uploads.identity import IdentityCheck
from tusd_py.uploads.options import UploadOptions
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.timekeeping import resume_time

logger = logging.getLogger("tusd_py")

T = TypeVar("T")

CLOSE_TIMEOUT = 30.0  # seconds that closing may take
CLOSE_MARGIN = 1.0  # seconds after its timeout at which a storage that still closes is left alone


async def open_service(service: UploadService, settings: Settings, *, adopt: bool = False) -> None:
    """Open the storage, the locker and the state store, and make sure that they belong together.

    Args:
        service: the service whose components are opened.
        settings: name the places of the components in messages.
        adopt: join the records with this storage, although they name another one.

    Raises:
        StorageUnavailable: the storage cannot be used; the message is a sentence that names it. Nothing stays open.
        StateUnavailable: the same of the locker or the state store.
    """
    storage, state = _description(service.storage, settings), _description(service.state, settings)
    async with contextlib.AsyncExitStack() as undo:  # closes the opened components if a later step fails
        undo.push_async_callback(service.storage.close)
        with errors_at(storage), errors_of_other_package(service.storage, StorageUnavailable):
            await service.storage.open()
            if not is_own(service.storage):
                await check_writer(service.storage)
        if any(
            isinstance(component, DiskStorage | SQLiteState | LocalLocker)
            for component in (service.storage, service.state, service.locker)
        ):
            await asyncio.to_thread(make_private_folder, settings)
        locker = _description(service.locker, settings)
        with errors_at(locker), errors_of_other_package(service.locker, StateUnavailable):
            undo.push_async_callback(service.locker.close)
            await service.locker.open()
        with errors_at(state):
            undo.push_async_callback(service.state.close)
            await _open_state(service)
        with errors_at(storage, records=state):
            await _settle_identity(service, adopt=adopt)
        undo.push_async_callback(service.power_cuts.leave, CLOSE_MARGIN)
        with errors_at(state):
            await service.power_cuts.settle(syncs=settings.durability is not Durability.NEVER)
        if service.hooks is not None:
            await service.hooks.open()
        undo.pop_all()


async def _open_state(service: UploadService) -> None:
    """Open the state store, and prepare what no request should wait for."""
    with errors_of_other_package(service.state, StateUnavailable):
        await service.state.open()
    if _has_quotas(service.options) and isinstance(service.state, SupportsQuotas):
        await service.state.usage_of("")  # counts the records
    await resume_time(service.state, service.clock)


async def _settle_identity(service: UploadService, *, adopt: bool) -> None:
    """Make sure that the records and the storage belong together."""
    records_inside = isinstance(service.storage, DiskStorage) and isinstance(service.state, SQLiteState)
    identity = IdentityCheck(service.state, service.storage)
    if adopt:
        await identity.adopt()
    await identity.settle(records_inside=records_inside)


def _has_quotas(options: UploadOptions) -> bool:
    return options.quota_bytes is not None or options.quota_uploads is not None


@contextlib.contextmanager
def errors_of_other_package(component: object, kind: type[StorageUnavailable | StateUnavailable]) -> Iterator[None]:
    """Convert unexpected errors of a component that is not part of this package to one of `kind`, in one line.

    A defect of a component of this package stays the error that it is.
    """
    try:
        yield
    except (UploadError, OSError):
        raise
    except Exception as error:  # code of another package: its mistakes are reported as such, by name
        if is_own(component):
            raise
        logger.debug("the error of %s", type(component).__name__, exc_info=True)
        raise kind(one_line(error)) from error


def _description(component: Storage | StateStore | Locker, settings: Settings) -> str:
    """Name a component and its place, for messages to an operator."""
    if isinstance(component, SQLiteState | LocalLocker | DiskStorage):
        return upload_directory(settings)
    module = type(component).__module__
    if module.startswith("tusd_py.backends.s3"):
        return bucket(settings)
    if module.startswith("tusd_py.backends.redis"):
        return redis(settings)
    return f"{type(component).__name__} of {module.partition('.')[0]}"


@contextlib.asynccontextmanager
async def opened(service: UploadService, settings: Settings, *, adopt: bool = False) -> AsyncIterator[UploadService]:
    """Open every component of a service for as long as the context lasts; raises as `open_service` does."""
    await open_service(service, settings, adopt=adopt)
    try:
        yield service
    finally:
        await close_service(service)


async def close_service(service: UploadService, timeout: float = CLOSE_TIMEOUT) -> bool:
    """Wait for the end of the work under way, and close the storage, the locker and the state store.

    Returns False if a step of the storage has not ended after `timeout` seconds, or `CLOSE_MARGIN` later if the storage
    does not keep to its timeout. The locker and the state store then stay open, which protects the bytes that the step
    may still write: call this again until it succeeds, or end the process.

    Invariant: no lock is released before the last step of the storage has ended.
    """
    deadline = time.monotonic() + timeout
    service.interrupt_hooks()
    if isinstance(service.storage, SupportsConcatenation):
        service.storage.interrupt()
    try:
        async with asyncio.timeout(timeout):
            await service.close()
        remaining = max(0.0, deadline - time.monotonic())
        async with asyncio.timeout(remaining + CLOSE_MARGIN):
            closed = await _logging_errors(service.storage, service.storage.close(remaining))
    except TimeoutError:
        return False
    if closed is False:
        return False
    await service.power_cuts.leave(max(deadline - time.monotonic(), CLOSE_MARGIN))
    if service.hooks is not None:
        await service.hooks.close()
    await _logging_errors(service.locker, service.locker.close())
    await _logging_errors(service.state, service.state.close())
    return True


async def _logging_errors(component: Storage | StateStore | Locker, closing: Awaitable[T]) -> T | None:
    """Close a component; log its error, and return None then: the other components are closed all the same."""
    try:
        return await closing
    except TimeoutError:
        raise
    except Exception as error:  # of any component: at a shutdown nothing else is left to be done about it
        name = type(component).__name__
        logger.error("%s could not be closed: %s", name, one_line(error), exc_info=is_own(component))
        return None


@contextlib.asynccontextmanager
async def opened_outbox(settings: Settings) -> AsyncIterator[Outbox]:
    """Open the state store that the settings choose for as long as the context lasts; yield the events in it.

    Raises:
        InvalidSettings: the state store keeps no events.
        StateUnavailable: it cannot be opened; the message names it.
    """
    state, _ = choose_state_and_locker(settings, NO_INSTRUMENTATION, None, NO_COMPONENTS)
    outbox = outbox_of(state)
    try:
        with errors_at(_description(state, settings)), errors_of_other_package(state, StateUnavailable):
            await state.open()
        yield outbox
    finally:
        await state.close()


@contextlib.asynccontextmanager
async def opened_records(settings: Settings) -> AsyncIterator[tuple[StateStore, Locker]]:
    """Open the records and their locks, without the bytes, for as long as the context lasts.

    Raises:
        InvalidSettings: a component of another package cannot be made.
        StateUnavailable: records or locks cannot be opened; the message names them.
    """
    state, locker = choose_state_and_locker(settings, NO_INSTRUMENTATION, None, NO_COMPONENTS)
    async with contextlib.AsyncExitStack() as undo:
        for component in (state, locker):
            undo.push_async_callback(component.close)
            with errors_at(_description(component, settings)), errors_of_other_package(component, StateUnavailable):
                await component.open()
        yield state, locker
