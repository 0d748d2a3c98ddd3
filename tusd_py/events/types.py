"""The events of a server: facts about uploads, requests and periodic jobs. Times are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload


@dataclass(frozen=True, slots=True)
class UploadCreated:
    """The creation of an upload, which has no bytes yet.

    `request` is the request that caused the event, None where there was none, as for the sweeper.

    Example::

        @tus.on(UploadCreated)
        async def created(event: UploadCreated) -> None:
            sender = event.request.client if event.request else "the application"
            print(event.upload.id, event.upload.decoded_metadata.get("filename"), "from", sender)
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadProgressed:
    """A commit that moved the offset, or the end of an append; `received` counts the bytes since the last such event.

    Example::

        @tus.on(UploadProgressed)
        async def progressed(event: UploadProgressed) -> None:
            progress[event.upload.id] = event.upload.offset, event.upload.length
    """

    upload: Upload
    received: int
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadFinished:
    """The completion of an upload: all its bytes are stored and can be read. For a partial one see `PartialFinished`.

    The event is lost if the process dies right after it has completed the upload. Without a `request`, the sweeper
    or a HEAD has completed what an earlier process had begun.

    Example::

        @tus.on(UploadFinished)
        async def finished(event: UploadFinished) -> None:
            async with await tus.open(event.upload) as reader:
                ...
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class PartialFinished:
    """The completion of a partial upload, which a client is going to concatenate to a final upload.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadTerminated:
    """The removal of an upload by a client or the application; its bytes and its record are gone.

    `code` is the code of the error of an upload that was refused, by a check or by the application; empty for one that
    was removed for no reason of its own. Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class UploadExpired:
    """The removal of an expired upload by the sweeper: unfinished in time, or partial and no longer needed.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None  # of the administrator who ended it before its time


@dataclass(frozen=True, slots=True)
class LockWaited:
    """The wait of a request for the lock of an upload: it took `seconds`, and `obtained` tells whether it succeeded.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload_id: str
    seconds: float
    obtained: bool
    unreleased_predecessors: bool = False  # whether earlier holders never released the lock


@dataclass(frozen=True, slots=True)
class AppendStarted:
    """The start of an append, whose request holds the lock of the upload; `upload` is the record before.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class AppendEnded:
    """The end of an append, successful or not; `upload` is the record as committed.

    `interrupted` tells whether the append ended before its body did: its client left or was silent for too long,
    another request took over, or the server is about to end. Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The end of a request: answered, or abandoned by its client (status 0).

    Example::

        @tus.on(RequestFinished)
        async def answered(event: RequestFinished) -> None:
            if event.error_code:
                print(event.client, event.method, event.path, event.status, event.error_code)
    """

    method: str
    path: str
    status: int
    seconds: float
    error_code: str = ""
    upload_id: str = ""
    bytes_received: int = 0
    bytes_sent: int = 0  # of a download
    offset_before: int | None = None
    offset_after: int | None = None
    client: str = ""
    request_id: str = ""
    principal: str = ""  # the authenticated sender
    refusal: str = ""  # why the request was not let in
    is_stream: bool = False  # the answer lasted as long as its client listened
    first_byte: float | None = None  # seconds until the answer began; None if it never did


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The end of a run of a periodic job after `seconds`; `succeeded` is False if the run raised an exception.

    Subscribed to like `RequestFinished`, which has an example.
    """

    name: str
    seconds: float
    succeeded: bool


Event: TypeAlias = (
    UploadCreated
    | UploadProgressed
    | UploadFinished
    | PartialFinished
    | UploadTerminated
    | UploadExpired
    | LockWaited
    | AppendStarted
    | AppendEnded
    | RequestFinished
    | JobFinished
)


def finish_event(upload: Upload, request: RequestContext | None = None) -> UploadFinished | PartialFinished:
    """Return the event for an upload that has just become complete."""
    return PartialFinished(upload, request) if upload.is_partial else UploadFinished(upload, request)
