"""The components of a service: built from the settings or given by the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tusd_py.asyncutil.shared_rates import rates_of_host
from tusd_py.auth.make import make_authenticator, make_signing_keys
from tusd_py.auth.secret_files import SecretFile
from tusd_py.auth.signing_keys import SigningKeys
from tusd_py.auth.token_authenticator import TokenAuthenticator
from tusd_py.backends.clamd.scanner import ClamdScanner
from tusd_py.backends.disk.files import Modes
from tusd_py.backends.disk.shared import SharedDiskStorage
from tusd_py.backends.disk.storage import DiskStorage
from tusd_py.backends.local_feed.feed import LocalFeed
from tusd_py.backends.local_locks.locker import LocalLocker
from tusd_py.backends.sqlite.state import SQLiteState
from tusd_py.contracts.auth import Authenticator, NamesSecretHeaders
from tusd_py.contracts.change_feed import ChangeFeed
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore, SupportsQuotas
from tusd_py.contracts.storage import Storage
from tusd_py.core.clock import Clock, SteadyClock
from tusd_py.core.metadata import MetadataLimits
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.events.bus import EventBus
from tusd_py.hooks.make import Hooks
from tusd_py.http.access import AccessControl
from tusd_py.http.app import UploadApp
from tusd_py.http.cors import CrossOrigin
from tusd_py.http.offload import DownloadOffload
from tusd_py.http.progress.endpoint import ProgressEndpoint
from tusd_py.http.rates import rates_of
from tusd_py.http.signed_access import CapabilitySigner, SignedAccess
from tusd_py.http.tus.adapter import TusProtocol
from tusd_py.http.tus.downloads import DownloadHandler
from tusd_py.http.tus.features import Features
from tusd_py.http.tus.handlers import TusHandlers
from tusd_py.http.urls import UrlBuilder
from tusd_py.plugins import LOCKERS, STATE_STORES, STORAGES, make_component
from tusd_py.progress.hub import ProgressHub
from tusd_py.settings import InvalidSettings, Settings, default_of
from tusd_py.sinks import build_hooks, outbox_of, sink_options
from tusd_py.transfer.budget import BufferPool, ByteBudget
from tusd_py.uploads.components import Components
from tusd_py.uploads.options import ScanOptions, UploadOptions
from tusd_py.uploads.service import UploadService

RECORDS = "uploads.sqlite3"  # in the private folder
LOCKS = "locks"  # beginning of the names of the lock files, in the private folder
FEED = "feed"  # folder of the sockets of processes, in the private folder


@dataclass(frozen=True, slots=True)
class GivenComponents:
    """Components that an application gives, in place of those that the settings choose."""

    storage: Storage | None = None
    state: StateStore | None = None
    locker: Locker | None = None


NO_COMPONENTS = GivenComponents()


def refuse_two_choices(settings: Settings, given: GivenComponents) -> None:
    """Raise `InvalidSettings` if a setting chooses what is given as an object."""
    choices = (
        ("storage", given.storage, "storage_plugin", settings.storage_plugin),
        ("storage", given.storage, "s3_bucket", settings.s3.bucket),
        ("state", given.state, "state_plugin", settings.state_plugin),
        ("locker", given.locker, "locker_plugin", settings.locker_plugin),
        ("state with locker", given.state and given.locker, "redis_url", settings.redis.url),
    )
    for argument, component, setting, value in choices:
        if component is not None and value:
            raise InvalidSettings(f"{argument} takes the place of {setting}: give one of them")


def build_service(
    settings: Settings,
    events: EventBus,
    instrumentation: Instrumentation = NO_INSTRUMENTATION,
    clock: Clock | None = None,
    given: GivenComponents = NO_COMPONENTS,
    hooks: Hooks | None = None,
) -> UploadService:
    """Build the service, without I/O.

    Args:
        settings: choose the components that are not given.
        events: the bus that the service publishes on.
        instrumentation: observes the service, and the components that the settings choose.
        clock: the clock of the state store, in place of the system's; for tests.
        given: components that take the place of those that the settings choose.
        hooks: the hooks of the application; None for those that the settings choose.

    Raises:
        InvalidSettings: a component of another package cannot be made, or the records cannot keep events or quotas.
        StorageUnavailable: the package of S3 is not installed.
        StateUnavailable: the package of Redis is not installed.
    """
    state, locker = choose_state_and_locker(settings, instrumentation, clock, given)
    hooks = hooks or build_hooks(settings)
    if settings.events.to or hooks.events():
        outbox_of(state, "events_to needs" if settings.events.to else "hooks need")
    _refuse_unsupported_quotas(settings, state)
    components = Components.of(
        state=state,
        locker=locker,
        storage=given.storage or build_storage(settings, instrumentation),
        events=events,
        budget=ByteBudget(settings.buffer_size * 2 // 3),  # the rest is for buffers that are being filled
        options=_options(settings, hooks),
        clock=SteadyClock(
            state.clock, hold=max(settings.expires_after, settings.retention, settings.partial_retention)
        ),
        scanner=ClamdScanner(settings.clamd) if settings.clamd else None,
        instrumentation=instrumentation,
    )
    if components.free_space is not None:
        instrumentation.watch_free_space(components.free_space.free_space)
    if settings.reserve_disk and components.free_space is None:
        raise InvalidSettings("reserve_disk: the chosen storage has no free space that could be measured")
    return UploadService(components, hooks.blocking(instrumentation))


def _refuse_unsupported_quotas(settings: Settings, state: StateStore) -> None:
    """Raise `InvalidSettings` for quotas that the state store cannot enforce."""
    if settings.quota_bytes is None and settings.quota_uploads is None:
        return
    name = "quota_uploads" if settings.quota_bytes is None else "quota_bytes"
    if not isinstance(state, SupportsQuotas):
        kind = type(state).__name__
        raise InvalidSettings(f"{name} needs records that count per owner: SQLite and Redis do, {kind} does not")
    if settings.redis.is_cluster:
        raise InvalidSettings(f"{name} needs one Redis, not a cluster")


def choose_state_and_locker(
    settings: Settings, instrumentation: Instrumentation, clock: Clock | None, given: GivenComponents
) -> tuple[StateStore, Locker]:
    """Return the state store and the locker: those given, else of the plugins, else those that the settings choose."""
    state, locker = given.state, given.locker
    if state is None and settings.state_plugin:
        state = make_component(STATE_STORES, settings.state_plugin, settings)
    if locker is None and settings.locker_plugin:
        locker = make_component(LOCKERS, settings.locker_plugin, settings)
    if state is None or locker is None:
        chosen_state, chosen_locker = build_state_and_locker(settings, instrumentation, clock)
        state, locker = state or chosen_state, locker or chosen_locker
    return state, locker


def _options(settings: Settings, hooks: Hooks) -> UploadOptions:
    return UploadOptions(
        max_size=_max_size(settings),
        quota_bytes=settings.quota_bytes,
        quota_uploads=settings.quota_uploads,
        expires_after=settings.expires_after,
        durability=settings.durability,
        lock_timeout=settings.lock_timeout,
        partial_retention=settings.partial_retention,
        retention=settings.retention,
        allowed_types=settings.allowed_types,
        scan=ScanOptions(settings.scan_fail == "open", settings.scan_max_size, settings.scan_timeout),
        reserve=settings.reserve_disk,
        gone_for=settings.gone_for,
        concatenation_unfinished=settings.concatenation_unfinished,
        concatenation_parts=settings.concatenation_parts,
        concatenation_repeats=settings.concatenation_repeats,
        progress_interval=settings.hooks.progress_interval,
        sinks=sink_options(settings, hooks),
        metadata_limits=MetadataLimits(settings.metadata_size, settings.metadata_pairs),
    )


def _max_size(settings: Settings) -> int | None:
    """Return the largest size of uploads: what cannot be scanned, but has to be, is refused before its first byte."""
    has_to_be_scanned = settings.clamd and settings.scan_fail == "closed"
    sizes = (settings.max_size, settings.scan_max_size if has_to_be_scanned else None)
    return min((size for size in sizes if size is not None), default=None)


def build_feed(settings: Settings, service: UploadService) -> ChangeFeed | None:
    """Build the feed that brings the changes of other processes; None if its components know no other process."""
    if isinstance(service.state, SQLiteState) and isinstance(service.locker, LocalLocker):
        return LocalFeed(settings.upload_dir / PRIVATE_FOLDER / FEED)
    if settings.redis.url is not None:
        from tusd_py.backends.redis.feed import RedisFeed  # Redis is an extra
        from tusd_py.backends.redis.locker import RedisLocker

        if isinstance(service.locker, RedisLocker):
            return RedisFeed(service.locker.connection, settings.redis.prefix, service.locker.messages)
    return None


def build_authenticator(settings: Settings, given: Authenticator | None = None) -> Authenticator | None:
    """Build what finds the senders of requests; None if everybody may do everything. Blocks: reads the files with keys.

    `given` is an authenticator of the application in place of that of the settings. Raises `InvalidSettings`.
    """
    cross_origin = CrossOrigin(settings.cors_origins, credentials=settings.cors_credentials)
    try:
        chosen = make_authenticator(settings.jwt, settings.api_tokens_file, settings.auth_cookie, cross_origin.allows)
    except ValueError as error:
        raise InvalidSettings(f"authentication: {error}") from error
    if given is None:
        # With keys for signed URLs alone, nobody has a token.
        return TokenAuthenticator(None, None) if chosen is None and settings.signing_key_file is not None else chosen
    if chosen is not None:
        raise InvalidSettings("authenticator takes the place of jwt_*, jwks_url and api_tokens_file: give one of them")
    if not isinstance(given, Authenticator):
        raise InvalidSettings("the given authenticator lacks the method authenticate")
    if isinstance(given, NamesSecretHeaders) and isinstance(given.secret_headers, str):
        raise InvalidSettings("secret_headers of the given authenticator is one text: give a collection of names")
    return given


def build_signing_keys(settings: Settings) -> SecretFile[SigningKeys] | None:
    """Read the keys of capabilities and signed URLs; None without them. Blocks. Raises `InvalidSettings`."""
    try:
        return make_signing_keys(settings.signing_key_file)
    except ValueError as error:
        raise InvalidSettings(f"authentication: {error}") from error


def build_application(
    settings: Settings,
    service: UploadService,
    events: EventBus,
    urls: UrlBuilder,
    authenticator: Authenticator | None = None,
    signing_keys: SecretFile[SigningKeys] | None = None,
    hub: ProgressHub | None = None,
) -> UploadApp:
    """Build the ASGI application of tus for a service.

    Without an authenticator everybody may do everything, without a hub nobody can follow uploads.
    """
    access, capabilities = None, None
    if authenticator is not None:
        known = authenticator.known if isinstance(authenticator, TokenAuthenticator) else None
        access = AccessControl(
            authenticator,
            service,
            public_downloads=settings.public_downloads,
            known=known,
            by_signature=None if signing_keys is None else SignedAccess(signing_keys, service),
        )
    if signing_keys is not None and settings.capability_urls:
        capabilities = CapabilitySigner(signing_keys, settings.capability_ttl)
    features = Features(
        creation_with_upload=not settings.disable_creation_with_upload,
        creation_defer_length=not settings.disable_creation_defer_length,
        expiration=settings.expires_after > 0,
        checksum=not settings.disable_checksum,
        termination=not settings.disable_termination,
        concatenation=not settings.disable_concatenation and service.can_concatenate,
        concatenation_unfinished=settings.concatenation_unfinished,
        download=not settings.disable_download,
    )
    limits = service.options.metadata_limits
    rates = rates_of(
        service.state, rates_of_host(), settings.rate_create, settings.rate_bytes, lambda: service.is_draining
    )
    downloads = DownloadHandler(service, _offload(settings))
    handlers = TusHandlers(service, features, urls, limits, downloads, capabilities, *rates)
    return UploadApp(
        TusProtocol(handlers, None if hub is None else ProgressEndpoint(hub, service)),
        events,
        urls,
        BufferPool(service.budget),
        CrossOrigin(settings.cors_origins, credentials=settings.cors_credentials),
        idle_timeout=settings.idle_timeout,
        min_rate=settings.min_rate,
        is_draining=lambda: service.is_draining,
        access=access,
    )


def _offload(settings: Settings) -> DownloadOffload | None:
    if settings.download_offload == "off":
        return None
    return DownloadOffload(settings.download_offload, settings.upload_dir, settings.download_offload_prefix)


def build_state_and_locker(
    settings: Settings, instrumentation: Instrumentation = NO_INSTRUMENTATION, clock: Clock | None = None
) -> tuple[StateStore, Locker]:
    """Build the state store and the locker that the settings choose: both on Redis, or SQLite and file locks."""
    if settings.redis.url is None:
        return build_state(settings, "sqlite", clock), LocalLocker(settings.upload_dir / PRIVATE_FOLDER / LOCKS)
    from tusd_py.backends.redis.connection import RedisConnection
    from tusd_py.backends.redis.locker import RedisLocker  # Redis is an extra
    from tusd_py.backends.redis.state import RedisState

    connection = RedisConnection(settings.redis.url, instrumentation, clock)
    return (
        RedisState(connection, settings.redis.prefix, timeout=settings.redis.lock_ttl),
        RedisLocker(connection, settings.redis.prefix, settings.redis.lock_ttl, instrumentation),
    )


def build_state(settings: Settings, kind: Literal["sqlite", "redis"], clock: Clock | None = None) -> StateStore:
    """Build the state store alone, of the kind that the caller names."""
    if kind == "sqlite":
        return SQLiteState(settings.upload_dir / PRIVATE_FOLDER / RECORDS, clock)
    return build_state_and_locker(settings, clock=clock)[0]


def build_storage(settings: Settings, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> Storage:
    """Build the storage that the settings choose; raises `StorageUnavailable` if its package is not installed."""
    if settings.storage_plugin:
        storage: Storage = make_component(STORAGES, settings.storage_plugin, settings)
        return storage
    if settings.s3.bucket:
        from tusd_py.backends.s3.storage import S3Storage  # S3 is an extra

        return S3Storage(settings.s3, instrumentation)
    completion_records = settings.upload_dir / PRIVATE_FOLDER / "finished"
    kind = DiskStorage if settings.redis.url is None else SharedDiskStorage
    modes = Modes(int(settings.file_mode, 8), int(settings.directory_mode, 8), exact=_modes_are_set(settings))
    return kind(settings.upload_dir, completion_records, date_folders=settings.date_folders, modes=modes)


def _modes_are_set(settings: Settings) -> bool:
    """Return whether the operator chose permissions, which are then set exactly, ignoring the umask."""
    return any(getattr(settings, name) != default_of(name) for name in ("file_mode", "directory_mode"))
