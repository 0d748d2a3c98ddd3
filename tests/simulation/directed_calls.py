"""The means of directed scenarios beside their client: calls of the service, requests that go on, starts that fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from tests.simulation.directed import DirectedWorld
from tests.simulation.exchange import Answer, Exchange
from tests.simulation.machine import Process
from tests.simulation.oracle import Attempt, Expected
from tests.simulation.sender import CONTENT, VERSION
from tests.simulation.servers import Host
from tests.support.services import Body
from tusd_py.contracts.locks import Lock
from tusd_py.core.errors import CodedError, UploadError
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.validation import AppendRequest, NewUpload

PATIENCE = 120.0  # seconds for one answer
POLL = 0.05  # seconds between two looks at what a scenario waits for


def context_of(owner: str = "ann") -> RequestContext:
    """Return the context of a request of this owner."""
    return RequestContext("PATCH", "/files/x", {}, "192.0.2.1", principal=owner)


async def create(
    world: DirectedWorld,
    length: int | None,
    content: bytes = b"",
    *,
    planned: int = 0,
    host: Host | None = None,
    body: Body | None = None,
    **choices: Any,
) -> Expected:
    """Create an upload by a call of the service, with first bytes perhaps; a length that is not known is `planned`."""
    new = NewUpload(length, **choices)

    async def ask(service: UploadService) -> Upload:
        if not content and body is None:
            return await service.create(new)
        source = Body(content, arrived=True) if body is None else body
        return await service.create_with(new, AppendRequest(0, source, context=new.context))

    losses = world.oracle.losses
    record = await world.on(host or world.host, ask)
    upload = Expected(world.next_upload(), planned if length is None else length, length is None)
    upload.declared, upload.kind, upload.id = length is not None, str(record.concatenation), record.id
    upload.touched_at = world.loop.now
    attempt = Attempt(0, content)
    upload.attempts.append(attempt)
    world.client.uploads.append(upload)
    world.oracle.uploads.append(upload)
    if record.offset:
        world.oracle.acknowledged(upload, record.offset, attempt, "a creation", losses)
    return upload


async def append(
    world: DirectedWorld,
    upload: Expected,
    size: int,
    *,
    host: Host | None = None,
    arrived: bool = True,
    declared: bool = True,
    **choices: Any,
) -> Upload:
    """Append so many bytes by a call of the service; return the record. Errors are raised."""
    content = world.client.rng.randbytes(size)
    attempt = Attempt(upload.last_offset, content)
    upload.attempts.append(attempt)
    body = Body(content, arrived=arrived, declared=declared)
    request = AppendRequest(upload.last_offset, body, **choices)
    losses = world.oracle.losses
    record: Upload = await world.on(host or world.host, lambda service: service.append(upload.id, request))
    upload.declared = upload.declared or request.length is not None
    world.oracle.acknowledged(upload, record.offset, attempt, "an append", losses)
    return record


async def refused(
    world: DirectedWorld,
    kind: type[CodedError],
    ask: Callable[[UploadService], Awaitable[object]],
    host: Host | None = None,
) -> CodedError | None:
    """Ask for something that has to be refused with an error of this kind; return the error."""
    try:
        result = await world.on(host or world.host, ask)
    except CodedError as error:
        world.check(type(error) is kind, f"{error!r} instead of {kind.__name__}")
        return error
    world.complain(f"{result!r} instead of {kind.__name__}")
    return None


async def record_of(world: DirectedWorld, upload: Expected, host: Host | None = None) -> Upload:
    """Return the record of an upload; complain if there is none."""
    record: Upload | None = await world.on(host or world.host, lambda service: service.state.get(upload.id))
    world.check(record is not None, f"upload {upload.number} has no record")
    return record or Upload(upload.id, 0.0)


async def change_record(world: DirectedWorld, upload: Expected, **changes: Any) -> None:
    """Change a record behind the back of the servers, under a new token, as an older backup or another program does."""

    async def change(service: UploadService) -> None:
        record = await service.state.get(upload.id)
        assert record is not None
        await service.state.update(record, replace(record, **changes), record.token)

    await world.on(world.host, change)


async def until(world: DirectedWorld, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds; complain if it does not come."""
    end = world.loop.now + seconds
    while not condition():
        if world.loop.now > end:
            world.complain(f"{what} does not come")
            return
        await asyncio.sleep(POLL)


async def start_error(host: Host) -> UploadError | None:
    """Try to start the process of a host that is down, once; return the error if it could not start, and end it."""
    host.lives += 1
    process = host.process = Process(host.machine, host.lives)
    try:
        await host.loop.create_task(host._start(process), context=process.context.copy())
    except UploadError as error:
        host._end(process)
        host.process = None
        return error
    host.is_up = True
    return None


class Silent:
    """A lock holder that answers nothing."""

    def release_requested(self) -> None: ...

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


async def hold(world: DirectedWorld, upload_id: str, host: Host | None = None) -> Lock:
    """Acquire the lock of an upload for a process, as a holder that answers nothing; return the lock."""
    lock: Lock = await world.on(host or world.host, lambda service: service.locker.acquire(upload_id, Silent(), 0))
    return lock


async def release(world: DirectedWorld, lock: Lock, host: Host | None = None) -> None:
    """Release a lock that was acquired by `hold`."""
    await world.on(host or world.host, lambda _: lock.release())


class Sending:
    """A PATCH that goes on: its bytes are sent in pieces that the scenario chooses."""

    def __init__(
        self,
        world: DirectedWorld,
        upload: Expected,
        size: int,
        *,
        host: Host | None = None,
        headers: Mapping[str, str] | None = None,
        watched: bool = True,
    ) -> None:
        """Begin a request with a body of so many bytes, and send none of them."""
        host = host or world.host
        assert host.process is not None
        assert host.server is not None
        self._world, self._upload = world, upload
        self.rest = world.client.rng.randbytes(size)
        self.attempt = Attempt(upload.last_offset, self.rest)
        upload.attempts.append(self.attempt)
        self._losses = world.oracle.losses
        self.exchange = Exchange(host.process, world.loop, watched=watched)
        sent = {**VERSION, **CONTENT, "Upload-Offset": str(upload.last_offset), "Content-Length": str(size)}
        self.exchange.start(host.server, "PATCH", upload.path, sent | dict(headers or {}))

    def push(self, size: int) -> None:
        """Send the next bytes."""
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.exchange.push(piece, last=not self.rest)

    async def answer(self, status: int | None = None) -> Answer:
        """Return the answer, which has to come, with this status if one is given."""
        done, _ = await asyncio.wait((self.exchange.answer,), timeout=PATIENCE)
        answer = self.exchange.answer.result() if done else None
        self.exchange.hang_up()
        if answer is None:
            self._world.complain(f"a PATCH of upload {self._upload.number} has no answer")
            return Answer(0, {}, b"")
        self._world.log(f"the PATCH that went on: {answer.status}, offset {answer.offset} {answer.body[:80]!r}")
        self._world.check(status in (None, answer.status), f"a PATCH answers {answer.status} instead of {status}")
        if answer.status == 204 and answer.offset is not None:
            self._world.oracle.appended(self._upload, answer.offset, self.attempt, self._losses)
        return answer


async def send(
    world: DirectedWorld,
    upload: Expected,
    content: bytes,
    *,
    status: int = 204,
    headers: Mapping[str, str] | None = None,
    is_whole: bool = False,
) -> Answer:
    """Append these bytes by a PATCH, whose answer has to have this status; `is_whole` with a checksum."""
    attempt = Attempt(upload.last_offset, content, whole=is_whole)
    upload.attempts.append(attempt)
    losses = world.oracle.losses
    sent = {**CONTENT, "Upload-Offset": str(upload.last_offset), **(headers or {})}
    answer = await world.client.ask("PATCH", upload.path, sent, content, status=status)
    if answer.status == 204 and answer.offset is not None:
        upload.declared = upload.declared or "Upload-Length" in sent
        world.oracle.appended(upload, answer.offset, attempt, losses)
    return answer


async def gone(world: DirectedWorld, upload: Expected, status: int | tuple[int, ...] = 404) -> None:
    """Check that an upload was removed, with its bytes."""
    upload.may_be_gone = upload.is_ending = upload.given_up = True
    await world.client.look(upload, status=status)
    world.check(world.oracle.look(upload.id) is None, f"upload {upload.number} was removed, and its bytes are there")


@contextlib.contextmanager
def small(owner: ModuleType | type, **values: object) -> Iterator[None]:
    """Give constants of a module, or methods of a class, other values for the context."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
