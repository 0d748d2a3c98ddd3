"""The parser of the command line: the commands, and a flag for every setting."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tusd_py import __version__
from tusd_py.commands.options import (
    EVENTS,
    EVENTS_USAGE,
    UPLOADS,
    UPLOADS_USAGE,
    add_event_options,
    add_upload_options,
)
from tusd_py.commands.sign import SIGN, add_sign
from tusd_py.contracts.auth import KNOWN_SCOPES
from tusd_py.settings import FIELDS, did_you_mean, flag_name
from tusd_py.settings.help import choices, readable_default

COMMANDS = {
    "serve": "serve uploads",
    "sweep": "remove expired uploads, and what crashes left behind, once",
    "adopt-storage": "join the records with the storage of these settings although they name another one",
    "migrate": "copy the records to another store, with the server stopped",
    "import-tusd": "take over a directory of tusd",
    "uploads": "list, show, count and end uploads",
    "events": "show and change the events that wait for their sinks",
    "config": "print the effective settings and where each came from",
}
USAGE = {
    "sweep": "[--dry-run] ",
    "migrate": "--from STORE --to STORE [--dry-run] ",
    "import-tusd": "DIR [--copy] [--dry-run] ",
}
TOKEN = "make tokens for programs"
NEW_TOKEN = "print a new token, and its line for the file of --api-tokens-file"
SCOPES = sorted(KNOWN_SCOPES)
UNITS = (
    "Sizes are bytes, or numbers with KB, MB, GB, TB, KiB, MiB, GiB or TiB; times are seconds, or numbers with ms, s,"
    " m, h or d. Each setting is also a variable, --max-size as TUSD_PY_MAX_SIZE, and a key of the TOML file;"
    " flags win over variables, and variables over the file."
)
OWN_OPTIONS = (
    "dry_run", "source", "target", "directory", "copy", "action", "ids", "everything", "as_json", "status", "owner",
)  # fmt: skip
OTHER_FLAGS = [
    "--config",
    "--help",
    "--version",
    "--dry-run",
    "--all",
    "--json",
    "--scope",
    "--expires",
    "--owner",
    "--state",
    "--types",
    "--metadata",
]
USAGE_ERROR = 2  # the exit code for a mistake in the arguments or settings


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in two lines, with a similar flag or command as a hint.

    The many options of a command are added by `fill` once it is the one to be parsed.
    """

    fill: Callable[[Parser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse these arguments, of a command without its name."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit."""
        message = message.replace("ignored explicit argument", "no value is accepted,")
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}{_meant(message)}\nSee: {self.prog} --help\n")


def _meant(message: str) -> str:
    """Return a hint for a message of argparse that names an unknown flag or command; empty if there is none."""
    command = re.search(r"argument COMMAND: invalid choice: '([^']*)'", message)
    if command:
        return did_you_mean(
            command[1], [*COMMANDS, "version", "token", "sign", *EVENTS, *UPLOADS, "new", "create", "download"]
        )
    flags = [flag_name(name) for name in FIELDS] + OTHER_FLAGS
    for word in message.removeprefix("unrecognized arguments: ").split():
        flag = word.partition("=")[0].rstrip(":")
        if flag.startswith("-") and flag not in flags:
            return did_you_mean("--" + flag.lstrip("-").replace("_", "-"), flags)
    return ""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands, with a flag for every setting.

    A flag that is not given is missing in the result, so that a variable or the file may give the setting.
    """
    parser = Parser(prog="tusd-py", description="A tus server: resumable uploads over HTTP.")
    parser.add_argument("--version", action="version", version=f"tusd-py {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == "events":
            add_events(commands.add_parser(name, help=text, description=text))
        elif name == "uploads":
            add_uploads(commands.add_parser(name, help=text, description=text))
        else:
            add_command(commands, name, text, f"{name} {USAGE.get(name, '')}", partial(add_own_options, name))
    add_token(commands.add_parser("token", help=TOKEN, description=TOKEN))
    add_sign(commands.add_parser("sign", help=SIGN, description=SIGN))
    commands.add_parser("version", help="print the version")
    return parser


def add_command(commands: Any, name: str, text: str, usage: str, add_own: Callable[[Parser], None]) -> None:
    """Add a command with a flag for every setting, and the options of its own that `add_own` adds."""
    command: Parser = commands.add_parser(
        name,
        help=text,
        description=text,
        usage=f"tusd-py {usage}[--SETTING VALUE]...",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=UNITS,
    )

    def fill(parser: Parser) -> None:
        parser.add_argument("--config", type=Path, default=None, metavar="FILE", help="TOML file with settings")
        add_settings(parser)
        add_own(parser)

    command.fill = fill


def add_events(parser: argparse.ArgumentParser) -> None:
    """Add the commands of the outbox."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    for name, text in EVENTS.items():
        usage = f"events {name} {EVENTS_USAGE[name]}[--json] "
        add_command(actions, name, text, usage, partial(add_event_options, name))


def add_uploads(parser: argparse.ArgumentParser) -> None:
    """Add the commands about uploads."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    for name, text in UPLOADS.items():
        usage = f"uploads {name} {UPLOADS_USAGE[name]}[--json] "
        add_command(actions, name, text, usage, partial(add_upload_options, name))


def add_token(parser: argparse.ArgumentParser) -> None:
    """Add the command that makes API tokens."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    new = actions.add_parser("new", help=NEW_TOKEN, description=NEW_TOKEN)
    new.add_argument("name", metavar="NAME", help="the owner of the uploads that are made with the token")
    new.add_argument("--scope", action="append", default=[], metavar="SCOPE", help=f"one of {', '.join(SCOPES)}")


def add_own_options(name: str, command: argparse.ArgumentParser) -> None:
    """Add the options of a command that are not settings (`OWN_OPTIONS`)."""
    if name in ("sweep", "migrate", "import-tusd"):
        command.add_argument("--dry-run", action="store_true", default=False, help="only print what would be done")
    if name == "migrate":
        for flag, target in (("--from", "source"), ("--to", "target")):
            text = f"the store to copy the records {flag[2:]}"
            command.add_argument(flag, dest=target, required=True, choices=("sqlite", "redis"), help=text)
    if name == "import-tusd":
        command.add_argument("directory", type=Path, metavar="DIR", help="the upload directory of tusd")
        command.add_argument("--copy", action="store_true", default=False, help="make no links to the files in DIR")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, with its description and default."""
    for name, field in FIELDS.items():
        text = (field.description or "").replace("%", "%%")
        extra: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation in (bool, bool | None):
            extra = {"action": argparse.BooleanOptionalAction}
        else:
            if choices(name):
                text += f": {', '.join(filter(None, choices(name)))}"
            default = readable_default(name).replace("%", "%%")
            text += f" (default: {default})" if default else ""
        parser.add_argument(flag_name(name), dest=name, help=text, **extra)
