"""CRC-32C without a library, to check the one of the library."""

from __future__ import annotations


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_entry(value) for value in range(256)]


def bitwise_crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`, as RFC 3720, appendix B.4, defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
