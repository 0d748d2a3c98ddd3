"""`tusd-py events list | show | retry | drop`: the outbox, with and without a running server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence

from tusd_py.admin.documents import delivery_document, delivery_state
from tusd_py.contracts.outbox import Outbox
from tusd_py.core.clock import rfc3339
from tusd_py.core.outbox import Delivery, OutboxEvent
from tusd_py.lifecycle import opened_outbox
from tusd_py.migration.state_copy import has_records, records_file
from tusd_py.outbox.cloudevents import data_of, type_name
from tusd_py.settings import Settings

PAGE_SIZE = 200  # deliveries


class CommandError(Exception):
    """The command cannot do what it was asked for; the text is one sentence."""


def run_events(settings: Settings, action: str, ids: Sequence[str], *, everything: bool, as_json: bool) -> None:
    """Run one of the commands, and print its result.

    Args:
        settings: choose the records.
        action: `list`, `show`, `retry` or `drop`.
        ids: events to act on; for `show` one.
        everything: act on all events, for `retry`.
        as_json: print JSON.

    Raises:
        CommandError: an event is unknown, or there are no records.
        UploadError: the records cannot be used.
    """
    if not (settings.redis.url or settings.state_plugin or has_records(settings)):
        raise CommandError(f"there are no records in {records_file(settings)}")

    async def run(outbox: Outbox) -> None:
        if action == "list":
            await _list(outbox, as_json=as_json)
        elif action == "show":
            await _show(outbox, ids[0], as_json=as_json)
        elif action == "retry":
            changed = await outbox.retry(None if everything else ids)
            _report_changed(changed, ids, "due now", as_json=as_json)
        else:
            _report_changed(await outbox.drop(ids), ids, "dropped", as_json=as_json)

    asyncio.run(_with_outbox(settings, run))


async def _with_outbox(settings: Settings, work: Callable[[Outbox], Awaitable[None]]) -> None:
    async with opened_outbox(settings) as outbox:
        await work(outbox)


async def _list(outbox: Outbox, *, as_json: bool) -> None:
    after, first = "", True
    while True:
        page = await outbox.deliveries(after, PAGE_SIZE)
        for delivery in page.deliveries:
            if as_json:
                sys.stdout.write(f"{'[' if first else ','}\n{json.dumps(delivery_document(delivery))}")
            else:
                print(_line(delivery))
            first = False
        if not page.after:
            break
        after = page.after
    if as_json:
        sys.stdout.write("[]\n" if first else "\n]\n")
    elif first:
        print("no event waits, and there are no dead letters")


def _line(delivery: Delivery) -> str:
    event = delivery.event
    words = [event.id, rfc3339(event.time), type_name(event), event.upload_id, delivery.sink, str(delivery.status)]
    return "  ".join([*words, f"{delivery.attempts} attempts", delivery.error]).rstrip()


async def _show(outbox: Outbox, event_id: str, *, as_json: bool) -> None:
    found = await outbox.find_event(event_id)
    if not found:
        raise CommandError(f"no event {_plain(event_id)} waits")
    event: OutboxEvent = found[0].event
    shown = {
        "id": event.id,
        "type": type_name(event),
        "upload": event.upload_id,
        "sequence": event.sequence,
        "time": rfc3339(event.time),
        "deliveries": [delivery_state(delivery) for delivery in found],
        "data": data_of(event),
    }
    print(json.dumps(shown, indent=None if as_json else 2, ensure_ascii=as_json))


def _report_changed(changed: Sequence[str], ids: Sequence[str], done: str, *, as_json: bool) -> None:
    """Print how many events were changed; raise `CommandError` if one of those that were named is unknown."""
    unknown = sorted(set(ids) - set(changed))
    if as_json:
        print(json.dumps({"changed": list(changed), "unknown": unknown}))
    else:
        print(f"{len(changed)} {'event' if len(changed) == 1 else 'events'} {done}")
    if unknown:
        raise CommandError(f"no such event: {', '.join(map(_plain, unknown))}")


def _plain(text: str) -> str:
    """Return an argument without control characters, for a message."""
    return "".join(character if character.isprintable() else "?" for character in text)[:64]
