from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place, serving


@pytest.fixture(scope="module")
def place() -> Place:
    """A prefix in a bucket, of its own for the tests of one module."""
    return Place(s3_server())


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that need nothing special of it; they may restart it."""
    with serving(tmp_path_factory.mktemp("s3"), place) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[ServerProcess, Place]]:
    """A server and a prefix for one test."""
    place = Place(s3_server())
    with serving(tmp_path, place) as server:
        yield server, place
