"""Hooks made from the settings, and the Python objects that an application gives."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from tusd_py.contracts.hooks import BLOCKING, AsksHooks, BlockingHooks
from tusd_py.contracts.instrumentation import NO_INSTRUMENTATION, Instrumentation
from tusd_py.contracts.outbox import Sink
from tusd_py.core.outbox import EventType
from tusd_py.hooks.chain import HookChain
from tusd_py.hooks.command_hooks import CommandHooks, CommandHookSink, Commands
from tusd_py.hooks.config import HooksConfig
from tusd_py.hooks.event_names import EVENT_OF, events_of
from tusd_py.hooks.http_hooks import HttpHookOptions, HttpHooks, HttpHookSink
from tusd_py.hooks.measured_sink import MeasuredSink
from tusd_py.hooks.python_hooks import PythonHooks, PythonHookSink, Reader, check_hooks, method_of
from tusd_py.hooks.signing import read_secrets
from tusd_py.http_client.client import HttpClient, endpoint_name, parse_http_url
from tusd_py.http_client.tls import make_context


def load_object(place: str) -> object:
    """Import the object `MODULE:NAME`; raises `ValueError` with one sentence."""
    module, _, name = place.partition(":")
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found() if isinstance(found, type) else found
    except Exception as error:  # code of the application: an error of its import is reported as such
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


class Hooks:
    """The hooks of a server: those that decide as one chain, and sinks for those that are told."""

    def __init__(self, config: HooksConfig, given: object | None = None) -> None:
        """Read the secrets and import the object that the settings name. Blocks.

        Args:
            config: the settings.
            given: an object of the application, in place of the one that the settings name.

        Raises:
            ValueError: something cannot be used; the text is one sentence.
        """
        self._config = config
        self._object = given if given is not None else load_object(config.python) if config.python else None
        if self._object is not None:
            check_hooks(self._object)
        if config.dir is not None and not config.dir.is_dir():
            raise ValueError(f"there is no directory {config.dir}")
        secrets = read_secrets(config.http_secret_file) if config.http_secret_file else ()
        self._context = None if config.tls is None else make_context(config.tls)
        self._options = HttpHookOptions(
            config.http_timeout, config.http_retry, config.http_backoff, config.http_forward_headers, secrets
        )

    def blocking(self, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> BlockingHooks | None:
        """Return the hooks that decide, whose calls are measured; None if there are none."""
        config = self._config
        client = HttpClient(allow_private=not config.http_refuse_private, context=self._context)
        chain: list[AsksHooks] = [] if self._object is None else [PythonHooks(self._object)]
        chain += [HttpHooks(url, client, self._options, enabled) for url, enabled in config.endpoints]
        if config.dir is not None:
            chain.append(CommandHooks(Commands(config.dir, config.dir_timeout), config.enabled))
        hooks = HookChain(chain, client, instrumentation)
        return hooks if any(hooks.handles(hook) for hook in BLOCKING) else None

    def events(self) -> Sequence[tuple[str, frozenset[EventType]]]:
        """Return the names of the sinks that `sinks` makes, each with the events that it wants."""
        config = self._config
        wanted = events_of(config.enabled)
        found = []
        if self._object is not None:
            methods = [hook for hook in EVENT_OF if getattr(self._object, method_of(hook), None) is not None]
            found.append(("hooks", events_of(methods)))
        found += [(_name_of(url), events_of(enabled)) for url, enabled in config.endpoints]
        if config.dir is not None:
            found.append(("hooks-dir", wanted))
        return [(name, types) for name, types in found if types]

    def sinks(self, read: Reader, instrumentation: Instrumentation = NO_INSTRUMENTATION) -> list[Sink]:
        """Return the sinks of the events, each measured; `read` yields the bytes of complete uploads."""
        config = self._config
        client = HttpClient(allow_private=not config.http_refuse_private, context=self._context)
        sinks: list[Sink] = [] if self._object is None else [PythonHookSink("hooks", self._object, read)]
        sinks += [HttpHookSink(_name_of(url), url, client, self._options) for url, _ in config.endpoints]
        if config.dir is not None:
            sinks.append(CommandHookSink("hooks-dir", Commands(config.dir, config.dir_timeout)))
        names = {name for name, _ in self.events()}
        return [MeasuredSink(sink, instrumentation) for sink in sinks if sink.name in names]


def _name_of(url: str) -> str:
    return f"hooks {endpoint_name(parse_http_url(url))}"
