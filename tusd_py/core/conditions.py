"""Conditions that the bytes of an upload have to fulfil before it becomes complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

# Algorithms of `Repr-Digest` (RFC 9530), their names in `hashlib`, and their sizes in bytes.
DIGEST_ALGORITHMS = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64)}
_TYPE = "type"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one upload.

    Attributes:
        digests: algorithms of `DIGEST_ALGORITHMS` and digests in hex, all of which have to match.
        types: the allowed media types, as `parse_patterns` returns them; empty if all are.
    """

    digests: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()

    def encode(self) -> str:
        """Return the conditions as the text that `Upload.conditions` holds."""
        if self is NO_CONDITIONS:
            return ""
        words = [f"{algorithm}={digest}" for algorithm, digest in dict.fromkeys(self.digests)]
        return " ".join([*words, *(f"{_TYPE}={pattern}" for pattern in self.types)])


NO_CONDITIONS = Conditions()


@lru_cache(maxsize=1024)
def decode_conditions(text: str) -> Conditions:
    """Return the conditions of `Upload.conditions`; words of later versions are ignored."""
    pairs = [word.partition("=")[::2] for word in text.split()]
    return Conditions(
        tuple((name, value) for name, value in pairs if name in DIGEST_ALGORITHMS),
        tuple(value for name, value in pairs if name == _TYPE),
    )


def hash_names(digests: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the names in `hashlib` of the algorithms of digests."""
    return frozenset(DIGEST_ALGORITHMS[algorithm][0] for algorithm, _ in digests)
