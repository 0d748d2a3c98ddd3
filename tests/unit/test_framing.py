"""Where heads and chunked bodies end, however they are cut into packets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from tests.support.wire.messages import chunk
from tusd_py.uvicorn_server.framing import OVERLAP, ChunkedBody, FramingAllowance, section_end

PIECES = st.lists(st.integers(1, 40), min_size=1, max_size=400)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def read_body(pieces: list[bytes], ended: int) -> int:
    """Feed a body as the protocol does, up to the end that the caller knows; returns where it was cut last."""
    body, before, position = ChunkedBody(), b"", 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            end = body.end(before, piece, start)
            stop = end if end >= 0 else len(piece)
            assert start < stop <= len(piece)
            assert position + stop - start <= ended, "the parser would see beyond the end"
            before = b"" if end >= 0 else (before + piece[start:stop])[-OVERLAP:]
            position += stop - start
            start = stop
            if position == ended:
                return position
    return position


@settings(deadline=None)
@given(
    chunks=st.lists(
        st.one_of(st.binary(min_size=1, max_size=50), st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"a" * 700])),
        max_size=60,
    ),
    extension=st.sampled_from([b"", b";a=b", b";" + b"a" * 100]),
    trailers=st.sampled_from([b"", b"X: 1\r\n", b"X: 1\r\nY: " + b"2" * 100 + b"\r\n"]),
    sizes=PIECES,
)
def test_a_chunked_body_is_never_read_beyond_its_end(
    chunks: list[bytes], extension: bytes, trailers: bytes, sizes: list[int]
) -> None:
    framed = b"".join(chunk(data).replace(b"\r\n", extension + b"\r\n", 1) for data in chunks)
    body = framed + b"0\r\n" + trailers + b"\r\n"
    assert read_body(cut(body + b"GET / HTTP/1.1\r\n\r\n" * 3, sizes), len(body)) == len(body)


def test_content_that_looks_like_an_end_is_not_searched_in_chunks_of_usual_size() -> None:
    body = ChunkedBody()
    assert body.end(b"", chunk(b"\r\n\r\n" * 1000) * 10, 0) == -1
    assert body.end(b"", b"0\r\n\r\nGET", 0) == 5


@settings(deadline=None)
@given(line=st.binary(max_size=30), sizes=PIECES)
def test_the_end_of_a_head_is_found_in_any_packets(line: bytes, sizes: list[int]) -> None:
    head = b"GET / HTTP/1.1\r\nX: " + line.replace(b"\n", b"") + b"\r\n\r\n"
    before, position = b"", 0
    for piece in cut(head + b"rest", sizes):
        end = section_end(before, piece, 0)
        if end >= 0:
            assert position + end == head.find(b"\r\n\r\n") + 4
            return
        before = (before + piece)[-OVERLAP:]
        position += len(piece)
    pytest.fail("no end was found")


def test_framing_has_an_allowance_in_a_row_and_for_each_byte() -> None:
    allowance = FramingAllowance(100, 2)
    assert allowance.add(100, 0)
    assert not allowance.add(1, 0)
    allowance = FramingAllowance(100, 2)
    assert allowance.add(1000, 900)
    assert all(allowance.add(100, 1) for _ in range(18))
    assert not all(allowance.add(100, 1) for _ in range(100))
