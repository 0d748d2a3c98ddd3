"""The contract of blocking hooks: the application decides about an upload before the server goes on.

A hook that cannot be asked raises `HookUnavailable`: nothing is created, removed or completed then, and the client is
told to try again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tusd_py.core.buffers import Buffer
from tusd_py.core.hook_response import HookResponse as HookResponse
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload


class HookType(StrEnum):
    """The name of a hook, as in tusd."""

    PRE_CREATE = "pre-create"
    POST_CREATE = "post-create"
    POST_RECEIVE = "post-receive"
    PRE_FINISH = "pre-finish"
    POST_FINISH = "post-finish"
    PRE_TERMINATE = "pre-terminate"
    POST_TERMINATE = "post-terminate"
    INTERRUPTED = "interrupted"
    EXPIRED = "expired"


# Hooks that are asked. The others are events, which are stored first and delivered afterwards.
BLOCKING = frozenset({HookType.PRE_CREATE, HookType.PRE_FINISH, HookType.PRE_TERMINATE, HookType.POST_RECEIVE})


@dataclass(frozen=True, slots=True)
class HookCall:
    """A question to a hook.

    Attributes:
        type: the hook.
        upload: the record; before the creation as it is about to be, with an empty id.
        request: the request that caused the call, with all its header fields; None for what the server does by itself.
        storage: where the bytes are: `type` and `path`, or `bucket` and `key`; empty before the creation.
        read: yields the stored bytes from one offset up to another; None where they cannot be read yet.
    """

    type: HookType
    upload: Upload
    request: RequestContext | None = None
    storage: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[int, int], AsyncIterator[Buffer]] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class UploadChanges:
    """Changes of `pre_create` to a new upload; None leaves a property as it is.

    Attributes:
        id: the id, which must not exist yet.
        metadata: replaces all pairs.
        path: the place of the bytes: a path below the upload directory; not for partial uploads.
        expires_at: seconds since the epoch, when the upload expires unless it is complete; not for final uploads.
        owner: the principal that the upload belongs to, never empty.
        max_size: bytes that the upload may have at most, where the server allows more.
    """

    id: str | None = None
    metadata: Mapping[str, str] | None = None
    path: str | None = None
    expires_at: float | None = None
    owner: str | None = None
    max_size: int | None = None


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """The answer of a hook.

    Attributes:
        response: for the client.
        reject: the upload is not created, is removed instead of completed, or is not terminated.
        changes: of a new upload.
        stop: end a running upload (`post_receive`); it is removed.
    """

    response: HookResponse | None = None
    reject: bool = False
    changes: UploadChanges | None = None
    stop: bool = False


NO_OPINION = HookAnswer()


class AsksHooks(Protocol):
    """Hooks that decide, of one kind."""

    def handles(self, hook: HookType) -> bool:
        """Return whether this hook is asked at all."""

    async def ask(self, call: HookCall) -> HookAnswer:
        """Ask the application.

        Raises:
            HookUnavailable: there is no valid answer.
        """


class BlockingHooks(AsksHooks, Protocol):
    """All hooks of a server that decide."""

    async def open(self) -> None:
        """Make the hooks ready, again after `close`."""

    async def close(self) -> None:
        """Release every connection."""
