"""Parts and tails in S3 that fail, and servers that die meanwhile: no acknowledged byte is lost, none is wrong."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support.s3_rig import BOUNDED, DATA, GIVE_UP, Rig, always, called, finish, no_fault, times
from tests.support.s3_server import TRANSIENT_FAULTS, Fault, HeldRequests
from tests.support.s3_uploads import PART
from tests.support.timing import promptly
from tests.support.wire.messages import KIBI, Answer
from tests.support.wire.requests import assert_content, create, head, offset_of, patch, start_patch


@pytest.mark.parametrize(("part", "restarted"), [(1, False), (2, False), (2, True), (3, False)])
def test_a_part_that_fails_while_the_next_ones_succeed(rig: Rig, part: int, restarted: bool) -> None:
    """Parts after a gap do not count, however many there are."""
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(Fault.ERROR, "UploadPart", part=part)
    sent = 3 * PART + 100
    with start_patch(rig.port, path, 0, sent) as connection:
        with suppress(ConnectionError):
            connection.send(DATA[:sent])
        answer = connection.answer_or_closed(GIVE_UP)
    assert answer is None or answer.status in (500, 503)
    rig.proxy.faults = no_fault
    if restarted:
        rig.server.restart()
    assert offset_of(rig.port, path) == (part - 1) * PART
    finish(rig, path, DATA)


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "PutObject", "CompleteMultipartUpload"])
def test_the_client_does_not_notice_one_fault(rig: Rig, operation: str, fault: Fault) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = times(1, fault, operation)
    cut = 2 * PART + 1000
    for start, end in ((0, 1000), (1000, cut), (cut, len(DATA))):
        answer = patch(rig.port, path, start, DATA[start:end])
        assert (answer.status, answer.headers.get("upload-offset")) == (204, str(end)), answer
    assert offset_of(rig.port, path) == len(DATA)
    rig.place.assert_object(path, DATA)
    if operation != "CreateMultipartUpload":  # what was made twice is for the janitor
        rig.place.assert_alone(path, DATA)


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.ERROR, Fault.REFUSE, Fault.LOST, Fault.RESET])
def test_a_storm(rig: Rig, fault: Fault) -> None:
    """S3 takes nothing for a while: clients are told, offsets are exact, and everything goes on afterwards."""
    acknowledged = {1000: create(rig.port, len(DATA), body=DATA[:1000])}
    acknowledged[PART + 1000] = create(rig.port, len(DATA), body=DATA[: PART + 1000])
    rig.proxy.faults = lambda request: fault
    with ThreadPoolExecutor(2) as executor:

        def send(offset: int) -> Answer:
            return patch(rig.port, acknowledged[offset], offset, DATA[offset : offset + PART])

        started = time.monotonic()
        running = [executor.submit(send, offset) for offset in acknowledged]
        for one in running:
            answer = one.result(GIVE_UP)
            assert answer.status in (500, 503), answer
            assert "retry-after" in answer.headers
        print(f"answered after {time.monotonic() - started:.1f} s")
    for path in acknowledged.values():
        with promptly("HEAD", BOUNDED):
            assert head(rig.port, path).status in (200, 423)
    rig.proxy.faults = no_fault
    for offset, path in acknowledged.items():
        # A part that was stored although S3 did not say so may count or not.
        finish(rig, path, DATA, acknowledged=offset, sent=offset + PART)


def test_a_crash_after_a_tail_was_acknowledged(rig: Rig) -> None:
    paths = {size: create(rig.port, len(DATA)) for size in (1, 1000, PART - 1, PART + 1, 2 * PART + 700 * KIBI)}
    for size, path in paths.items():
        assert patch(rig.port, path, 0, DATA[:size]).offset == size
    rig.server.restart()
    for size, path in paths.items():
        assert offset_of(rig.port, path) == size
        finish(rig, path, DATA)


@pytest.mark.parametrize("fate", [Fault.NONE, Fault.REFUSE], ids=["stored", "not stored"])
def test_a_crash_while_a_tail_is_stored(rig: Rig, fate: Fault) -> None:
    """The tail before it, that the new one would have replaced, is still there."""
    path = create(rig.port, len(DATA))
    assert patch(rig.port, path, 0, DATA[:1000]).offset == 1000
    rig.proxy.faults = holding = HeldRequests(called("PutObject"), fate)
    with start_patch(rig.port, path, 1000, 500) as connection:
        connection.send(DATA[1000:1500])
        holding.wait()
        rig.server.kill()
    holding.release()
    rig.proxy.faults = no_fault
    rig.revive()
    finish(rig, path, DATA, acknowledged=1000, sent=1500)


def test_a_crash_after_every_small_patch(rig: Rig) -> None:
    path = create(rig.port, len(DATA))
    offset = 0
    for size in (700, 700, 300_000, PART):
        assert patch(rig.port, path, offset, DATA[offset : offset + size]).offset == offset + size
        offset += size
        rig.server.restart()
        assert offset_of(rig.port, path) == offset
    finish(rig, path, DATA)


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.LOST])
def test_tails_that_cannot_be_removed_do_no_harm(rig: Rig, fault: Fault) -> None:
    path = create(rig.port, len(DATA))
    rig.proxy.faults = always(fault, "DeleteObject", "DeleteObjects")
    for offset in range(0, 40_000, 1000):
        assert patch(rig.port, path, offset, DATA[offset : offset + 1000]).offset == offset + 1000
    assert patch(rig.port, path, 40_000, DATA[40_000:]).offset == len(DATA)
    rig.place.assert_object(path, DATA)
    rig.proxy.faults = no_fault
    assert_content(rig.port, path, DATA)
