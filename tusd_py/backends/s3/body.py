"""Request bodies of several pieces of memory, and their checksums."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from tusd_py.backends.s3.memory_limiter import CHUNK_SIZE
from tusd_py.core.buffers import Buffer

try:
    from zlib_ng.zlib_ng import crc32 as add_crc32  # several times as fast
except ImportError:
    from zlib import crc32 as add_crc32

Reader: TypeAlias = Callable[..., bytes]  # called with a number of bytes, or without one for all
MIN_EXPECT_BODY = 256 << 10  # bytes; smaller bodies are joined, and sent without `Expect: 100-continue`
MAX_READ_SIZE = 256 << 10  # bytes; http.client asks for 16 KiB at a time, one call to the kernel each


class Body(io.RawIOBase):
    """A file object over pieces of memory, which it neither joins nor copies. Read in a worker thread."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._size = sum(map(len, self._pieces))
        self._index = self._offset = self._position = 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        """See `io.RawIOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase.seekable`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase.tell`."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = left = max(0, min(self._size, base + offset))
        self._index = 0
        while self._index < len(self._pieces) and left >= len(self._pieces[self._index]):
            left -= len(self._pieces[self._index])
            self._index += 1
        self._offset = left
        return self._position

    def read(self, size: int = -1) -> memoryview:
        """Return the rest of the current piece, `MAX_READ_SIZE` bytes at most; `size` is ignored."""
        if self._index == len(self._pieces):
            return memoryview(b"")
        data = self._pieces[self._index][self._offset : self._offset + MAX_READ_SIZE]
        self._position += len(data)
        self._offset += len(data)
        if self._offset == len(self._pieces[self._index]):
            self._index, self._offset = self._index + 1, 0
        return data


def body_of(pieces: Sequence[Buffer]) -> Body | bytes:
    """Return a body of these pieces, joined if they are small."""
    return b"".join(pieces) if sum(map(len, pieces)) < MIN_EXPECT_BODY else Body(pieces)


def read_all(read: Reader) -> bytes:
    """Read all bytes in one call."""
    return read()


def read_pieces(read: Reader, new_chunk: Callable[[], bytearray]) -> list[Buffer]:
    """Read all bytes, into whole chunks as far as possible."""
    pieces: list[Buffer] = []
    while data := read(CHUNK_SIZE):
        if len(data) == CHUNK_SIZE:
            chunk = new_chunk()
            chunk[:] = data
            pieces.append(chunk)
        else:
            pieces.append(data)
    return pieces


def crc32(pieces: Iterable[Buffer], value: int = 0) -> int:
    """Return the CRC-32 of bytes that follow others whose CRC-32 is `value`."""
    for piece in pieces:
        value = add_crc32(piece, value)
    return value


def crc32_text(value: int) -> str:
    """Encode a CRC-32 as S3 wants it: base64."""
    return base64.b64encode(value.to_bytes(4)).decode()


def md5(pieces: Iterable[Buffer]) -> str:
    """Return the MD5 as S3 wants it in Content-MD5: base64."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return base64.b64encode(digest.digest()).decode()


def multipart_etag(etags: Sequence[str]) -> str:
    """Return the ETag that most servers give an object made of parts with these ETags; empty if it cannot be known."""
    try:
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"'
