"""Checksum algorithms, and verification of the bytes of a request (tus 1.0.0, Checksum)."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable
from typing import Protocol

CRC32C_PIECE = 256 << 10  # bytes copied at a time, so that the copy stays in the cache of the processor
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


def _load_crc32c() -> Callable[[int, bytes], int] | None:
    """Return the function of google-crc32c (the extra `crc32c`); None without it or its compiled part."""
    try:
        import google_crc32c
    except (ImportError, RuntimeWarning):  # without its compiled part it warns, and warnings may be errors
        return None
    extend: Callable[[int, bytes], int] = google_crc32c.extend
    return extend if google_crc32c.implementation == "c" else None


_extend_crc32c = _load_crc32c()


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
    """The verification of the bytes of a request by a checksum."""

    def update(self, data: Bytes, /) -> object:
        """Add the next bytes. Runs in a worker thread."""

    def matches(self) -> bool:
        """Return whether the digest matches, after the last byte; raises `InvalidHeader` for a malformed trailer."""


class AnnouncedChecksum:
    """A checksum that the client sent before the bytes."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        self._digest = ALGORITHMS[algorithm]()
        self._expected = expected
        self.update = self._digest.update

    def matches(self) -> bool:
        return hmac.compare_digest(self._digest.digest(), self._expected)


class TrailingChecksum:
    """A checksum that the client sends after the bytes; until then every algorithm is computed."""

    def __init__(self, checksum: Callable[[], tuple[str, bytes] | None]) -> None:
        self._digests = {name: algorithm() for name, algorithm in ALGORITHMS.items()}
        self._checksum = checksum

    def update(self, data: Bytes, /) -> None:
        for digest in self._digests.values():
            digest.update(data)

    def matches(self) -> bool:
        checksum = self._checksum()
        if checksum is None:  # the announced trailer did not come
            return False
        algorithm, expected = checksum
        return hmac.compare_digest(self._digests[algorithm].digest(), expected)
