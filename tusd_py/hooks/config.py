"""The settings of the hooks of the application."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tusd_py.contracts.hooks import HookType
from tusd_py.core.option_types import Names, Number, Seconds
from tusd_py.hooks.payload import FIELD_NAME
from tusd_py.http_client.client import endpoint_name, parse_http_url
from tusd_py.http_client.tls import TlsFiles

DEFAULT_EVENTS = ("pre-create", "post-create", "post-receive", "post-finish", "post-terminate")
VISIBLE = re.compile(r"[\x21-\x7e]+")
OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def check_object(text: str) -> str:
    """Return the place of a Python object; raises `ValueError` for another text."""
    if text and not OBJECT.fullmatch(text):
        raise ValueError("MODULE:NAME, such as my_app.hooks:hooks")
    return text


def check_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the URLs of endpoints; raises `ValueError` for others."""
    try:
        if not all(VISIBLE.fullmatch(url) for url in urls):
            raise ValueError
        names = [endpoint_name(parse_http_url(url)) for url in urls]
    except ValueError:
        raise ValueError("URLs such as https://app.example/hooks") from None
    known = [hook.value for hook in HookType]
    for _, mark, hooks in (url.partition("#") for url in urls):
        if mark and not all(hook in known for hook in hooks.split("+")):
            raise ValueError(
                f"URLs such as https://app.example/hooks#pre-create+post-finish, with some of {', '.join(known)}"
            )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"different endpoints, and {name} is there twice")
    return urls


def check_field_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of header fields in lower case; raises `ValueError` for others."""
    if not all(FIELD_NAME.fullmatch(name) for name in names):
        raise ValueError("names of header fields such as Authorization,X-Request-ID")
    return tuple(name.lower() for name in names)


def check_events(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of hooks; raises `ValueError` for others."""
    known = [hook.value for hook in HookType]
    if not all(name in known for name in names):
        raise ValueError(f"some of {', '.join(known)}")
    return names


class HooksConfig(BaseModel):
    """The configuration of requests to the application. Every field is a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: Annotated[str, AfterValidator(check_object)] = Field(
        default="", description="object with async methods pre_create, post_finish and so on, as MODULE:NAME"
    )
    http: Annotated[Names, AfterValidator(check_urls)] = Field(
        default=(),
        repr=False,
        description="endpoints of hooks in the wire format of tusd: URLs, with # and hooks to choose some for one",
    )
    http_secret_file: Path | None = Field(
        default=None,
        repr=False,
        description="file with secrets that sign requests to the application, one whsec_... a line",
    )
    http_timeout: Seconds = Field(default=15, gt=0, description="time for one attempt to ask an endpoint")
    http_retry: Number = Field(default=3, ge=1, le=100, description="attempts to ask an endpoint, 1 to 100")
    http_backoff: Seconds = Field(default=1, description="first pause between two attempts; it doubles with each")
    http_forward_headers: Annotated[Names, AfterValidator(check_field_names)] = Field(
        default=(), description="header fields of the client to copy onto the requests to endpoints"
    )
    http_ca_file: Path | None = Field(
        default=None, description="certificates of the authorities of endpoints (PEM), in place of those of the system"
    )
    http_cert_file: Path | None = Field(
        default=None, description="certificate that this server shows to endpoints (PEM), with its chain"
    )
    http_key_file: Path | None = Field(
        default=None, repr=False, description="key of this certificate (PEM), unless it is in the same file"
    )
    http_refuse_private: bool = Field(
        default=False, description="do not call endpoints whose addresses are not of the public internet"
    )
    dir: Path | None = Field(default=None, description="directory with executables named after hooks, as in tusd")
    dir_timeout: Seconds = Field(default=30, gt=0, description="time for one executable, which is then killed")
    enabled_events: Annotated[Names, AfterValidator(check_events)] = Field(
        default=DEFAULT_EVENTS,
        description="hooks that endpoints and executables are called for; further ones: pre-finish, pre-terminate,"
        " interrupted, expired",
    )
    progress_interval: Seconds = Field(
        default=1, description="least time between two calls of post-receive for one upload"
    )

    @property
    def tls(self) -> TlsFiles | None:
        """The files of TLS; None if there are none."""
        files = TlsFiles(self.http_ca_file, self.http_cert_file, self.http_key_file)
        return None if files == TlsFiles() else files

    @property
    def longest_call(self) -> float:
        """Seconds that an endpoint or an executable may take for one event."""
        return max(self.http_timeout if self.http else 0.0, self.dir_timeout if self.dir is not None else 0.0)

    @property
    def enabled(self) -> frozenset[HookType]:
        """The hooks of executables, and of endpoints that name none."""
        return frozenset(HookType(name) for name in self.enabled_events)

    @property
    def endpoints(self) -> tuple[tuple[str, frozenset[HookType]], ...]:
        """The URLs of the endpoints, each with its hooks."""
        found = []
        for text in self.http:
            url, mark, names = text.partition("#")
            found.append((url, frozenset(map(HookType, names.split("+"))) if mark else self.enabled))
        return tuple(found)
