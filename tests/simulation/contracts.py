"""Runs the contract suites of `tusd_py.testing` in simulated worlds, whose threads and tasks have no fixed order.

This module stands for pytest: it resolves the fixtures of a suite, and calls each test with all its parameters.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tusd_py.testing.storage_helpers as helpers

helpers.LARGE = helpers.LARGE[: (5 << 10) + 12_345]  # sizes in the worlds are a thousandth of the real ones

from tusd_py.testing.locker_suite import LockerSuite  # noqa: E402 - they take `LARGE` as it is when they are imported
from tusd_py.testing.outbox_suite import OutboxSuite  # noqa: E402
from tusd_py.testing.query_suite import QuerySuite  # noqa: E402
from tusd_py.testing.quota_suite import QuotaSuite  # noqa: E402
from tusd_py.testing.state_suite import StateStoreSuite  # noqa: E402
from tusd_py.testing.storage_suite import StorageSuite  # noqa: E402

LOCKERS, STORAGES, OUTBOX, QUERIES, QUOTAS = LockerSuite, StorageSuite, OutboxSuite, QuerySuite, QuotaSuite
STATES = StateStoreSuite
MAX_COUNT = 300  # records of a test
NOT_SIMULATED = (
    "test_a_lock_dies_with_its_process",  # of another real process, which is killed
    "test_what_was_acknowledged_outlives_a_killed_process",
    "test_no_piece_that_is_read_is_larger_than_allowed",  # of pieces of the real size
)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a test, with its parameters and those of its fixtures, by name."""

    name: str
    test: Callable[..., Any]
    parameters: Mapping[str, Any]
    of_fixtures: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        values = (*self.parameters.values(), *self.of_fixtures.values())
        return f"{self.name}{[str(value)[:30] for value in values] if values else ''}"


def cases(suite: type) -> Iterator[Case]:
    """Yield every call of every test of a suite."""
    for name, test in inspect.getmembers(suite, inspect.iscoroutinefunction):
        if not name.startswith("test_") or name in NOT_SIMULATED:
            continue
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        choices = [list(_values(*mark.args[:2])) for mark in marks]
        for chosen in itertools.product(*choices):
            parameters = {key: value for pairs in chosen for key, value in pairs.items()}
            if parameters.get("end", 0) > len(helpers.LARGE) or parameters.get("count", 0) > MAX_COUNT:
                continue  # of the real size
            for of_fixtures in _fixture_parameters(suite, test):
                yield Case(name, test, parameters, of_fixtures)


def _values(names: str | tuple[str, ...], values: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each value of a mark."""
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for value in values:
        given = getattr(value, "values", value)
        given = given if not callable(given) else value  # a mapping
        row = given if len(keys) > 1 or hasattr(value, "marks") else (given,)
        yield dict(zip(keys, row, strict=True))


def _fixture_parameters(suite: type, test: Callable[..., Any]) -> list[dict[str, Any]]:
    """Return the choices of the fixtures of a test that have parameters."""
    found: list[dict[str, Any]] = [{}]
    for name in inspect.signature(test).parameters:
        marker = getattr(getattr(suite, name, None), "_fixture_function_marker", None)
        if marker is not None and marker.params:
            found = [{**chosen, name: value} for chosen in found for value in marker.params]
    return found


async def run_case(suite: type, case: Case, make: Callable[[Path], Any], place: Path) -> None:
    """Run one call of a test, whose components `make` makes in a place; raises what the test raises."""
    instance = suite()
    instance.make = make
    instance.outlives_process = True
    async with AsyncExitStack() as stack:
        fixtures = _Fixtures(instance, case, place, stack)
        wanted = [name for name in inspect.signature(case.test).parameters if name != "self"]
        arguments = {name: case.parameters[name] for name in wanted if name in case.parameters}
        for name in wanted:
            if name not in arguments:
                arguments[name] = await fixtures.get(name)
        await case.test(instance, **arguments)


class _Fixtures:
    """The fixtures of one call, each made once."""

    def __init__(self, instance: Any, case: Case, place: Path, stack: AsyncExitStack) -> None:
        self._instance = instance
        self._case = case
        self._stack = stack
        self._known: dict[str, Any] = {"tmp_path": place}

    async def get(self, name: str) -> Any:
        """Return the value of a fixture."""
        if name not in self._known:
            self._known[name] = await self._make(name)
        return self._known[name]

    async def _make(self, name: str) -> Any:
        if name == "request":
            return SimpleNamespace(param=next(iter(self._case.of_fixtures.values())))
        function = getattr(type(self._instance), name)._get_wrapped_function()
        wanted = [each for each in inspect.signature(function).parameters if each != "self"]
        result = function(self._instance, **{each: await self.get(each) for each in wanted})
        if inspect.isasyncgen(result):
            value = await anext(result)
            self._stack.push_async_callback(_exhaust, result)
            return value
        return await result if inspect.iscoroutine(result) else result


async def _exhaust(generator: Any) -> None:
    async for _ in generator:
        pass


SKIPPED = pytest.skip.Exception
