"""Storages, state stores and lockers of other packages, found by their entry points."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage
from tusd_py.settings import InvalidSettings, Settings, did_you_mean

STORAGES = "tusd_py.storages"
STATE_STORES = "tusd_py.state_stores"
LOCKERS = "tusd_py.lockers"
# For each group of entry points: the name of its kind in messages, and the contract of its components.
KINDS: dict[str, tuple[str, type]] = {
    STORAGES: ("storage", Storage),
    STATE_STORES: ("state store", StateStore),
    LOCKERS: ("locker", Locker),
}


def make_component(group: str, name: str, settings: Settings) -> Any:
    """Import the factory that a package registered under `name`, call it with the settings, and return its component.

    Raises `InvalidSettings` if no package has registered one, if it cannot be imported or called, or if the component
    lacks a member of its contract.
    """
    kind, _ = KINDS[group]
    factory = _load(group, name)
    try:
        component = factory(settings)
    except Exception as error:  # code of another package: its mistakes are reported as such, by name
        raise InvalidSettings(f"the {kind} {name!r} cannot be made: {one_line(error)}") from error
    check_component(group, component, f"the {kind} {name!r}")
    return component


def check_component(group: str, component: object, description: str) -> None:
    """Raise `InvalidSettings` unless the component is an object with every member of the contract of its group.

    Methods have to take the arguments of the contract; the types of arguments and results are not checked.
    """
    kind, contract = KINDS[group]
    if isinstance(component, type):
        raise InvalidSettings(f"{description} ({component.__name__}) is a class: an object of it is needed")
    name = type(component).__name__
    missing = [member for member in _members(contract) if not _has_member(component, member)]
    if missing:
        raise InvalidSettings(f"{description} ({name}) is no {kind}: it lacks {', '.join(missing)}")
    for member, declared in vars(contract).items():
        if not member.startswith("_") and inspect.isfunction(declared):
            arguments = _arguments(declared)
            if not _takes(getattr(component, member), arguments):
                raise InvalidSettings(f"{description} ({name}) is no {kind}: {member} has to take {arguments}")


def _load(group: str, name: str) -> Callable[[Settings], Any]:
    kind, _ = KINDS[group]
    installed = entry_points(group=group)
    if name not in installed.names:
        known = ", ".join(sorted(installed.names)) or "none"
        hint = did_you_mean(name, installed.names)
        raise InvalidSettings(f"there is no {kind} {name!r} among the installed packages (known: {known}){hint}")
    entry: EntryPoint = next(iter(installed.select(name=name)))
    try:
        factory = entry.load()
    except Exception as error:  # an import runs code of another package
        raise InvalidSettings(f"the {kind} {name!r} ({entry.value}) cannot be imported: {one_line(error)}") from error
    if not callable(factory):
        raise InvalidSettings(f"the {kind} {name!r} ({entry.value}) is not a function of the settings")
    return factory  # type: ignore[no-any-return]


def _members(contract: type) -> list[str]:
    return [name for name in vars(contract) if not name.startswith("_")]


def _has_member(component: object, member: str) -> bool:
    """Return whether a component has a member, without calling a property; also if it delegates to another object."""
    try:
        inspect.getattr_static(component, member)
    except AttributeError:
        return hasattr(component, member)
    return True


def _arguments(declared: Callable[..., object]) -> inspect.Signature:
    """Return the parameters of a method of a contract: their names and kinds only, without `self`."""
    parameters = list(inspect.signature(declared).parameters.values())[1:]
    empty = inspect.Parameter.empty
    return inspect.Signature([parameter.replace(annotation=empty, default=empty) for parameter in parameters])


def _takes(method: object, arguments: inspect.Signature) -> bool:
    """Return whether a method can be called with all these arguments."""
    if not callable(method):
        return False
    try:
        signature = inspect.signature(method)
    except ValueError:  # a method in C may have none that can be read
        return True
    keyword_only = [p.name for p in arguments.parameters.values() if p.kind is p.KEYWORD_ONLY]
    try:
        signature.bind(*[None] * (len(arguments.parameters) - len(keyword_only)), **dict.fromkeys(keyword_only))
    except TypeError:
        return False
    return True


def one_line(error: Exception) -> str:
    """Return class and message of an error of another package, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
