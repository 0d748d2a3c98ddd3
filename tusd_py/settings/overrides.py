"""The settings as keyword arguments of `TusServer` and `create_app`, for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from tusd_py.core.durability import Durability

Size: TypeAlias = int | str  # bytes, or "5GiB"
Duration: TypeAlias = float | str  # seconds, or "24h"
Names: TypeAlias = Sequence[str] | str  # a sequence, or names separated by commas


class SettingsOverrides(TypedDict, total=False):
    """Every setting of `Settings`, in the types that a caller may give; docs/configuration.md describes each.

    Example, of a function that passes settings on::

        def my_server(**overrides: Unpack[SettingsOverrides]) -> TusServer:
            return TusServer(**{"max_size": "5GiB"} | overrides)
    """

    host: str
    port: int
    workers: int
    base_path: str
    pages: bool | None
    upload_dir: Path | str
    file_mode: str
    directory_mode: str
    date_folders: bool
    redis_url: str | None
    redis_prefix: str
    lock_ttl: Duration
    s3_bucket: str
    s3_endpoint: str | None
    s3_region: str | None
    s3_dialect: Literal["aws", "minio", "r2", "scaleway", "ceph", "plain"]
    s3_addressing: Literal["auto", "path", "virtual"]
    s3_prefix: str
    s3_key_template: str
    s3_part_size: Size
    s3_buffer_size: Size
    s3_concurrency: int
    s3_storage_class: str
    s3_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"]
    s3_kms_key: str
    s3_acl: str
    s3_tags: Names
    s3_delete_versions: bool
    s3_download: Literal["proxy", "redirect"]
    storage_plugin: str
    state_plugin: str
    locker_plugin: str
    public_url: str | None
    trusted_proxies: Names
    cors_origins: Names
    cors_credentials: bool
    max_size: Size | None
    quota_bytes: Size | None
    quota_uploads: int | None
    allowed_types: Names
    clamd: str
    scan_fail: Literal["closed", "open"]
    scan_max_size: Size | None
    scan_timeout: Duration
    reserve_disk: Size
    expires_after: Duration
    retention: Duration
    gone_for: Duration
    partial_retention: Duration
    sweep_interval: Duration
    durability: Durability | Literal["complete", "always", "never"]
    buffer_size: Size
    metadata_size: Size
    metadata_pairs: int
    lock_timeout: Duration
    header_timeout: Duration
    keep_alive_timeout: Duration
    max_connections: int | None
    max_listeners: int
    idle_timeout: Duration
    min_rate: Size
    rate_create: str
    rate_bytes: Size
    drain_delay: Duration
    shutdown_grace: Duration
    events_to: Names
    events_give_up: Duration
    hooks: object
    hooks_http: Names
    hooks_http_secret_file: Path | str | None
    hooks_http_timeout: Duration
    hooks_http_retry: int
    hooks_http_backoff: Duration
    hooks_http_forward_headers: Names
    hooks_http_ca_file: Path | str | None
    hooks_http_cert_file: Path | str | None
    hooks_http_key_file: Path | str | None
    hooks_http_refuse_private: bool
    hooks_dir: Path | str | None
    hooks_dir_timeout: Duration
    hooks_enabled_events: Names
    progress_hooks_interval: Duration
    jwt_secret_file: Path | str | None
    jwt_key_file: Path | str | None
    jwks_url: str | None
    jwt_issuer: str | None
    jwt_audience: str | None
    jwt_leeway: Duration
    jwt_owner_claim: str
    jwt_scope_claim: str
    api_tokens_file: Path | str | None
    auth_cookie: str
    signing_key_file: Path | str | None
    capability_urls: bool
    capability_ttl: Duration
    public_downloads: bool
    admin_token_file: Path | str | None
    admin_port: int | None
    metrics_port: int | None
    metrics_socket: Path | str | None
    metrics_auth: bool
    log_format: Literal["text", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    disable_malloc_tuning: bool
    disable_metrics: bool
    disable_download: bool
    download_offload: Literal["off", "x-accel-redirect", "x-sendfile"]
    download_offload_prefix: str
    disable_termination: bool
    disable_concatenation: bool
    concatenation_unfinished: bool
    concatenation_parts: int
    concatenation_repeats: int
    disable_checksum: bool
    disable_creation_with_upload: bool
    disable_creation_defer_length: bool
