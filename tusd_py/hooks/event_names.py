"""The hooks that tell of stored events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tusd_py.contracts.hooks import HookType
from tusd_py.core.outbox import EventType

EVENT_OF: Mapping[HookType, EventType] = {
    HookType.POST_CREATE: EventType.CREATED,
    HookType.POST_FINISH: EventType.FINISHED,
    HookType.POST_TERMINATE: EventType.TERMINATED,
    HookType.INTERRUPTED: EventType.INTERRUPTED,
    HookType.EXPIRED: EventType.EXPIRED,
}
HOOK_OF = {event: hook for hook, event in EVENT_OF.items()}


def hook_of(event: EventType) -> HookType:
    """Return the hook that tells of an event."""
    return HOOK_OF[event]


def events_of(hooks: Iterable[HookType]) -> frozenset[EventType]:
    """Return the events that some of the hooks tell of."""
    return frozenset(EVENT_OF[hook] for hook in hooks if hook in EVENT_OF)
