"""The events of a server: facts about uploads, requests and periodic jobs. Times are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload


@dataclass(frozen=True, slots=True)
class UploadCreated:
    """An upload was created, and has no bytes yet.

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
    """The committed offset moved, or an append ended; `received` is the number of bytes since the last such event.

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
    """The upload is complete: all its bytes are stored and it can be read. For a partial one see `PartialFinished`.

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
    """A partial upload is complete: a piece of the final upload that a client is going to make of several.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadTerminated:
    """A client or the application removed an upload; its bytes and its record are gone.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload
    request: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class UploadExpired:
    """The sweeper removed an upload that was not finished in time, or a partial one that is not needed any more.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class LockWaited:
    """A request waited `seconds` for the lock of an upload, and obtained it or gave up.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload_id: str
    seconds: float
    obtained: bool
    unreleased_predecessors: bool = False  # whether earlier holders never released the lock


@dataclass(frozen=True, slots=True)
class AppendStarted:
    """A request holds the lock of an upload and begins to append; `upload` is the record before.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class AppendEnded:
    """An append ended, whether it failed or not; `upload` is the record as committed.

    Subscribed to like `UploadFinished`, which has an example.
    """

    upload: Upload


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One request was answered, or its client went away (status 0).

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


@dataclass(frozen=True, slots=True)
class JobFinished:
    """A run of a periodic job ended after `seconds`; `succeeded` is False if it raised an exception.

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
