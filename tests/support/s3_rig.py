"""A server whose requests to S3 go through a proxy that makes them fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.support.harness import ServerProcess
from tests.support.s3_server import Fault, Faults, FaultyProxy, Request
from tests.support.s3_uploads import PART, Place
from tests.support.timing import TIMEOUT
from tests.support.wire.messages import Answer, payload
from tests.support.wire.requests import assert_content, head, patch

BOUNDED = 5.0  # seconds within which HEAD is answered whatever S3 does
GIVE_UP = 75.0  # seconds within which every request has ended while S3 is away
DATA = payload(4 * PART + 12_345)


def no_fault(request: Request) -> Fault:
    return Fault.NONE


@dataclass
class Rig:
    """A server, and a proxy between it and S3."""

    server: ServerProcess
    proxy: FaultyProxy
    place: Place

    @property
    def port(self) -> int:
        return self.server.port

    def revive(self) -> None:
        """Start the server again after a kill."""
        self.server.revive()


def finish(rig: Rig, path: str, data: bytes, *, acknowledged: int = 0, sent: int | None = None) -> None:
    """Continue from the offset of HEAD to the end, then check the object."""
    answer = again(lambda: head(rig.port, path))
    assert answer.status == 200, answer
    assert acknowledged <= answer.offset <= (len(data) if sent is None else sent), answer.offset
    answer = patch(rig.port, path, answer.offset, data[answer.offset :])
    assert (answer.status, answer.headers.get("upload-offset")) == (204, str(len(data))), answer
    rig.place.assert_object(path, data)
    assert_content(rig.port, path, data)


def again(action: Callable[[], Answer], seconds: float = TIMEOUT) -> Answer:
    """Repeat a request while the upload is in use or the server unavailable; return the answer."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            answer = action()
            if answer.status != 423:
                return answer
            assert "retry-after" in answer.headers, answer
        assert time.monotonic() < deadline, "nothing comes of it"
        time.sleep(0.05)


def called(operation: str) -> Callable[[Request], bool]:
    return lambda request: request.operation == operation


def times(count: int, fault: Fault, operation: str, part: int | None = None) -> Faults:
    """Return faults for the first `count` requests of one operation."""
    left = [count]
    lock = threading.Lock()

    def choose(request: Request) -> Fault:
        with lock:
            if request.operation != operation or part not in (None, request.part) or not left[0]:
                return Fault.NONE
            left[0] -= 1
            return fault

    return choose


def always(fault: Fault, *operations: str, part: int | None = None) -> Faults:
    return lambda request: fault if request.operation in operations and part in (None, request.part) else Fault.NONE
