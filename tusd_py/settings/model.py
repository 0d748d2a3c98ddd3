"""The model of the settings: name, type, default and meaning of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tusd_py.auth.config import JwtConfig
from tusd_py.backends.redis.config import RedisConfig
from tusd_py.backends.s3.config import S3Config
from tusd_py.core.durability import Durability
from tusd_py.core.option_types import Names, Number, Rate, Seconds, Size
from tusd_py.hooks.config import HooksConfig
from tusd_py.outbox.config import EventsConfig
from tusd_py.settings.overrides import SettingsOverrides
from tusd_py.settings.parsing import (
    check_base_path,
    check_clamd,
    check_cookie_name,
    check_directory,
    check_directory_mode,
    check_file_mode,
    check_host,
    check_offload_prefix,
    check_origins,
    check_proxies,
    check_public_url,
    check_types,
    is_loopback,
)

ENV_PREFIX = "TUSD_PY_"
PAGE_FOLDERS = ("assets", "record", "admin")  # first segments of the paths of pages

GROUPS: Mapping[str, type[BaseModel]] = {
    "redis": RedisConfig,
    "s3": S3Config,
    "events": EventsConfig,
    "hooks": HooksConfig,
    "jwt": JwtConfig,
}


UNUSUAL_NAMES = {
    ("redis", "lock_ttl"): "lock_ttl",
    ("hooks", "python"): "hooks",
    ("hooks", "progress_interval"): "progress_hooks_interval",
    ("jwt", "jwks_url"): "jwks_url",
}


def flat_name(group: str, field: str) -> str:
    """Return the name of a setting of a group, such as `s3_prefix`, from which its flag and variable are made."""
    return UNUSUAL_NAMES.get((group, field), f"{group}_{field}")


class Settings(BaseSettings):
    """The settings of a server. Sizes are bytes, times are seconds; a time of zero switches that limit off.

    A setting that is not given comes from its variable (`TUSD_PY_MAX_SIZE` for `max_size`), else it has its default.
    docs/configuration.md describes each; the keyword arguments of `TusServer` have the same names. Those of
    Redis, S3, events, hooks and tokens are given by names that begin with `redis_`, `s3_`, `events_`, `hooks_` and
    `jwt_`, and read as `settings.redis` and so on, the configurations that these parts take.

    Example::

        settings = Settings(upload_dir=Path("uploads"), max_size=5 << 30, expires_after=7 * 86400)
        tus = TusServer(settings)
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Unpack[SettingsOverrides]) -> None:
        """Take the settings by their flat names, `s3_prefix` for `s3.prefix`; raises `ValueError`."""
        super().__init__(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments first, then variables in capitals; the source of pydantic would accept any case."""
        variables = InitSettingsSource(settings_cls, from_environment())
        return init_settings, variables

    host: Annotated[str, AfterValidator(check_host)] = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 or :: for every address"
    )
    port: Number = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: Number = Field(default=1, ge=1, le=256, description="number of server processes, 1 to 256")
    base_path: Annotated[str, AfterValidator(check_base_path)] = Field(
        default="/files", description="path of the creation URL"
    )
    pages: bool | None = Field(
        default=None,
        description="serve pages to upload, record and administrate; if not given, where only this machine can connect",
    )
    upload_dir: Annotated[Path, BeforeValidator(check_directory)] = Field(
        default=Path("data"), description="directory of the uploads and their records"
    )
    file_mode: Annotated[str, AfterValidator(check_file_mode)] = Field(
        default="0640", description="permissions of stored files, octal; 0660 for a group that may change them"
    )
    directory_mode: Annotated[str, AfterValidator(check_directory_mode)] = Field(
        default="0750",
        description="permissions of the upload directory, if the server makes it, and of folders in it, octal",
    )
    date_folders: bool = Field(
        default=False, description="store new uploads in folders by day of creation, as 2026/01/31"
    )
    redis: RedisConfig = RedisConfig()
    s3: S3Config = S3Config()
    storage_plugin: str = Field(
        default="", description="storage of another package, by its name in the entry points tusd_py.storages"
    )
    state_plugin: str = Field(
        default="", description="state store of another package, by its name in the entry points tusd_py.state_stores"
    )
    locker_plugin: str = Field(
        default="", description="locker of another package, by its name in the entry points tusd_py.lockers"
    )
    public_url: Annotated[str, AfterValidator(check_public_url)] | None = Field(
        default=None, description="URL under which clients reach this server, in front of the base path"
    )
    trusted_proxies: Annotated[Names, AfterValidator(check_proxies)] = Field(
        default=(),
        description="proxies whose Forwarded and X-Forwarded-* fields are believed: addresses, networks, or *",
    )
    cors_origins: Annotated[Names, AfterValidator(check_origins)] = Field(
        default=("*",), description="origins that browsers may upload from; * stands for any part; empty for none"
    )
    cors_credentials: bool = Field(
        default=False, description="let browsers send cookies from those origins, which have to be named"
    )
    max_size: Size | None = Field(
        default=None, description="largest upload that clients may create, in bytes; a larger one is answered 413"
    )
    quota_bytes: Size | None = Field(
        default=None, description="bytes that the uploads of one owner may have together; more are answered 413"
    )
    quota_uploads: Number | None = Field(
        default=None, ge=1, description="unfinished uploads that one owner may have; one more is answered 413"
    )
    allowed_types: Annotated[Names, AfterValidator(check_types)] = Field(
        default=(), description="media types that uploads may have, as image/*; others are answered 415; empty for all"
    )
    clamd: Annotated[str, AfterValidator(check_clamd)] = Field(
        default="", description="clamd that scans uploads before they are complete: unix:PATH or tcp://HOST:PORT"
    )
    scan_fail: Literal["closed", "open"] = Field(
        default="closed", description="refuse uploads that cannot be scanned, or take them"
    )
    scan_max_size: Size | None = Field(default=None, description="largest upload that is scanned, in bytes")
    scan_timeout: Seconds = Field(
        default=300, description="time for the scan of an upload, and for the wait for its turn before; 0: any"
    )
    reserve_disk: Size = Field(
        default=0, description="free space below which new uploads are answered 507, before the disk is full; 0: none"
    )
    expires_after: Seconds = Field(
        default=86400, description="remove unfinished uploads this long after their last byte; 0: never"
    )
    retention: Seconds = Field(
        default=0, description="remove finished uploads this long after their completion; 0: never"
    )
    gone_for: Seconds = Field(
        default=0, description="answer 410 instead of 404 for this long after an upload expired or was terminated"
    )
    partial_retention: Seconds = Field(
        default=3600, description="keep partial uploads for this long after a final upload was made of them"
    )
    sweep_interval: Seconds = Field(default=60, description="time between two searches for expired uploads; 0: never")
    durability: Durability = Field(
        default=Durability.COMPLETE,
        description="sync to the device when an upload completes, before every answer, or never",
    )
    buffer_size: Size = Field(
        default=24 << 20,
        ge=1 << 20,
        description="memory for bytes on their way to the storage, of all uploads of a process together; 1MiB at least",
    )
    metadata_size: Size = Field(
        default=16 << 10, description="longest Upload-Metadata header, in bytes; a longer one is answered 400"
    )
    metadata_pairs: Number = Field(
        default=64, ge=0, description="most pairs in an Upload-Metadata header; more are answered 400"
    )
    lock_timeout: Seconds = Field(
        default=10,
        gt=0,
        description="longest wait for the lock of an upload that another request holds; then the answer is 423",
    )
    header_timeout: Seconds = Field(
        default=30, description="close a connection whose request head has not arrived after this time; 0: never"
    )
    keep_alive_timeout: Seconds = Field(
        default=75, description="close a connection that has been idle between two requests for this time; 0: never"
    )
    max_connections: Number | None = Field(
        default=None, ge=1, description="most connections at a time, of all processes together"
    )
    max_listeners: Number = Field(
        default=4096,
        ge=1,
        description="most clients that follow uploads at a time, of each process; half of the connections at most",
    )
    idle_timeout: Seconds = Field(
        default=60,
        description="end a request that sends nothing, or takes nothing of its answer, for this time; 0: never",
    )
    min_rate: Size = Field(
        default=1 << 10,
        description="minimum upload and download rate in bytes a second, averaged over 60 s; 0: none",
    )
    rate_create: Rate = Field(
        default="", description="most new uploads of an owner, or of an address, as 10/s; more are answered 429"
    )
    rate_bytes: Size = Field(
        default=0, description="most bytes a second of uploads of an owner, or of an address; 0: any number"
    )
    drain_delay: Seconds = Field(
        default=0, le=3600, description="after SIGTERM, go on serving for this time, with /readyz answering 503"
    )
    shutdown_grace: Seconds = Field(default=10, gt=0, description="time that running requests have to end at shutdown")
    events: EventsConfig = EventsConfig()
    hooks: HooksConfig = HooksConfig()
    jwt: JwtConfig = JwtConfig()
    api_tokens_file: Path | None = Field(
        default=None, description="file with API tokens, one a line: name:SHA-256 of the token in hex[:scope,...]"
    )
    auth_cookie: Annotated[str, AfterValidator(check_cookie_name)] = Field(
        default="", description="name of a cookie that may hold a token in place of Authorization"
    )
    signing_key_file: Path | None = Field(
        default=None, description="file with keys of capabilities and signed URLs, one a line: 64 hex digits"
    )
    capability_urls: bool = Field(
        default=False, description="let Location carry a capability, with which a long upload outlives its token"
    )
    capability_ttl: Seconds = Field(
        default=7 * 86400, gt=0, description="time for which the capability of an upload is good"
    )
    public_downloads: bool = Field(default=False, description="let anybody download finished uploads")
    admin_token_file: Path | None = Field(
        default=None, description="file with the token of administrators, on one line, for /admin/api"
    )
    admin_port: Number | None = Field(
        default=None, ge=0, le=65535, description="port of /admin/api alone, which the other port then lacks"
    )
    metrics_port: Number | None = Field(
        default=None, ge=0, le=65535, description="port of /metrics alone, which the other port then lacks"
    )
    metrics_socket: Path | None = Field(
        default=None, description="path of a Unix socket for /metrics alone, which the port then lacks"
    )
    metrics_auth: bool = Field(
        default=False,
        description="let only administrators, and principals with the scope uploads:metrics, read /metrics",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="format of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log lines to write"
    )
    disable_malloc_tuning: bool = Field(
        default=False, description="leave the memory settings of the C library as they are"
    )
    disable_metrics: bool = Field(default=False, description="do not serve /metrics")
    disable_download: bool = Field(default=False, description="do not serve finished uploads")
    download_offload: Literal["off", "x-accel-redirect", "x-sendfile"] = Field(
        default="off", description="header field that makes the proxy in front send downloads from the disk"
    )
    download_offload_prefix: Annotated[str, AfterValidator(check_offload_prefix)] = Field(
        default="/tusd-py-files",
        description="internal location of nginx for the upload directory, for x-accel-redirect",
    )
    disable_termination: bool = Field(default=False, description="do not let clients remove uploads")
    disable_concatenation: bool = Field(default=False, description="do not concatenate partial uploads")
    concatenation_unfinished: bool = Field(
        default=False, description="let clients make final uploads before their partial uploads are finished"
    )
    concatenation_parts: Number = Field(
        default=1000, ge=1, le=10_000, description="most partial uploads that a final upload may name, 1 to 10000"
    )
    concatenation_repeats: Number = Field(
        default=10,
        ge=1,
        le=10_000,
        description="most times that a final upload may name the same partial upload, 1 to 10000",
    )
    disable_checksum: bool = Field(default=False, description="ignore checksums of clients")
    disable_creation_with_upload: bool = Field(
        default=False, description="refuse bytes in the request that creates an upload"
    )
    disable_creation_defer_length: bool = Field(
        default=False, description="demand the length when an upload is created"
    )

    @property
    def moves_metrics(self) -> bool:
        """Whether /metrics has a place of its own."""
        return self.metrics_port is not None or self.metrics_socket is not None

    @property
    def serves_pages(self) -> bool:
        """Whether there are pages, in the way of no upload: by default where nobody but this machine can connect."""
        if self.base_path.split("/")[1] in PAGE_FOLDERS:
            return False
        return is_loopback(self.host) if self.pages is None else self.pages

    @model_validator(mode="before")
    @classmethod
    def _nest_groups(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put the values of flat names into the groups they belong to."""
        nested = {name: value for name, value in values.items() if name not in GROUPED}
        for name, (group, field) in GROUPED.items():
            if name in values:
                nested[group] = {field: values[name]} | nested.get(group, {})
        return nested


def _flat_fields() -> Iterator[tuple[str, FieldInfo, tuple[str, str] | None]]:
    """Yield the flat name of each setting, its field, and its group and name there, if it is in a group."""
    for name, field in Settings.model_fields.items():
        if name not in GROUPS:
            yield name, field, None
            continue
        for inner, inner_field in GROUPS[name].model_fields.items():
            if inner_field.description is not None:
                yield flat_name(name, inner), inner_field, (name, inner)


# Every setting by its flat name, in the order of the documentation; of those in a group, also the group and the field.
FIELDS: Mapping[str, FieldInfo] = {name: field for name, field, _ in _flat_fields()}
GROUPED: Mapping[str, tuple[str, str]] = {name: place for name, _, place in _flat_fields() if place is not None}


def value_of(settings: Settings, name: str) -> Any:
    """Return the value of a setting by its flat name."""
    if name not in GROUPED:
        return getattr(settings, name)
    group, field = GROUPED[name]
    return getattr(getattr(settings, group), field)


def from_environment() -> dict[str, Any]:
    """Return the values of the TUSD_PY_* variables; an empty one counts as unset, except where empty is a value."""
    values = {}
    for name in FIELDS:
        value = os.environ.get(variable_name(name))
        if value or (value is not None and _is_value_when_empty(name)):
            values[name] = value
    return values


def _is_value_when_empty(name: str) -> bool:
    """Return whether an empty variable counts: a value for lists and the prefix, a mistake for the directory."""
    return isinstance(default_of(name), tuple) or name in ("redis_prefix", "upload_dir")


def default_of(name: str) -> object:
    """Return the default of a setting."""
    return FIELDS[name].default


def variable_name(name: str) -> str:
    """Return the name of the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the flag of a setting on the command line."""
    return "--" + name.replace("_", "-")
