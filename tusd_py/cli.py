"""The command line: `tusd-py serve | sweep | migrate | import-tusd | uploads | events | token | sign | config`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tusd_py import __version__
from tusd_py.admin.make import build_admin_token
from tusd_py.commands.events import CommandError, run_events
from tusd_py.commands.parser import OWN_OPTIONS, USAGE_ERROR, build_parser
from tusd_py.commands.progress_line import ProgressLine, watched_terminal
from tusd_py.commands.sign import run_sign
from tusd_py.commands.token import run_token
from tusd_py.commands.uploads import run_uploads
from tusd_py.composition import build_authenticator, build_service, build_signing_keys
from tusd_py.core.command_progress import no_progress
from tusd_py.core.errors import StateUnavailable, UploadError
from tusd_py.core.listing import UploadFilter
from tusd_py.core.redaction import without_secrets
from tusd_py.core.upload import Status
from tusd_py.events.bus import EventBus
from tusd_py.lifecycle import opened
from tusd_py.migration.report import abbreviated, no_report
from tusd_py.migration.state_copy import StateKind, has_records, migrate, records_file
from tusd_py.migration.tusd.files import import_tusd
from tusd_py.observability.logging import announce, configure, formats_json
from tusd_py.settings import (
    FIELDS,
    InvalidSettings,
    Loaded,
    Settings,
    load,
    unknown_variables,
    value_of,
)
from tusd_py.sinks import build_sinks
from tusd_py.uploads.queries import RecordQueries
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import OrphanCleaner, Sweeper
from tusd_py.uvicorn_server.malloc import tune_malloc
from tusd_py.uvicorn_server.process import BACKLOG, allow_successor, bind, limit_of, reserve, run_server
from tusd_py.uvicorn_server.supervisor import Supervisor
from tusd_py.uvicorn_server.terminal import handle_hangups
from tusd_py.uvicorn_server.unix_sockets import bound_unix

# The exit codes that a shell gives to programs ended by these signals.
OUTPUT_CLOSED = 128 + signal.SIGPIPE
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with the arguments of the process, or those given; return the exit code."""
    try:
        code = run_command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def run_command(arguments: Sequence[str] | None) -> int:
    """Parse the arguments, load the settings and run the command; return the exit code."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "token":
        return run_token_command(options["name"], options["scope"])
    if command == "sign":
        return run_sign_command(options)
    if command == "version":
        print(f"tusd-py {__version__}")
        return 0
    config = options.pop("config")
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    try:
        loaded = load(options, config)
    except InvalidSettings as error:
        return fail(str(error))
    if command != "config":
        configure(loaded.settings.log_format, loaded.settings.log_level)
    for name, hint in unknown_variables().items():
        report_error(f"unknown environment variable {name}: no such setting{hint}")
    if command == "config":
        return print_config(loaded)
    return RUN[command](loaded.settings, **own)


def print_config(loaded: Loaded) -> int:
    """Print every setting, without passwords and tokens, and where its value came from; return the exit code."""
    for name in FIELDS:
        value = value_of(loaded.settings, name)
        items = value if isinstance(value, tuple) else ("" if value is None else value,)
        text = ",".join(without_secrets(item) if isinstance(item, str) else str(item) for item in items)
        print(f"{name} = {text}  # {loaded.origins[name]}")
    return 0


def run_serve(settings: Settings) -> int:
    """Serve until a signal ends the process; return the exit code."""
    if not settings.disable_malloc_tuning:
        tune_malloc()
    try:
        limit_of(settings)
        check(settings)
    except InvalidSettings as error:
        return fail(str(error))
    except UploadError as error:
        return fail(error.message, 1)
    with contextlib.ExitStack() as sockets:
        try:
            reserved = sockets.enter_context(_reserved(settings, "port", settings.port))
            admin = None
            if settings.admin_port is not None:
                admin = sockets.enter_context(_reserved(settings, "admin-port", settings.admin_port))
            metrics = _metrics_sockets(settings, sockets)
        except UploadError as error:
            return fail(error.message, 1)

        def listening() -> None:
            if settings.workers == 1:  # a supervisor starts processes again and listens again
                for kept in [reserved] if admin is None else [reserved, admin]:
                    allow_successor(kept)
            if admin is not None:
                announce(logging.INFO, f"administrators are served on {_origin_of(admin)}/admin/api")
            for one in metrics:
                announce(logging.INFO, f"metrics are served on {_origin_of(one)}/metrics")
            announce(logging.INFO, f"tusd-py {__version__} is listening on {_origin_of(reserved)}{settings.base_path}")

        if settings.workers > 1:
            return Supervisor(settings, reserved, admin, metrics).run(listening)
        handle_hangups()
        listener = sockets.enter_context(_beside(reserved))
        admin_listener = None if admin is None else sockets.enter_context(_beside(admin))
        run_server(settings, listener, listening, admin_listener, metrics)
    return 0


def _reserved(settings: Settings, flag: str, port: int) -> socket.socket:
    """Return a socket that keeps a port; raises `StateUnavailable` with the reason why that is not possible."""
    try:
        return reserve((settings.host, port))
    except OSError as error:
        raise StateUnavailable(f"--host {settings.host} --{flag} {port}: {error.strerror}") from error


def _metrics_sockets(settings: Settings, sockets: contextlib.ExitStack) -> list[socket.socket]:
    """Return the sockets of /metrics alone, which `sockets` closes; raises `StateUnavailable` with a reason.

    They listen at once, so that no other server that starts at this moment gets them too.
    """
    bound = []
    place = f"--host {settings.host} --metrics-port {settings.metrics_port}"
    try:
        if settings.metrics_port is not None:
            bound.append(sockets.enter_context(bind((settings.host, settings.metrics_port))))
            bound[0].listen(BACKLOG)
        if settings.metrics_socket is not None:
            place = f"--metrics-socket {settings.metrics_socket}"
            bound.append(sockets.enter_context(bound_unix(settings.metrics_socket, BACKLOG)))
    except OSError as error:
        raise StateUnavailable(f"{place}: {error.strerror or error}") from error
    return bound


def _beside(reserved: socket.socket) -> socket.socket:
    """Return a socket bound to an address that this process keeps."""
    return bind(reserved.getsockname(), shared=True)


def _origin_of(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}, at "
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check(settings: Settings) -> None:
    """Open every component once, so that a wrong one is reported in one line.

    Raises `UploadError`, `InvalidSettings`.
    """
    service = build_service(settings, EventBus())
    build_sinks(settings)
    authenticates = build_authenticator(settings) is not None
    build_signing_keys(settings)
    is_administrated = build_admin_token(settings) is not None or authenticates
    if settings.admin_port is not None and not is_administrated:
        raise InvalidSettings("--admin-port needs --admin-token-file, or authentication")
    if settings.metrics_auth and not is_administrated:
        raise InvalidSettings("--metrics-auth needs --admin-token-file, or authentication")
    if settings.admin_port == settings.port != 0:
        raise InvalidSettings(f"--admin-port {settings.admin_port} must be another port than --port")
    if settings.metrics_port and settings.metrics_port in (settings.port, settings.admin_port):
        other = "port" if settings.metrics_port == settings.port else "admin-port"
        raise InvalidSettings(f"--metrics-port {settings.metrics_port} must be another port than --{other}")

    async def open_and_close() -> None:
        async with opened(service, settings):
            if is_administrated:
                await RecordQueries(service.state).prepare()  # once, before several processes would do so

    asyncio.run(open_and_close())


def run_sweep(settings: Settings, *, dry_run: bool) -> int:
    """Remove expired uploads and orphans, and complete finishing uploads, once; return the exit code."""
    failures: list[str] = []
    line = ProgressLine(watched_terminal())
    report = line.before(print)

    async def run(service: UploadService) -> None:
        async with opened(service, settings):
            sweeper = Sweeper(service)
            if dry_run:
                async for upload in sweeper.expired():
                    report(f"{upload.id} {upload.offset} bytes")
            else:
                report(str(await sweeper.sweep(failures.append, progress=line.stage("due uploads"))))
            async for broken in service.broken():
                line.clear()
                report_error(
                    f"the record of upload {abbreviated(broken.upload_id)} cannot be read: {abbreviated(broken.reason)}"
                )
            compared = line.stage("records compared with the storage")
            for orphan in await OrphanCleaner(service).clean(dry_run=dry_run, progress=compared):
                report(f"{'' if dry_run else 'removed the '}orphaned {orphan.kind} {orphan.name}")

    try:
        if not (settings.redis.url or settings.state_plugin or has_records(settings)):
            return fail(f"there are no records in {records_file(settings)}", 1)
        with line:
            asyncio.run(run(build_service(settings, EventBus())))
    except InvalidSettings as error:
        return fail(str(error))
    except UploadError as error:
        return fail(error.message, 1)
    for failure in failures:
        report_error(failure)
    return 1 if failures else 0


def run_adopt(settings: Settings) -> int:
    """Join the records with the storage of these settings; return the exit code."""

    async def run(service: UploadService) -> int:
        async with opened(service, settings, adopt=True):
            return await service.count()

    try:
        count = asyncio.run(run(build_service(settings, EventBus())))
    except InvalidSettings as error:
        return fail(str(error))
    except UploadError as error:
        return fail(error.message, 1)
    print(f"{count} records now name this storage; uploads whose bytes are not in it count as lost")
    return 0


def run_migrate(settings: Settings, *, source: StateKind, target: StateKind, dry_run: bool) -> int:
    """Copy the records from one state store to the other; return the exit code."""
    if source == target:
        return fail(f"--from and --to are both {source}")
    if settings.redis.url is None:
        return fail("--redis-url is missing")
    try:
        with ProgressLine(watched_terminal()) as line:
            summary = asyncio.run(migrate(settings, source, target, dry_run=dry_run, **_reports(line, dry_run=dry_run)))
    except UploadError as error:
        return fail(error.message, 1)
    print(f"{summary.copied} {'to copy' if dry_run else 'copied'}, {summary.skipped} there already")
    if summary.refused:
        return fail(f"{summary.refused} not copied", 1)
    if not dry_run:
        print(f"now start the server {'with the same' if target == 'redis' else 'without'} --redis-url")
    return 0


def run_import(settings: Settings, *, directory: Path, copy: bool, dry_run: bool) -> int:
    """Import a directory of tusd; return the exit code."""
    try:
        with ProgressLine(watched_terminal()) as line:
            reports = _reports(line, dry_run=dry_run)
            summary = asyncio.run(import_tusd(settings, directory, copy=copy, dry_run=dry_run, **reports))
    except UploadError as error:
        return fail(error.message, 1)
    print(f"{summary.copied} {'to import' if dry_run else 'imported'}, {summary.skipped} there already")
    return fail(f"{summary.refused} not imported", 1) if summary.refused else 0


def _reports(line: ProgressLine, *, dry_run: bool) -> dict[str, Any]:
    """Return what a migration calls on its way: a line for each upload is for a dry run only."""
    return {
        "report": line.before(print) if dry_run else no_report,
        "report_error": line.before(report_error),
        "progress": line.stage("uploads") if line.is_shown else no_progress,
    }


def run_token_command(name: str, scopes: Sequence[str]) -> int:
    """Print a new API token; return the exit code."""
    try:
        run_token(name, scopes)
    except ValueError as error:
        return fail(f"token new: {error}")
    return 0


def run_sign_command(options: dict[str, Any]) -> int:
    """Print a signed URL; return the exit code."""
    try:
        run_sign(options)
    except ValueError as error:
        return fail(f"sign {options['action']}: {error}")
    return 0


def run_events_command(settings: Settings, *, action: str, ids: Sequence[str], everything: bool, as_json: bool) -> int:
    """Show or change the outbox; return the exit code."""
    if action == "retry" and bool(ids) == everything:
        return fail("events retry: give the ids of events, or --all")
    try:
        run_events(settings, action, ids, everything=everything, as_json=as_json)
    except InvalidSettings as error:
        return fail(str(error))
    except CommandError as error:
        return fail(str(error), 1)
    except UploadError as error:
        return fail(error.message, 1)
    return 0


def run_uploads_command(
    settings: Settings, *, action: str, ids: Sequence[str], status: str | None, owner: str | None, as_json: bool
) -> int:
    """List, show or count uploads; return the exit code."""
    condition = UploadFilter(None if status is None else Status(status), owner)
    try:
        run_uploads(settings, action, ids, condition, as_json=as_json)
    except InvalidSettings as error:
        return fail(str(error))
    except CommandError as error:
        return fail(str(error), 1)
    except UploadError as error:
        return fail(error.message, 1)
    return 0


def report_error(message: str) -> None:
    """Print a mistake or failure that does not end the command."""
    fail(message)


def fail(message: str, code: int = USAGE_ERROR) -> int:
    """Print in one line why the command ends; return the exit code."""
    if formats_json():
        announce(logging.ERROR, message)
        return code
    print(f"tusd-py: {message}", file=sys.stderr)
    return code


RUN: dict[str, Callable[..., int]] = {
    "serve": run_serve,
    "sweep": run_sweep,
    "adopt-storage": run_adopt,
    "migrate": run_migrate,
    "import-tusd": run_import,
    "uploads": run_uploads_command,
    "events": run_events_command,
}
