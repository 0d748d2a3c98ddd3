"""Checksum algorithms and their verification while bytes arrive (tus 1.0.0, Checksum)."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable
from typing import Protocol

CRC32C_PIECE = 256 << 10  # bytes: what is copied stays in the cache
Bytes = bytes | bytearray | memoryview


class Digest(Protocol):
    def update(self, data: Bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class CRC32:
    """CRC-32 as four bytes, most significant first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4)


def _find_crc32c() -> Callable[[int, bytes], int] | None:
    """The function of google-crc32c (the extra `crc32c`); None without it, or without its compiled part."""
    try:
        import google_crc32c
    except (ImportError, RuntimeWarning):  # it warns of being slow, which may be an error here
        return None
    extend: Callable[[int, bytes], int] = google_crc32c.extend
    return extend if google_crc32c.implementation == "c" else None


_extend_crc32c = _find_crc32c()


class CRC32C:
    """CRC-32C (Castagnoli) as four bytes, most significant first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Bytes, /) -> None:
        assert _extend_crc32c is not None
        view = memoryview(data)
        for start in range(0, len(view), CRC32C_PIECE):  # the library takes nothing but bytes
            self._value = _extend_crc32c(self._value, bytes(view[start : start + CRC32C_PIECE]))

    def digest(self) -> bytes:
        return self._value.to_bytes(4)


ALGORITHMS: dict[str, Callable[[], Digest]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": CRC32,
}
if _extend_crc32c is not None:
    ALGORITHMS["crc32c"] = CRC32C


class Verification(Protocol):
    """Compares the bytes of a request with what its client says of them."""

    def update(self, data: Bytes, /) -> object:
        """The next bytes; called outside the event loop."""

    def matches(self) -> bool:
        """Whether they are the right ones, once all have come; may raise what is wrong with the client's word."""


class AnnouncedChecksum:
    """A checksum that was known before the bytes."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        self._digest = ALGORITHMS[algorithm]()
        self._expected = expected
        self.update = self._digest.update

    def matches(self) -> bool:
        return hmac.compare_digest(self._digest.digest(), self._expected)


class TrailingChecksum:
    """A checksum that follows the bytes: which algorithm it is of is not known before, so that each one runs."""

    def __init__(self, checksum: Callable[[], tuple[str, bytes] | None]) -> None:
        self._digests = {name: algorithm() for name, algorithm in ALGORITHMS.items()}
        self._checksum = checksum

    def update(self, data: Bytes, /) -> None:
        for digest in self._digests.values():
            digest.update(data)

    def matches(self) -> bool:
        checksum = self._checksum()
        if checksum is None:  # promised, but it never came
            return False
        algorithm, expected = checksum
        return hmac.compare_digest(self._digests[algorithm].digest(), expected)
