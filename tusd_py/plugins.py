"""Storages, state stores and lockers of other packages, found by their entry points."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage, StoresInThreads, ThreadedWriter, Writer
from tusd_py.core.errors import StorageUnavailable
from tusd_py.core.upload import Upload, new_upload_id
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
    mismatch = _mismatch(contract, component)
    if mismatch:
        raise InvalidSettings(f"{description} ({type(component).__name__}) is no {kind}: {mismatch}")


async def check_writer(storage: Storage) -> None:
    """Raise `StorageUnavailable` unless the writers of an open storage have every method of their contract.

    Makes a writer for an upload that does not exist, and closes it, neither of which does any I/O.
    """
    upload = Upload(new_upload_id(), created_at=0.0, length=1)
    writer = storage.writer(replace(upload, location=storage.locate(upload)), 1)
    for contract in (Writer, ThreadedWriter) if isinstance(storage, StoresInThreads) else (Writer,):
        mismatch = _mismatch(contract, writer)
        if mismatch:
            raise StorageUnavailable(f"its writer ({type(writer).__name__}) is no writer: {mismatch}")
    await writer.close()


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


def _mismatch(contract: type, component: object) -> str:
    """Return the first way in which an object does not fulfil a contract; empty if none is found."""
    members = {name: declared for name, declared in vars(contract).items() if not name.startswith("_")}
    missing = [name for name in members if not _has_member(component, name)]
    if missing:
        return f"it lacks {', '.join(missing)}"
    for name, declared in members.items():
        if inspect.isfunction(declared):
            arguments = _arguments(declared)
            if not _takes(getattr(component, name), arguments):
                return f"{name} has to take {arguments}"
    return ""


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


def is_own(component: object) -> bool:
    """Return whether a component is one of this package."""
    return type(component).__module__.startswith("tusd_py.")


def one_line(error: Exception) -> str:
    """Return class and message of an error of another package, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
