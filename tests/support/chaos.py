"""Clients that upload through every fault, and detect from the stored bytes whether one was lost or changed."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.timing import TIMEOUT
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, MEBI, Answer, checksum, creation_headers, patch_headers, path_of, sha256
from tests.support.wire.requests import RESTARTS_UPLOAD, request


@dataclass
class SentPatches:
    """The PATCHes of one upload: each sends bytes of its own, so that the file shows which PATCH a byte came in."""

    reference: bytes
    starts: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))  # start, key: acknowledged end
    count: int = 0

    def next(self, start: int, end: int) -> tuple[int, bytes]:
        key = self.count % 256
        self.count += 1
        self.starts[start].setdefault(key, start)
        return key, self.reference[start:end].translate(bytes(byte ^ key for byte in range(256)))

    def acknowledged(self, start: int, key: int, end: int) -> None:
        self.starts[start][key] = end

    def offset_went_back(self, offset: int) -> None:
        """Take back acknowledgements beyond `offset`: HEAD said that a failed sync lost those bytes."""
        for start, ends in self.starts.items():
            for key, end in ends.items():
                ends[key] = max(start, min(end, offset))

    def check(self, stored: bytes) -> None:
        """Assert that every byte is from a PATCH accepted at its offset, and that no acknowledged byte is missing."""
        assert len(stored) == len(self.reference)
        keys = bytes(a ^ b for a, b in zip(stored, self.reference, strict=True))
        position = 0
        while position < len(keys):
            key = keys[position]
            assert key in self.starts[position], f"no PATCH sent the byte at {position}, or it began elsewhere"
            end = position + len(keys[position:]) - len(keys[position:].lstrip(bytes([key])))
            assert self.starts[position][key] <= end, "acknowledged bytes are gone"
            position = end


class Uploader:
    """A client in a thread that sends each request to a random server, with a short timeout.

    `transient` are the statuses with which a fault may answer anything but HEAD. `sync_failed` returns for an upload id
    whether a sync of its file has failed, which may take acknowledged bytes back.
    """

    REQUEST_TIMEOUT = 4.0  # seconds
    MAX_BODY_SECONDS = 4.0  # seconds a slow body takes at most

    def __init__(
        self,
        ports: Sequence[int],
        chance: random.Random,
        *,
        transient: frozenset[int] = frozenset({423, 503}),
        sync_failed: Callable[[str], bool] = lambda upload_id: False,
    ) -> None:
        self.ports = ports
        self.chance = random.Random(chance.random())
        self.transient = transient
        self.sync_failed = sync_failed
        self.stop = threading.Event()
        self.steps = 0  # of progress
        self.broken = 0  # PATCHes that were not answered with 204
        self.taken_back = 0  # acknowledged offsets that went back after a failed sync
        self.finished: list[tuple[str, str]] = []  # path and digest
        self.current_request = ""

    def run(self) -> None:
        while not self.stop.is_set():
            kinds = [self.upload, self.upload, self.record, self.concatenate, self.terminate]
            self.chance.choice(kinds)()

    def upload(self) -> None:
        sent = self.new()
        path = self.create(len(sent.reference))
        self.send(path, sent)
        self.check(path, [sent])

    def record(self) -> None:
        """Upload a recording, whose length is declared with its last PATCH."""
        sent = self.new()
        path = self.create(None)
        self.send(path, sent, deferred=True)
        self.check(path, [sent])

    def concatenate(self) -> None:
        parts = [self.new() for _ in range(self.chance.randrange(1, 4))]
        paths = []
        for part in parts:
            paths.append(self.create(len(part.reference), {"Upload-Concat": "partial"}))
            self.send(paths[-1], part)
        headers = {"Upload-Concat": "final;" + " ".join(paths)}
        made = self.repeat_until_allowed("POST", "/files", headers, allowed={201})
        self.check(path_of(made), parts)

    def terminate(self) -> None:
        sent = self.new()
        path = self.create(len(sent.reference))
        self.patch(path, sent, 0, len(sent.reference) // 2)
        self.repeat_until_allowed("DELETE", path, allowed={204, 404})
        gone = self.repeat_until_allowed("HEAD", path, allowed={404})
        assert gone.status == 404, gone
        self.steps += 1

    def new(self) -> SentPatches:
        size = self.chance.choice([3_000, 200 * KIBI, 2 * MEBI, 5 * MEBI])
        return SentPatches(self.chance.randbytes(self.chance.randrange(1, size)))

    def create(self, length: int | None, headers: dict[str, str] | None = None) -> str:
        made = self.repeat_until_allowed("POST", "/files", creation_headers(length) | (headers or {}), allowed={201})
        return path_of(made)

    def send(self, path: str, sent: SentPatches, *, deferred: bool = False) -> None:
        size = max(self.chance.choice([20 * KIBI, 300 * KIBI, 3 * MEBI]), len(sent.reference) // 10)
        offset = 0
        declared = False
        while offset < len(sent.reference) or (deferred and not declared):
            end = min(len(sent.reference), offset + size)
            last = deferred and end == len(sent.reference)
            if self.patch(path, sent, offset, end, declares=last):
                declared = declared or last
            else:
                self.broken += 1
                found = self.repeat_until_allowed("HEAD", path, allowed={200})
                assert found.offset <= end, f"HEAD answered {found.offset} of {end} that were sent"
                declared = "upload-length" in found.headers
                if found.offset < offset:
                    assert self.sync_failed(path.rpartition("/")[2]), (
                        f"HEAD answered {found.offset} for {path}, acknowledged were {offset}"
                    )
                    sent.offset_went_back(found.offset)
                    self.taken_back += 1
                end = found.offset
            self.steps += end > offset
            offset = end

    def patch(self, path: str, sent: SentPatches, start: int, end: int, *, declares: bool = False) -> bool:
        """Send one PATCH; return whether it was answered with 204."""
        self.current_request = f"PATCH {path} from {start} to {end}"
        key, body = sent.next(start, end)
        slow = self.chance.random() < 0.25 and not self.stop.is_set()
        headers = patch_headers(start) | {"Content-Length": str(len(body))}
        if declares:
            headers["Upload-Length"] = str(end)
        if self.chance.random() < 0.2:
            headers |= checksum(body)
        try:
            with Connection(self.chance.choice(self.ports), self.REQUEST_TIMEOUT) as connection:
                connection.start("PATCH", path, headers)
                with suppress(OSError):  # an answer may say why
                    self.send_body(connection, body, slow)
                answer = connection.answer(self.REQUEST_TIMEOUT)
        except OSError:
            return False
        assert answer.status in {204, 409} | self.transient, (self.current_request, answer)
        if answer.status == 204:
            assert answer.offset == end, answer
            sent.acknowledged(start, key, end)
        return answer.status == 204

    def send_body(self, connection: Connection, body: bytes, slow: bool) -> None:
        if not slow:
            connection.send(body)
            return
        pieces = self.chance.randrange(2, 40)
        size = len(body) // pieces + 1
        for start in range(0, len(body), size):
            connection.send(body[start : start + size])
            time.sleep(self.chance.uniform(0, self.MAX_BODY_SECONDS / pieces))

    def repeat_until_allowed(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, allowed: set[int]
    ) -> Answer:
        """Repeat an idempotent request until its status is `allowed`; fail on any other than a transient one."""
        transient = {423} if method == "HEAD" else self.transient
        while True:
            self.current_request = f"{method} {path}"
            with suppress(OSError):
                answer = request(self.chance.choice(self.ports), method, path, headers, timeout=self.REQUEST_TIMEOUT)
                assert answer.status in allowed | transient, (self.current_request, answer)
                assert method != "HEAD" or answer.status not in RESTARTS_UPLOAD
                if answer.status in allowed:
                    return answer
                assert int(answer.headers["retry-after"]) >= 1, (self.current_request, answer)
            time.sleep(0.05)

    def check(self, path: str, parts: Sequence[SentPatches]) -> None:
        stored = self.repeat_until_allowed("GET", path, allowed={200}).body
        position = 0
        for part in parts:
            part.check(stored[position : position + len(part.reference)])
            position += len(part.reference)
        assert position == len(stored)
        self.finished.append((path, sha256(stored)))
        self.steps += 1


def stored_content(port: int, path: str) -> bytes:
    """Return the bytes of a finished upload; a request that a server has cancelled is repeated."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        with suppress(OSError):
            answer = request(port, "GET", path)
            if answer.status == 200:
                return answer.body
            assert answer.status == 503, answer
        assert time.monotonic() < deadline, f"{path} cannot be read"


def upload_during(
    wreak: Callable[[float], None], seconds: float, uploaders: Sequence[Uploader], *, recovery: float
) -> list[tuple[str, str]]:
    """Let clients upload while faults are wreaked for so many seconds; returns path and digest of what they finished.

    `wreak` makes trouble for the seconds that it is given and ends all of it. Each time every client has to get on
    within `recovery` seconds afterwards.
    """
    with ThreadPoolExecutor(len(uploaders)) as executor:
        running = [executor.submit(uploader.run) for uploader in uploaders]
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                wreak(min(10.0, max(1.0, deadline - time.monotonic())))
                raise_first(running)
                expect_progress(uploaders, running, recovery)
        finally:
            for uploader in uploaders:
                uploader.stop.set()
        for one in running:
            one.result(4 * TIMEOUT)
    finished = [one for uploader in uploaders for one in uploader.finished]
    broken = sum(uploader.broken for uploader in uploaders)
    taken_back = sum(uploader.taken_back for uploader in uploaders)
    print(f"{len(finished)} uploads, {broken} PATCHes without success, {taken_back} taken back")
    assert len(finished) >= len(uploaders)
    return finished


def raise_first(running: Sequence[Future[None]]) -> None:
    for one in running:
        if one.done():
            one.result()


def expect_progress(uploaders: Sequence[Uploader], running: Sequence[Future[None]], seconds: float) -> None:
    """Assert that every client makes progress within `seconds`, after the faults have ended."""
    before = [uploader.steps for uploader in uploaders]
    deadline = time.monotonic() + seconds
    while True:
        raise_first(running)
        stuck = [one for one, steps in zip(uploaders, before, strict=True) if one.steps == steps]
        if not stuck:
            return
        assert time.monotonic() < deadline, f"stuck for {seconds} s: {[one.current_request for one in stuck]}"
        time.sleep(0.05)
