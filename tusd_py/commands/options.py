"""Options of the commands about events and uploads."""

from __future__ import annotations

import argparse
from typing import Any

from tusd_py.core.upload import Status

EVENTS = {
    "list": "print the events that wait, and the dead letters",
    "show": "print one event with its data, and its state at each sink",
    "retry": "deliver events now, dead letters too",
    "drop": "remove events without delivering them",
}
EVENTS_USAGE = {"list": "", "show": "ID ", "retry": "(ID... | --all) ", "drop": "ID... "}
UPLOADS = {
    "list": "print uploads, the newest first",
    "show": "print one upload and its history",
    "terminate": "remove uploads with their bytes",
    "complete": "complete an abandoned upload of unknown length at its offset",
    "stats": "print the number of uploads and their bytes, by status and by owner",
}
UPLOADS_USAGE = {
    "list": "[--state STATE] [--owner NAME] ",
    "show": "ID ",
    "terminate": "ID... ",
    "complete": "ID ",
    "stats": "",
}


def add_event_options(name: str, action: argparse.ArgumentParser) -> None:
    """Add the options of a command of the outbox that are not settings (`OWN_OPTIONS`)."""
    action.set_defaults(ids=[], everything=False)
    action.add_argument("--json", dest="as_json", action="store_true", default=False, help="print JSON")
    if name == "retry":
        action.add_argument("--all", dest="everything", action="store_true", help="every event")
    if name != "list":
        count: Any = {"show": 1, "retry": "*", "drop": "+"}[name]
        action.add_argument("ids", nargs=count, metavar="ID", help="the id of an event, as `list` prints it")


def add_upload_options(name: str, action: argparse.ArgumentParser) -> None:
    """Add the options of a command about uploads that are not settings (`OWN_OPTIONS`)."""
    action.set_defaults(ids=[], status=None, owner=None)
    action.add_argument("--json", dest="as_json", action="store_true", default=False, help="print JSON")
    if name == "list":
        states = [str(status) for status in Status]
        action.add_argument("--state", dest="status", choices=states, metavar="STATE", help=", ".join(states))
        action.add_argument("--owner", metavar="NAME", help="the principal that created the uploads")
    if name in ("show", "terminate", "complete"):
        count: Any = "+" if name == "terminate" else 1
        action.add_argument("ids", nargs=count, metavar="ID", help="the id of an upload, as `list` prints it")
