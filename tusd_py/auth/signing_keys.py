"""The keys of capabilities and signed URLs, in a file with one key a line. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

KEY = re.compile(r"[0-9a-fA-F]{64}")
MAX_KEYS = 32  # each is tried for every signature


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Keys of 32 bytes, one at least: the first signs, all verify."""

    keys: tuple[bytes, ...] = field(repr=False)


def parse_signing_keys(content: bytes) -> SigningKeys:
    """Return the keys of a file with one key a line, 64 hex digits each.

    Empty lines and lines that begin with `#` do not count.

    Raises:
        ValueError: there is no key, or a line is malformed; the text names the line and holds no key.
    """
    keys: list[bytes] = []
    for number, line in enumerate(content.decode().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not KEY.fullmatch(line.strip()):
            raise ValueError(f"line {number}: a key has 64 hex digits, such as `openssl rand -hex 32` prints")
        keys.append(bytes.fromhex(line.strip()))
    if not keys:
        raise ValueError("there is no key in it: 64 hex digits, such as `openssl rand -hex 32` prints")
    if len(keys) > MAX_KEYS:
        raise ValueError(f"there are more than {MAX_KEYS} keys in it")
    return SigningKeys(tuple(keys))
