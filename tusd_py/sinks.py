"""The hooks of a server, the sinks of its events and their delivery, built from the settings."""

from __future__ import annotations

from functools import partial

from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.outbox import Outbox, Sink, SupportsOutbox
from tusd_py.contracts.state import StateStore
from tusd_py.hooks.make import Hooks
from tusd_py.hooks.signing import read_secrets
from tusd_py.http_client.tls import make_context
from tusd_py.outbox.cloudevents import render
from tusd_py.outbox.relay import OutboxRelay
from tusd_py.outbox.sink_worker import DeliveryOptions
from tusd_py.outbox.sinks.make import MissingPackage, make_sink
from tusd_py.settings import InvalidSettings, Settings
from tusd_py.uploads.options import SinkOptions
from tusd_py.uploads.service import UploadService

SEND_TIMEOUT = 30.0  # seconds for one attempt to deliver an event
SEND_MARGIN = 5.0  # seconds that an attempt has beyond the time that the settings give to an executable or an endpoint


def build_hooks(settings: Settings, given: object | None = None) -> Hooks:
    """Build the hooks of the application. Blocks: reads the secrets, imports the object that the settings name.

    `given` is an object of the application in place of that one. Raises `InvalidSettings`.
    """
    try:
        return Hooks(settings.hooks, given)
    except ValueError as error:
        raise InvalidSettings(f"hooks: {error}") from error


def sink_options(settings: Settings, hooks: Hooks) -> tuple[SinkOptions, ...]:
    """Return the names of the sinks that `build_relay` makes, each with the events that it gets."""
    named = [SinkOptions(address.name) for address in settings.events.addresses]
    return (*named, *(SinkOptions(name, kinds) for name, kinds in hooks.events()))


def build_sinks(settings: Settings) -> list[Sink]:
    """Build the sinks of events, without network. Blocks: reads the secrets and the files of TLS.

    Raises:
        InvalidSettings: the package of a broker is missing, or the secrets or the files of TLS cannot be used.
    """
    render_event = partial(render, source=settings.public_url or settings.base_path)
    try:
        secrets = read_secrets(settings.hooks.http_secret_file) if settings.hooks.http_secret_file else ()
    except ValueError as error:
        raise InvalidSettings(f"hooks_http_secret_file: {error}") from error
    try:
        context = None if settings.hooks.tls is None else make_context(settings.hooks.tls)
        return [make_sink(address, render_event, secrets, context) for address in settings.events.addresses]
    except MissingPackage as error:
        raise InvalidSettings(str(error)) from error
    except ValueError as error:
        raise InvalidSettings(f"hooks_http: {error}") from error


def build_relay(
    settings: Settings,
    service: UploadService,
    hooks: Hooks,
    instrumentation: Instrumentation = NO_INSTRUMENTATION,
) -> OutboxRelay | None:
    """Build the relay of the events of a service to the sinks of its settings and of its hooks.

    Returns None without sinks. Raises `InvalidSettings`.
    """
    sinks = [*build_sinks(settings), *hooks.sinks(service.downloads.read, instrumentation)]
    if not sinks:
        return None
    send_timeout = max(SEND_TIMEOUT, settings.hooks.longest_call + SEND_MARGIN)
    options = DeliveryOptions(give_up=settings.events.give_up, send_timeout=send_timeout)
    outbox = outbox_of(service.state)
    relay = OutboxRelay(sinks, outbox, service.locker, service.clock, options, instrumentation)
    service.observe_stored_events(relay.wake)
    return relay


def outbox_of(state: StateStore, need: str = "events_to needs") -> Outbox:
    """Return the outbox of a state store; raises `InvalidSettings` if it has none."""
    if not isinstance(state, SupportsOutbox):
        kind = type(state).__name__
        raise InvalidSettings(f"{need} records that keep events: SQLite and Redis do, {kind} does not")
    return state.outbox
