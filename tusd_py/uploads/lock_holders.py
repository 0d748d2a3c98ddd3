"""Lock holders other than an append."""

from __future__ import annotations

from tusd_py.contracts.locks import LockHolder


class NonInterruptibleHolder:
    """A lock holder for a short piece of work, which ignores requests to release or commit."""

    def release_requested(self) -> None: ...

    def commit_requested(self) -> None: ...

    def lock_lost(self) -> None: ...


class DeferredHolder:
    """A lock holder for an append that is not created yet, which keeps the requests for it."""

    def __init__(self) -> None:
        self._target: LockHolder | None = None
        self._release = False
        self._commit = False
        self._lost = False

    @property
    def target(self) -> LockHolder | None:
        return self._target

    @target.setter
    def target(self, append: LockHolder) -> None:
        self._target = append
        if self._lost:
            append.lock_lost()
        elif self._release:
            append.release_requested()
        elif self._commit:
            append.commit_requested()

    def append_ended(self) -> None:
        """Forget the append, which the lock would keep otherwise: the append refers to the lock, in a cycle."""
        self._target = None

    def release_requested(self) -> None:
        self._release = True
        if self._target is not None:
            self._target.release_requested()

    def commit_requested(self) -> None:
        self._commit = True
        if self._target is not None:
            self._target.commit_requested()

    def lock_lost(self) -> None:
        self._lost = True
        if self._target is not None:
            self._target.lock_lost()
