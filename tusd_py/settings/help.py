"""Texts for `--help` and `config`: defaults with units, and the accepted values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

from pydantic import BeforeValidator

from tusd_py.core.option_types import parse_duration, parse_size
from tusd_py.settings import FIELDS, default_of


def readable_default(name: str) -> str:
    """Return the default of a setting as a user would write it: `8MiB`, `24h`, `*`; empty if there is none."""
    default = default_of(name)
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    metadata = FIELDS[name].metadata
    parsers = {item.func for item in metadata if isinstance(item, BeforeValidator)}
    if default and parse_size in parsers:
        return _in_units(default, {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1})
    if default and parse_duration in parsers:
        return _in_units(default, {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001})
    return f"{default:g}" if isinstance(default, float) else str(default)


def _in_units(value: Any, units: Mapping[str, float]) -> str:
    """Return the value in the largest unit that leaves no fraction; one day and one minute stay 24h and 60s."""
    for unit, size in units.items():
        if value % size == 0 and not (value == size and unit in ("d", "m")):
            return f"{value / size:g}{unit}"
    return str(value)


def choices(name: str) -> tuple[str, ...]:
    """Return the accepted values of a setting with few of them, else an empty tuple."""
    annotation = FIELDS[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return tuple(annotation)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
