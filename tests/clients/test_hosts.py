"""tus-js-client in node against three hosts, behind a proxy that deals every request to the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.support import KIBI, MEBI, downloaded, head, payload, sha256
from tests.clients.test_tus_js import Client
from tests.support.hosts import Hosts, several_hosts
from tests.support.proxies import RoundRobin
from tests.support.redis_server import RedisServer


@dataclass(frozen=True)
class Service:
    """The hosts as a client sees them."""

    hosts: Hosts
    proxy: RoundRobin

    @property
    def url(self) -> str:
        return self.proxy.url

    def assert_everybody_worked(self, method: str) -> None:
        assert {port for name, port in self.proxy.served if name == method} == {server.port for server in self.hosts}

    def assert_content(self, url: str, data: bytes) -> None:
        for server in self.hosts:
            assert downloaded(url.replace(f":{self.proxy.port}/", f":{server.port}/")) == sha256(data)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(appendonly="yes", appendfsync="always"))
        hosts = stack.enter_context(several_hosts(tmp_path, redis.url))
        yield Service(hosts, stack.enter_context(RoundRobin([server.port for server in hosts])))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "payload")


def test_every_chunk_goes_to_another_host(service: Service, client: Client) -> None:
    data = payload(2 * MEBI + 123)
    run = client.upload(data, endpoint=service.url, chunkSize=200 * KIBI, metadata={"filename": "name.bin"})
    assert run.error is None
    assert run.patched_offsets == list(range(0, len(data), 200 * KIBI))
    assert {request.status for request in run.of("PATCH")} == {204}
    service.assert_everybody_worked("PATCH")
    service.assert_content(run.url, data)


def test_an_upload_in_one_request(service: Service, client: Client) -> None:
    data = payload(3 * MEBI)
    run = client.upload(data, endpoint=service.url)
    assert run.error is None
    assert [(one.method, one.status) for one in run.requests] == [("POST", 201), ("PATCH", 204)]
    service.assert_content(run.url, data)


def test_data_during_creation_goes_on_at_another_host(service: Service, client: Client) -> None:
    data = payload(700 * KIBI)
    run = client.upload(data, endpoint=service.url, uploadDataDuringCreation=True, chunkSize=100 * KIBI)
    assert run.error is None
    assert run.requests[0].answered_offset == str(100 * KIBI)
    service.assert_content(run.url, data)


def test_a_stream_of_unknown_length(service: Service, client: Client) -> None:
    data = payload(450 * KIBI + 3)
    run = client.upload(data, source="stream", endpoint=service.url, uploadLengthDeferred=True, chunkSize=100 * KIBI)
    assert run.error is None
    service.assert_everybody_worked("PATCH")
    service.assert_content(run.url, data)


@pytest.mark.parametrize("chunk_size", [100 * KIBI, 4 * MEBI])
def test_parallel_parts_at_different_hosts_are_put_together(service: Service, client: Client, chunk_size: int) -> None:
    data = payload(3 * MEBI + 1)
    run = client.upload(data, endpoint=service.url, parallelUploads=3, chunkSize=chunk_size)
    assert run.error is None
    assert {one.status for one in run.of("POST")} == {201}
    assert {one.status for one in run.of("PATCH")} == {204}
    service.assert_everybody_worked("POST")
    service.assert_everybody_worked("PATCH")
    service.assert_content(run.url, data)


def test_a_new_client_resumes_at_the_byte_that_another_host_has_reached(service: Service, client: Client) -> None:
    data = payload(4 * MEBI)
    reached = 1 * MEBI + 77
    aborted = client.upload(data, endpoint=service.url, hold_after=reached, ending="abort")
    resumed = client.upload(data, endpoint=service.url, uploadUrl=aborted.url)
    assert resumed.error is None
    assert [(one.method, one.status) for one in resumed.requests] == [("HEAD", 200), ("PATCH", 204)]
    assert resumed.patched_offsets == [reached]
    service.assert_content(resumed.url, data)


@pytest.mark.parametrize("chunk_size", [4 * MEBI, 512 * KIBI])
def test_an_upload_goes_on_when_every_host_dies_one_after_the_other(
    service: Service, client: Client, chunk_size: int
) -> None:
    data = payload(4 * MEBI)
    reached = 1 * MEBI + 77

    def kill_all(event: object) -> None:
        for server in service.hosts:
            server.restart()

    run = client.upload(
        data,
        endpoint=service.url,
        hold_after=reached,
        on_event=kill_all,
        retryDelays=[200] * 150,
        chunkSize=chunk_size,
    )
    assert run.error is None
    assert run.requests[-1].answered_offset == str(len(data))
    assert len(run.of("POST")) == 1
    assert min(run.patched_offsets[run.patched_offsets.index(0) + 1 :]) >= min(reached, chunk_size)
    service.assert_content(run.url, data)


@pytest.mark.parametrize("chunk_size", [4 * MEBI, 512 * KIBI])
def test_an_upload_goes_on_at_another_host_when_its_own_dies(service: Service, client: Client, chunk_size: int) -> None:
    """The others let the client in once the lease of the dead one has ended; until then it is told to try again."""
    data = payload(4 * MEBI)
    reached = 1 * MEBI + 77

    def kill_the_writer(event: object) -> None:
        port = [port for method, port in service.proxy.served if method == "PATCH"][-1]
        next(server for server in service.hosts if server.port == port).restart()

    run = client.upload(
        data,
        endpoint=service.url,
        hold_after=reached,
        on_event=kill_the_writer,
        retryDelays=[300] * 100,
        chunkSize=chunk_size,
    )
    assert run.error is None
    assert len(run.of("POST")) == 1
    assert {one.status for one in run.of("HEAD")} <= {200, 423, None}
    service.assert_content(run.url, data)


def test_a_running_upload_is_terminated(service: Service, client: Client) -> None:
    run = client.upload(
        payload(4 * MEBI), endpoint=service.url, hold_after=1 * MEBI, ending="terminate", retryDelays=[0, 500, 1000]
    )
    assert run.of("DELETE")[-1].status == 204
    for server in service.hosts:
        assert head(run.url.replace(f":{service.proxy.port}/", f":{server.port}/")).status == 404
