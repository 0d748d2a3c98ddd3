"""Courses of events that hold for the processes of one host and for several hosts alike."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.support.timing import PROMPT, TIMEOUT, promised, promptly, wait_until
from tests.support.wire.messages import KIBI, MEBI, payload
from tests.support.wire.requests import (
    assert_content,
    complete,
    content,
    create,
    head,
    offset_of,
    patch,
    request,
    stalled_patch,
    start_patch,
)


def look_at_a_running_patch(patched_port: int, asked_port: int, data: bytes) -> None:
    """HEAD neither waits for a running PATCH nor ends it, and answers everything that had arrived."""
    piece = 64 * KIBI
    path = create(patched_port, len(data))
    sent = 0
    offsets = [0]
    with start_patch(patched_port, path, 0, len(data)) as connection:

        def send() -> None:
            nonlocal sent
            while sent < len(data):
                seen = len(offsets)
                connection.send(data[sent : sent + piece])
                sent = min(len(data), sent + piece)
                time.sleep(0.01)  # a network, not a memory copy
                if len(data) - sent <= 10 * piece:  # on a slow machine the last pieces wait for whoever looks
                    wait_until(lambda: len(offsets) > seen, "HEAD is answered")  # noqa: B023

        with ThreadPoolExecutor(1) as executor:
            sender = executor.submit(send)
            while not sender.done():
                arrived = sent - connection.unread()
                with promptly("HEAD"):
                    offset = offset_of(asked_port, path)
                assert arrived <= offset <= sent + piece
                offsets.append(offset)
            sender.result()
        answer = connection.answer()
    assert (answer.status, answer.offset) == (204, len(data))
    assert offsets == sorted(offsets)
    assert len(set(offsets)) > 5
    assert_content(asked_port, path, data)


def take_over(ports: Sequence[int]) -> None:
    """Assert that a second PATCH at another server ends one that is still running, and no byte is mixed up."""
    old, new = payload(2 * MEBI, 1), payload(2 * MEBI, 2)
    path = create(ports[0], len(old))
    with stalled_patch(ports[0], path, old, MEBI) as first:
        with promptly("HEAD"):
            offset = offset_of(ports[1], path)
        assert offset == MEBI
        with start_patch(ports[1], path, offset, len(new) - offset) as second:
            second.send(new[offset : offset + 1000])
            ended = first.answer_or_closed(promised(PROMPT))
            assert ended is None or ended.status == 423
            with contextlib.suppress(ConnectionError):
                first.send(old[MEBI:])  # too late
            second.send(new[offset + 1000 :])
            answer = second.answer()
    assert (answer.status, answer.offset) == (204, len(new))
    assert_content(ports[2], path, old[:offset] + new[offset:])


def take_over_a_stalled_patch(ports: Sequence[int], silence: float) -> str:
    """Assert that a PATCH which stalls is taken over at another server after `silence` seconds; return the path."""
    data = payload(2 * MEBI)
    path = create(ports[0], len(data))
    with stalled_patch(ports[0], path, data, 700_000) as stalled:
        time.sleep(silence)  # a holder that is silent for long is ended by HEAD
        with promptly("HEAD"):
            assert offset_of(ports[1], path) == 700_000
        complete(ports[2], path, data)
        answer = stalled.answer_or_closed(promised(PROMPT))
        assert answer is None or answer.status == 423
    return path


def terminate_a_stalled_patch(ports: Sequence[int]) -> str:
    """Assert that an upload whose PATCH stalls is terminated at another server, and gone at all; return its path."""
    data = payload(MEBI)
    path = create(ports[0], len(data))
    with stalled_patch(ports[0], path, data, 300_000) as stalled:
        with promptly("DELETE"):
            assert request(ports[1], "DELETE", path).status == 204
        for port in ports:
            assert head(port, path).status == 404
            assert patch(port, path, 300_000, data[300_000:]).status == 404
        with contextlib.suppress(ConnectionError):
            stalled.send(data[300_000:])
        answer = stalled.answer_or_closed()
        assert answer is None or answer.status in (404, 423)
    return path


def contend(ports: Sequence[int], reference: bytes, writers: int) -> None:
    """Run many clients that PATCH one upload at once, each with bytes of its own, and check who wrote which bytes."""
    contents = [reference.translate(bytes(byte ^ key for byte in range(256))) for key in range(writers)]
    path = create(ports[0], len(reference))
    starts: list[dict[int, int]] = [{} for _ in range(writers)]  # offset of a PATCH: end that was acknowledged
    deadline = time.monotonic() + TIMEOUT

    def write(writer: int) -> None:
        chance = random.Random(writer)
        while time.monotonic() < deadline:
            offset = offset_of(chance.choice(ports), path)
            if offset == len(reference):
                return
            end = min(len(reference), offset + 150_000 + 10_000 * writer)
            starts[writer].setdefault(offset, offset)
            with contextlib.suppress(ConnectionError):
                answer = patch(chance.choice(ports), path, offset, contents[writer][offset:end])
                assert answer.status in (204, 409, 423), answer
                if answer.status == 204:
                    assert answer.offset == end
                    starts[writer][offset] = end
        raise AssertionError("the contenders never came to an end")

    with ThreadPoolExecutor(writers) as executor:
        for result in [executor.submit(write, writer) for writer in range(writers)]:
            result.result()
    authors = bytes(a ^ b for a, b in zip(content(ports[0], path), reference, strict=True))
    position = 0
    while position < len(authors):
        writer = authors[position]
        assert writer < writers, f"the byte at {position} was sent by nobody"
        assert position in starts[writer], f"writer {writer} sent no PATCH from {position} on"
        assert set(authors[position : starts[writer][position]]) <= {writer}, "acknowledged bytes were overwritten"
        while position < len(authors) and authors[position] == writer:
            position += 1
