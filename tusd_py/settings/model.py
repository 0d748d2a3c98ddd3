"""The model of the settings: name, type, default and meaning of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tusd_py.core.durability import Durability
from tusd_py.settings.parsing import (
    MAX_DURATION,
    check_base_path,
    check_directory_mode,
    check_endpoint,
    check_file_mode,
    check_host,
    check_origins,
    check_proxies,
    check_public_url,
    check_redis_prefix,
    check_redis_url,
    check_tags,
    parse_duration,
    parse_size,
    refuse_bool,
    refuse_empty,
    split_list,
)

ENV_PREFIX = "TUSD_PY_"

Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=(1 << 63) - 1)]
Seconds: TypeAlias = Annotated[
    float, BeforeValidator(parse_duration), Field(ge=0, le=MAX_DURATION, allow_inf_nan=False)
]
Number: TypeAlias = Annotated[int, BeforeValidator(refuse_bool)]
Names: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]


class Settings(BaseSettings):
    """The settings of a server. Sizes are bytes, times are seconds; a time of zero switches that limit off.

    A setting that is not given comes from its variable (`TUSD_PY_MAX_SIZE` for `max_size`), else it has its default.
    docs/configuration.md describes each; the keyword arguments of `TusServer` have the same names.

    Example::

        settings = Settings(upload_dir=Path("uploads"), max_size=5 << 30, expires_after=7 * 86400)
        tus = TusServer(settings)
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

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
        variables = InitSettingsSource(settings_cls, from_environment(settings_cls))
        return init_settings, variables

    host: Annotated[str, AfterValidator(check_host)] = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 or :: for every address"
    )
    port: Number = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: Number = Field(default=1, ge=1, le=256, description="number of server processes, 1 to 256")
    base_path: Annotated[str, AfterValidator(check_base_path)] = Field(
        default="/files", description="path of the creation URL"
    )
    upload_dir: Annotated[Path, BeforeValidator(refuse_empty)] = Field(
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
    redis_url: Annotated[str, AfterValidator(check_redis_url)] | None = Field(
        default=None,
        repr=False,
        description="Redis for records and locks, which several hosts can share: redis://, rediss://, ...",
    )
    redis_prefix: Annotated[str, AfterValidator(check_redis_prefix)] = Field(
        default="tus:", description="prefix of all keys in Redis"
    )
    lock_ttl: Seconds = Field(
        default=6,
        ge=1,
        le=3600,
        description="lease duration of locks in Redis: a lock ends this long after its last renewal; 1s at least",
    )
    s3_bucket: str = Field(default="", description="store the bytes in this S3 bucket instead of the upload directory")
    s3_endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = Field(
        default=None, description="URL of the S3 server, if it is not AWS"
    )
    s3_region: str | None = Field(
        default=None, description="region of the bucket; if it is not given, that of the AWS configuration"
    )
    s3_dialect: Literal["aws", "minio", "r2", "scaleway", "ceph", "plain"] = Field(
        default="aws", description="kind of S3 server; plain uses no optional features of S3"
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="place of the bucket in URLs: in the path, or in the host name (virtual)"
    )
    s3_prefix: str = Field(default="", description="prefix of the keys of all objects")
    s3_key_template: str = Field(
        default="{prefix}{id}",
        description="key of a finished object; {id} has to occur, {metadata.NAME} is a metadata value of the client",
    )
    s3_part_size: Size = Field(
        default=8 << 20,
        ge=5 << 20,
        le=5 << 30,
        description="size of multipart parts, 5MiB to 5GiB; larger where an upload would need too many",
    )
    s3_buffer_size: Size = Field(
        default=32 << 20,
        ge=5 << 20,
        description="memory for parts on their way to S3, of all uploads of a process together",
    )
    s3_concurrency: Number = Field(
        default=16, ge=6, le=256, description="largest number of concurrent requests to S3 of one process, 6 to 256"
    )
    s3_storage_class: str = Field(
        default="", description="storage class of objects; that of the bucket if it is not given"
    )
    s3_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = Field(
        default="", description="server-side encryption of objects; that of the bucket if it is not given"
    )
    s3_kms_key: str = Field(default="", description="id or ARN of the key for aws:kms")
    s3_acl: str = Field(default="", description="canned ACL of objects")
    s3_tags: Annotated[Names, AfterValidator(check_tags)] = Field(
        default=(), description="tags of objects, at most ten: name=value,..."
    )
    s3_delete_versions: bool = Field(
        default=False, description="in a bucket that keeps versions, delete all of them with what is removed"
    )
    s3_download: Literal["proxy", "redirect"] = Field(
        default="proxy", description="send downloads through this server, or clients to a presigned URL"
    )
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
    idle_timeout: Seconds = Field(
        default=60,
        description="end a request that sends nothing, or takes nothing of its answer, for this time; 0: never",
    )
    min_rate: Size = Field(
        default=1 << 10,
        description="minimum upload and download rate in bytes a second, averaged over 60 s; 0: none",
    )
    drain_delay: Seconds = Field(
        default=0, le=3600, description="after SIGTERM, go on serving for this time, with /readyz answering 503"
    )
    shutdown_grace: Seconds = Field(default=10, gt=0, description="time that running requests have to end at shutdown")
    log_format: Literal["text", "json"] = Field(default="text", description="format of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log lines to write"
    )
    disable_malloc_tuning: bool = Field(
        default=False, description="leave the memory settings of the C library as they are"
    )
    disable_metrics: bool = Field(default=False, description="do not serve /metrics")
    disable_download: bool = Field(default=False, description="do not serve finished uploads")
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

    def group(self, family: str) -> dict[str, Any]:
        """Return the settings whose names begin with `family` and an underscore, by the rest of their names.

        These are the arguments of the backend's own configuration: `S3Config(**settings.group("s3"))`.
        """
        beginning = f"{family}_"
        names = (name for name in type(self).model_fields if name.startswith(beginning))
        return {name.removeprefix(beginning): getattr(self, name) for name in names}


def from_environment(settings: type[BaseSettings]) -> dict[str, Any]:
    """Return the values of the TUSD_PY_* variables; an empty one counts as unset, except where empty is a value."""
    values = {}
    for name in settings.model_fields:
        value = os.environ.get(variable_name(name))
        if value or (value is not None and _is_value_when_empty(name)):
            values[name] = value
    return values


def _is_value_when_empty(name: str) -> bool:
    """Return whether an empty variable counts: a value for lists and the prefix, a mistake for the directory."""
    return isinstance(default_of(name), tuple) or name in ("redis_prefix", "upload_dir")


def default_of(name: str) -> object:
    """Return the default of a setting."""
    return Settings.model_fields[name].default


def variable_name(name: str) -> str:
    """Return the name of the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the flag of a setting on the command line."""
    return "--" + name.replace("_", "-")
