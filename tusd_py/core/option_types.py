"""Types of options: sizes and times that may be given as text with a unit, numbers, and lists.

Used by the settings and by the configurations of the backends that are part of them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from tusd_py.core.upload import MAX_UPLOAD_SIZE

SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
SIZE_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)?")
RATE = re.compile(r"([0-9]{1,9})/([smhd])")
MAX_DURATION = 100 * 366 * 86400.0  # seconds; dates stay within four digits
DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: object) -> object:
    """Return the bytes of `5GiB`, `10MB` or `512`."""
    if isinstance(value, bool):
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError("a size in bytes such as 1048576, 10MB or 5GiB")
    return int(Decimal(match[1]) * SIZE_UNITS[(match[2] or "").lower()])


def parse_duration(value: object) -> object:
    """Return the seconds of `24h`, `90s`, `1.5m` or `30`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    match = DURATION.fullmatch(value.strip())
    if not match:
        raise ValueError("a time such as 30s, 15m, 24h or 7d")
    return float(match[1]) * DURATION_UNITS[match[2] or ""]


def parse_rate(text: str) -> tuple[int, float]:
    """Return the number and the seconds of a rate such as `10/s`; raises `ValueError`."""
    match = RATE.fullmatch(text.replace(" ", ""))
    if not match or not int(match[1]):
        raise ValueError("a number of 1 or more and a unit of time, such as 10/s, 100/m or 1000/h")
    return int(match[1]), DURATION_UNITS[match[2]]


def check_rate(value: str) -> str:
    """Return a rate without spaces; empty for none."""
    if value.strip():
        parse_rate(value)
    return value.replace(" ", "")


def refuse_bool(value: object) -> object:
    """Return the value; refuse true and false of a configuration file, which Python takes for integers."""
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def split_list(value: object) -> object:
    """Return the tuple of `a, b`."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=MAX_UPLOAD_SIZE)]
Seconds: TypeAlias = Annotated[
    float, BeforeValidator(parse_duration), Field(ge=0, le=MAX_DURATION, allow_inf_nan=False)
]
Number: TypeAlias = Annotated[int, BeforeValidator(refuse_bool)]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(split_list)]
Rate: TypeAlias = Annotated[str, AfterValidator(check_rate)]
