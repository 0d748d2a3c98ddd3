"""The load generator of the benchmark, compiled and run against a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.client import BenchError, Connection, build, location_path
from bench.load import COMPILERS, Load, compile_program
from bench.payload import Payload, payload_file, verify
from tests.support.harness import ServerProcess

LENGTH = 1024
CONNECTIONS = 4
PAIRS = 50


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        pytest.skip("there is no C compiler")
    return compile_program(compiler, tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server") / "uploads") as started:
        yield started


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payload]:
    with payload_file(tmp_path_factory.mktemp("payload") / "payload", 100 * LENGTH + 7) as made:
        yield made


@pytest.fixture
def load(program: Path, server: ServerProcess) -> Load:
    return Load(program, server.port, CONNECTIONS, LENGTH)


def test_pairs_store_each_upload_with_its_bytes(load: Load, server: ServerProcess, payload: Payload) -> None:
    seconds, uploads = load.pairs("/files", payload, PAIRS)
    assert len({upload.path for upload in uploads}) == len(seconds) == PAIRS
    assert all(took > 0 for took in seconds)
    verify(server.port, server.upload_dir, uploads, payload, with_bytes=True)


def test_creations_store_each_upload_with_its_bytes(load: Load, server: ServerProcess, payload: Payload) -> None:
    _, uploads = load.creations("/files", payload, PAIRS)
    assert len({upload.path for upload in uploads}) == PAIRS
    verify(server.port, server.upload_dir, uploads, payload, with_bytes=True)


def test_heads_go_through_the_paths_in_turn(load: Load, payload: Payload) -> None:
    _, uploads = load.pairs("/files", payload, 3)
    assert len(load.heads([upload.path for upload in uploads], PAIRS)) == PAIRS


def test_a_status_other_than_the_expected_one_is_an_error(load: Load) -> None:
    with pytest.raises(BenchError, match="a HEAD was answered 404 instead of 200"):
        load.heads(["/files/none"], 1)


def test_an_offset_other_than_the_expected_one_is_an_error(load: Load, server: ServerProcess) -> None:
    creation = build("POST", "/files", {"Upload-Length": "5"})
    with Connection(server.port) as connection:
        path = location_path(connection.exchange(creation).expect(201, "a creation"))
    with pytest.raises(BenchError, match="a HEAD was answered offset 0 instead of 1024"):
        load.heads([path], 1)
