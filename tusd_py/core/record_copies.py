"""Copies of records, which are frozen dataclasses with slots, in half of the time of `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


class RecordCopies(Generic[R]):
    """Maker of records of one class, which has slots, several fields, and no `__post_init__`.

    Slots are filled without the `__init__` of a frozen class, which looks up `object.__setattr__` for each field.
    """

    def __init__(self, kind: type[R]) -> None:
        names = tuple(field.name for field in fields(kind))
        self._kind = kind
        self._values = attrgetter(*names)
        self._positions = {name: position for position, name in enumerate(names)}
        self._setters = tuple(getattr(kind, name).__set__ for name in names)

    def make(self, values: Iterable[Any]) -> R:
        """Return the record with these values of all fields, in the order of the class."""
        record = object.__new__(self._kind)
        for put, value in zip(self._setters, values, strict=True):
            put(record, value)
        return record

    def changed(self, record: R, **changes: Any) -> R:
        """Return a copy with other values of some fields; raises `KeyError` for a name that is no field."""
        values = list(self._values(record))
        for name, value in changes.items():
            values[self._positions[name]] = value
        return self.make(values)
