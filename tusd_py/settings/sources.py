"""Sources of settings: flags, variables, a TOML file, keyword arguments; and the checks across settings."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tusd_py.core.redaction import without_password, without_secrets
from tusd_py.settings.model import (
    ENV_PREFIX,
    FIELDS,
    GROUPS,
    Settings,
    default_of,
    flag_name,
    flat_name,
    from_environment,
    value_of,
    variable_name,
)

# An origin whose host is known up to its last two labels at least: everything under them is of one owner.
NAMED_ORIGIN = re.compile(
    r"[^:/*]+://(?:[^/:]*\*(?:\.[^./:*]+){2,}|\*\.localhost|[^/:*]+|\[[0-9A-Fa-f:.]+\])(?::(?:\d+|\*))?/?"
)
PLAIN_REASONS = {
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
}  # instead of texts of pydantic
URL_LISTS = ("hooks_http", "events_to")  # settings that are lists of URLs with tokens
EXCLUSIVE = (("storage_plugin", "s3_bucket"), ("state_plugin", "redis_url"), ("locker_plugin", "redis_url"))
TOKEN_KEYS = ("jwt_secret_file", "jwt_key_file", "jwks_url")  # of which one makes the server accept JSON Web Tokens
REQUIRED_SETTINGS = ("s3_bucket", "redis_url")  # each enables the other settings with the same first word


class InvalidSettings(ValueError):
    """A setting or a component is not accepted; the text names it, says what is accepted, and fits on one line.

    Example::

        try:
            tus = TusServer(max_size="lots")
        except InvalidSettings as error:
            sys.exit(str(error))
    """


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and the origin of each value: `default`, a flag, a variable or a file."""

    settings: Settings
    origins: Mapping[str, str]


def load(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Loaded:
    """Load settings from flags, then variables, then the file, then defaults. Raises `InvalidSettings`."""
    return _load(flags or {}, config, flag_name)


def from_arguments(arguments: Mapping[str, Any]) -> Settings:
    """Load settings from keyword arguments, then variables, then defaults. Raises `InvalidSettings`."""
    for name in arguments:
        if name not in FIELDS:
            raise InvalidSettings(f"there is no setting {name!r}{did_you_mean(name, FIELDS)}")
    return _load(arguments, None, str).settings


def _load(given: Mapping[str, Any], config: Path | None, name_of: Callable[[str], str]) -> Loaded:
    """Load settings; `name_of` turns a name into the one that the caller knows, such as a flag."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")
    if config is not None:
        for name, value in _read_file(config).items():
            values[name], origins[name] = value, str(config)
    for name, value in from_environment().items():
        values[name], origins[name] = value, variable_name(name)
    for name, value in given.items():
        values[name], origins[name] = value, name_of(name)

    def where(name: str) -> str:
        origin = origins.get(name, "")
        return name_of(name) if origin in ("default", name_of(name)) else f"{name_of(name)} (from {origin})"

    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise InvalidSettings("; ".join(_explain(detail, where) for detail in error.errors())) from None
    cross_check(settings, where, name_of)
    return Loaded(settings, origins)


def cross_check(
    settings: Settings,
    where: Callable[[str], str] = str,
    name_of: Callable[[str], str] = str,
) -> None:
    """Raise `InvalidSettings` where settings contradict each other."""
    for needed in REQUIRED_SETTINGS:
        family = f"{needed.partition('_')[0]}_"
        idle = [name for name in FIELDS if name.startswith(family) and value_of(settings, name) != default_of(name)]
        if idle and not value_of(settings, needed):
            raise InvalidSettings(f"{where(idle[0])} needs {name_of(needed)}")
    for plugin, other in EXCLUSIVE:
        if value_of(settings, plugin) and value_of(settings, other):
            raise InvalidSettings(f"{where(plugin)} takes the place of {name_of(other)}: give one of them")
    if settings.pages and not settings.serves_pages:
        raise InvalidSettings(f"{where('pages')} needs another {name_of('base_path')} than {settings.base_path}")
    for name in ("metrics_port", "metrics_socket", "metrics_auth"):
        if settings.disable_metrics and value_of(settings, name) != default_of(name):
            raise InvalidSettings(f"{where(name)} needs /metrics: leave out {name_of('disable_metrics')}")
    _check_offload(settings, where, name_of)
    _check_authentication(settings, where, name_of)
    if settings.cors_credentials and any(is_anyone(origin) for origin in settings.cors_origins):
        raise InvalidSettings(
            f"{where('cors_credentials')} needs {name_of('cors_origins')} that names the origins:"
            f" {','.join(settings.cors_origins)} would let every site act for those who are logged in"
        )


def _check_offload(settings: Settings, where: Callable[[str], str], name_of: Callable[[str], str]) -> None:
    if settings.download_offload != "off" and settings.s3.bucket:
        raise InvalidSettings(
            f"{where('download_offload')} needs the bytes on a disk: with {name_of('s3_bucket')},"
            f" {name_of('s3_download')}=redirect sends clients to S3"
        )
    name = "download_offload_prefix"
    if value_of(settings, name) != default_of(name) and settings.download_offload != "x-accel-redirect":
        raise InvalidSettings(f"{where(name)} needs {name_of('download_offload')}=x-accel-redirect")


def _check_authentication(settings: Settings, where: Callable[[str], str], name_of: Callable[[str], str]) -> None:
    used = [name for name in TOKEN_KEYS if value_of(settings, name)]
    if len(used) > 1:
        raise InvalidSettings(f"{where(used[1])} takes the place of {name_of(used[0])}: give one of them")
    for name in FIELDS:
        if name.startswith("jwt_") and not used and value_of(settings, name) != default_of(name):
            raise InvalidSettings(f"{where(name)} needs one of {', '.join(map(name_of, TOKEN_KEYS))}")
    if settings.capability_urls and settings.signing_key_file is None:
        raise InvalidSettings(f"{where('capability_urls')} needs {name_of('signing_key_file')}")
    if not settings.auth_cookie:
        return
    if not used and settings.api_tokens_file is None:
        needed = ", ".join(map(name_of, (*TOKEN_KEYS, "api_tokens_file")))
        raise InvalidSettings(f"{where('auth_cookie')} needs one of {needed}")
    if not settings.cors_origins or any(is_anyone(origin) for origin in settings.cors_origins):
        raise InvalidSettings(
            f"{where('auth_cookie')} needs {name_of('cors_origins')} that names the origins of the pages with the"
            " cookie: any other site could act for those who are logged in"
        )


def is_anyone(origin: str) -> bool:
    """Return whether an origin leaves open whose pages it stands for, such as `*`, `null` and `https://*.com`."""
    return NAMED_ORIGIN.fullmatch(origin) is None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` if a known name X resembles the word, else an empty text."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {matches[0]}?" if matches else ""


def unknown_variables() -> dict[str, str]:
    """Return the TUSD_PY_* variables that belong to no setting, each with the hint of `did_you_mean`."""
    known = [variable_name(name) for name in FIELDS]
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    return {name: did_you_mean(name, known) for name in unknown}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidSettings(f"--config: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"--config: {path} is not TOML: {error}") from None
    values: dict[str, Any] = {}
    for name, value in _flat(content):
        if name.replace("-", "_") not in FIELDS:
            hint = did_you_mean(name.replace("-", "_"), FIELDS)
            raise InvalidSettings(f"{path}: there is no setting {name!r}{hint}")
        values[name.replace("-", "_")] = value
    return values


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a file by their flat names: `prefix` in the table `[s3]` is `s3_prefix`."""
    for name, value in content.items():
        if name in GROUPS and isinstance(value, dict):
            for inner, inner_value in value.items():
                yield flat_name(name, inner.replace("-", "_")), inner_value
        else:
            yield name, value


def _explain(detail: Any, where: Callable[[str], str]) -> str:
    place = [str(step) for step in detail["loc"]]
    reason, own = str(detail["msg"]), ("Value error, ", "Input should be ")  # prefixes of our checks, and of pydantic
    if place in ([], *([group] for group in GROUPS)):  # several settings together do not fit; the reason names them
        return reason.removeprefix(own[0])
    name = flat_name(place[0], place[1]) if place[0] in GROUPS else place[0]
    verb = "must be" if reason.startswith(own) else "is not accepted:"
    for beginning in own:
        reason = reason.removeprefix(beginning)
    reason = PLAIN_REASONS.get(reason.partition(",")[0], reason)
    return f"{where(name)} {verb} {reason}, not {_shown(name, detail['input'])!r}"


def _shown(name: str, value: object) -> object:
    """Return a refused value without its password and tokens, also if the scheme of the URL is missing."""
    if name in URL_LISTS:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple | list) else ()
        return ",".join(_shown_item(str(item)) for item in items)
    if isinstance(value, tuple | list):
        return type(value)(_shown(name, item) for item in value)
    if not isinstance(value, str):
        return value
    if name == "redis_url" and "://" not in value:
        return without_password(f"://{value}").removeprefix("://")
    return without_secrets(value)


def _shown_item(text: str) -> str:
    """Return an item of a list of URLs; without a scheme, it may be what a comma cut off a password or a token."""
    return without_secrets(text) if "://" in text or not text else "***"
