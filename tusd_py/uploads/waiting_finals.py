"""Final uploads that cannot be completed yet: they wait for a partial upload, or for the storage.

A final upload waits for one partial upload at a time, the first unfinished one, and the state store knows which. So the
end of a partial upload costs as much as there are final ones that wait for it, and a sweep looks only at those whose
time has come: `expires_at` of an unfinished final upload is the time of the next attempt, in case that no process
noticed the end of its partial upload.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from tusd_py.contracts.state import StateStore
from tusd_py.core.clock import SteadyClock
from tusd_py.core.errors import PartialUnfinished, ServerShutdown, UploadError
from tusd_py.core.upload import Upload

MIN_DELAY = 60.0  # seconds until a final upload is tried again; doubled with every try
MAX_DELAY = 3600.0
BATCH = 100


class WaitingFinals:
    """The final uploads that wait for partial ones, as the state store keeps them."""

    def __init__(self, state: StateStore, clock: SteadyClock) -> None:
        self._state = state
        self._clock = clock

    async def wait_for_part(self, final: Upload, unfinished: PartialUnfinished) -> bool:
        """Record that a final upload waits for a partial one; return False if that one was finished or removed.

        The entry is written before the partial upload is read again: a request that finishes it after that read finds
        the entry.
        """
        await self._state.add_waiting(unfinished.partial_id, final.id)
        partial = await self._state.get(unfinished.partial_id)
        return partial is not None and not partial.is_complete and not partial.is_gone(self._clock.steady())

    async def postpone(self, final: Upload, token: int) -> Upload:
        """Let the sweeper try again later; the delay grows with the age of the upload."""
        now = self._clock.wall()
        if final.expires_at is not None and final.expires_at > self._clock.steady():
            return final
        delay = min(max(MIN_DELAY, now - final.created_at), MAX_DELAY)
        return await self._state.update(final, replace(final, expires_at=now + delay), token)

    async def partial_ended(self, partial_id: str, resume: Callable[[str], Awaitable[object]]) -> None:
        """Call `resume` with every final upload that waits for this partial one, which was finished or removed."""
        while final_ids := await self._state.waiting_for(partial_id, BATCH):
            for final_id in final_ids:
                try:
                    await resume(final_id)
                except ServerShutdown:  # the sweeper tries again
                    return
                except UploadError:
                    pass  # the final upload can never be completed, or the sweeper tries again
            await self._state.remove_waiting(partial_id, final_ids)
