"""The contract of questions to other processes about the locks that they hold.

Only the holder of a lock knows the request that it works for, and so it is asked; nothing is written when a lock is
acquired.

**Bounds.** A question ends after its timeout; processes that have not answered by then are counted.

**Threads.** All methods are called in the event loop and must not block it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from tusd_py.core.lock_reports import Answers


@runtime_checkable
class AsksProcesses(Protocol):
    """The connection of one process to the others that share its uploads; a change feed may be one."""

    def answer_with(self, reports: Callable[[], str]) -> None:
        """Answer questions of other processes with the text that a function returns."""

    async def ask_for_locks(self, timeout: float) -> Answers:
        """Ask all other processes for the locks that they hold, for so many seconds at most.

        Raises:
            StateUnavailable: nobody can be asked now.
        """
