"""Live progress of one upload: messages in their order, coming back, ends, methods, limits."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.harness import ServerProcess, serving
from tests.support.server_connections import interrupt_until_listeners_leave, metric
from tests.support.timing import TIMEOUT, wait_until
from tests.support.wire.connection import Connection
from tests.support.wire.events import Listening, kinds
from tests.support.wire.messages import TUS
from tests.support.wire.requests import content, create, offset_of, patch, request, start_patch

FIELDS = {"type", "id", "status", "offset", "length", "rate", "eta", "time"}


def listening(server: ServerProcess, path: str, number: int | None = None, **headers: str) -> Listening:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if number is not None:
        fields["Last-Event-ID"] = str(number)
    stream = Listening(server.port, f"{path}/events", fields)
    assert stream.status == 200
    return stream


def test_first_message_is_a_snapshot(server: ServerProcess) -> None:
    path = create(server.port, 10, body=b"four")
    with listening(server, path) as stream:
        snapshot = stream.next()
    assert snapshot is not None
    assert snapshot.kind == "snapshot"
    assert set(snapshot.data) == FIELDS
    assert snapshot.data["id"] == path.rpartition("/")[2]
    assert (snapshot.data["status"], snapshot.offset, snapshot.data["length"]) == ("active", 4, 10)
    assert (snapshot.data["rate"], snapshot.data["eta"]) == (None, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", snapshot.data["time"])


def test_header_fields_are_those_of_a_stream(server: ServerProcess) -> None:
    with listening(server, create(server.port, 10)) as stream:
        assert stream.fields["content-type"] == "text/event-stream"
        assert stream.fields["cache-control"] == "no-store"
        assert stream.fields["x-accel-buffering"] == "no"
        assert stream.fields["x-content-type-options"] == "nosniff"
        assert "content-length" not in stream.fields


def test_small_patches_are_told_to_the_end(server: ServerProcess) -> None:
    path = create(server.port, 6)
    with listening(server, path) as stream:
        stream.until("snapshot")
        for offset in range(0, 6, 2):
            assert patch(server.port, path, offset, b"xx").status == 204
            if offset < 4:
                stream.until("progress", lambda event, end=offset + 2: event.offset == end)  # type: ignore[misc]
        rest = list(stream)
    assert kinds(rest) == ["finished"]
    assert (rest[-1].offset, rest[-1].data["status"]) == (6, "complete")
    assert stream.retry is None


def test_progress_of_a_running_patch_has_its_rate(server: ServerProcess) -> None:
    path = create(server.port, 100_000)
    with listening(server, path) as stream, start_patch(server.port, path, 0, 100_000) as sender:
        stream.until("snapshot")
        sender.send(b"x" * 40_000)
        first = stream.until("progress")[-1]
        assert first.data["rate"] > 0
        assert first.data["eta"] > 0
        sender.send(b"x" * 60_000)
        events = [first, *stream]
    assert kinds(events)[-1] == "finished"
    assert [event.offset for event in events] == sorted(event.offset for event in events)
    assert [event.number for event in events] == sorted({event.number for event in events})


def test_interruption_and_resumption_are_told(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with listening(server, path) as stream:
        stream.until("snapshot")
        with start_patch(server.port, path, 0, 10) as sender:
            sender.send(b"four")
            sender.wait_until_read()
        interrupted = stream.until("interrupted")[-1]
        assert (interrupted.offset, interrupted.data["status"]) == (4, "active")
        assert patch(server.port, path, 4, b"more").status == 204
        resumed, *_ = stream.until("progress", lambda event: event.offset == 8)
        assert resumed.kind == "resumed"


def test_pieces_one_after_the_other_resume_nothing(server: ServerProcess) -> None:
    path = create(server.port, None)
    with listening(server, path) as stream:
        stream.until("snapshot")
        for offset in range(0, 8, 2):
            assert patch(server.port, path, offset, b"xx").status == 204
            assert kinds(stream.until("progress")) == ["progress"]


def test_termination_ends_the_stream(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with listening(server, path) as stream:
        stream.until("snapshot")
        assert request(server.port, "DELETE", path).status == 204
        ended = list(stream)
    assert kinds(ended) == ["terminated"]
    assert ended[0].data["status"] == "terminated"
    assert request(server.port, "GET", f"{path}/events").status == 404


def test_refused_upload_has_failed_with_its_code(server: ServerProcess) -> None:
    path = create(server.port, 5, {"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"})
    with listening(server, path) as stream:
        stream.until("snapshot")
        assert patch(server.port, path, 0, b"hello").status == 460
        failed = list(stream)[-1]
    assert (failed.kind, failed.data["code"]) == ("failed", "ERR_DIGEST_MISMATCH")


def test_finished_upload_is_a_snapshot_and_the_end(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    with listening(server, path) as stream:
        (snapshot,) = list(stream)
    assert (snapshot.kind, snapshot.data["status"]) == ("snapshot", "complete")
    answer = request(server.port, "GET", f"{path}/events", {"Last-Event-ID": str(snapshot.number)})
    assert (answer.status, answer.body) == (204, b"")


def test_final_upload_tells_that_it_is_one(server: ServerProcess) -> None:
    part = create(server.port, 4, {"Upload-Concat": "partial"}, b"four")
    answer = request(server.port, "POST", "/files", {"Upload-Concat": f"final;{part}"})
    final = answer["Location"].removeprefix(server.origin)
    for path, concatenation in ((part, "partial"), (final, "final")):
        with listening(server, path) as stream:
            (snapshot,) = list(stream)
        assert snapshot.data["concatenation"] == concatenation


# Coming back.


def test_client_that_comes_back_gets_what_it_has_missed(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with listening(server, path) as stream:
        first = stream.until("snapshot")[-1]
    with listening(server, path) as stays:
        stays.until("snapshot")
        assert patch(server.port, path, 0, b"four").status == 204
        told = stays.until("progress")[-1]
        with listening(server, path, first.number) as stream:
            assert stream.next() == told
            assert patch(server.port, path, 4, b"secret").status == 204
            assert kinds(list(stream)) == ["finished"]
        with listening(server, path, told.number) as stream:
            assert kinds(list(stream)) == ["finished"]
        end = list(stays)[-1]
    assert request(server.port, "GET", f"{path}/events", {"Last-Event-ID": str(end.number)}).status == 204


def test_client_that_has_missed_nothing_gets_the_next_message(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with listening(server, path) as stream:
        number = stream.until("snapshot")[-1].number
    with listening(server, path, number) as stream:
        assert patch(server.port, path, 0, b"four").status == 204
        progress = stream.next()
    assert progress is not None
    assert (progress.kind, progress.offset) == ("progress", 4)


@pytest.mark.parametrize("number", ["1", "999999999999999", "x", "-1", "1" * 40, ""])
def test_number_that_is_not_known_is_answered_with_a_snapshot(server: ServerProcess, number: str) -> None:
    with listening(server, create(server.port, 10), Last_Event_ID=number) as stream:
        assert kinds(stream.until("snapshot")) == ["snapshot"]


def test_finished_upload_after_a_restart_is_a_snapshot_or_204(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "uploads") as server:
        path = create(server.port, 10)
        with listening(server, path) as stream:
            before = stream.until("snapshot")[-1]
            assert patch(server.port, path, 0, b"four").status == 204
            stream.until("progress")
        server.restart()
        assert patch(server.port, path, 4, b"secret").status == 204
        with listening(server, path, before.number) as stream:
            (snapshot,) = list(stream)
        assert snapshot.data["status"] == "complete"
        assert snapshot.number > before.number
        server.restart()
        last = {"Last-Event-ID": str(snapshot.number)}
        assert request(server.port, "GET", f"{path}/events", last).status == 204


# Methods and errors.


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
def test_other_methods_are_not_allowed(server: ServerProcess, method: str) -> None:
    path = create(server.port, 10)
    answer = request(server.port, method, f"{path}/events")
    assert answer.status == 405
    assert answer.listed("Allow") == ["OPTIONS", "GET", "HEAD"]
    assert offset_of(server.port, path) == 0


def test_head_tells_the_fields_of_the_stream(server: ServerProcess) -> None:
    path = create(server.port, 10)
    answer = request(server.port, "HEAD", f"{path}/events")
    assert (answer.status, answer["Content-Type"]) == (200, "text/event-stream")
    assert request(server.port, "HEAD", "/files/unknown/events").status == 404
    assert metric(server.port, "tusd_listeners") == 0


def test_options_are_those_of_the_server(server: ServerProcess) -> None:
    assert request(server.port, "OPTIONS", "/files/unknown/events")["Tus-Version"] == "1.0.0"


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_method_override_to_get_opens_the_stream(server: ServerProcess, method: str) -> None:
    path = create(server.port, 10)
    override = TUS | {"X-HTTP-Method-Override": "GET"}
    with Listening(server.port, f"{path}/events", override, method=method, body=b"") as stream:
        assert stream.status == 200
        assert kinds(stream.until("snapshot")) == ["snapshot"]
    assert request(server.port, "GET", f"{path}/events", {"X-HTTP-Method-Override": "DELETE"}).status == 405
    assert offset_of(server.port, path) == 0


def test_head_that_is_overridden_with_get_has_no_events(server: ServerProcess) -> None:
    path = create(server.port, 10)
    answer = request(server.port, "HEAD", f"{path}/events", {"X-HTTP-Method-Override": "GET"})
    assert (answer.status, answer.body) == (200, b"")


def test_preflight_allows_the_fields_of_a_stream(server: ServerProcess) -> None:
    headers = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    answer = request(server.port, "OPTIONS", "/files/unknown/events", headers)
    assert answer.status == 200
    assert {"authorization", "last-event-id"} <= set(answer.listed("Access-Control-Allow-Headers"))
    assert "GET" in answer.listed("Access-Control-Allow-Methods")


def test_page_of_another_origin_may_read_the_stream(server: ServerProcess) -> None:
    with listening(server, create(server.port, 10), Origin="https://page.example") as stream:
        assert stream.fields["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", ["/files/unknown/events", "/files/unknown/events/", "/files/a%2Fb/events"])
def test_unknown_upload_has_no_events(server: ServerProcess, path: str) -> None:
    assert request(server.port, "GET", path).status == 404


@pytest.mark.parametrize("name", ["event", "events/more", "Events", "events%00", "jobs"])
def test_other_names_below_an_upload_lead_nowhere(server: ServerProcess, name: str) -> None:
    path = create(server.port, 10)
    assert request(server.port, "GET", f"{path}/{name}").status == 404


def test_slash_at_the_end_changes_nothing(server: ServerProcess) -> None:
    path = create(server.port, 10)
    with Listening(server.port, f"{path}/events/") as stream:
        assert kinds(stream.until("snapshot")) == ["snapshot"]


def test_gone_upload_is_answered_as_by_head(tmp_path: Path) -> None:
    with serving(tmp_path, gone_for="1h") as server:
        path = create(server.port, 10)
        assert request(server.port, "DELETE", path).status == 204
        assert request(server.port, "HEAD", path).status == 410
        assert request(server.port, "GET", f"{path}/events").status == 410


@pytest.mark.integrated  # the stock protocol class sends chunks to clients of HTTP/1.0 too
def test_stream_of_http_1_0_ends_with_its_connection(server: ServerProcess) -> None:
    path = create(server.port, 4)
    with Listening(server.port, f"{path}/events", version="1.0") as stream:
        assert "transfer-encoding" not in stream.fields
        assert stream.fields["connection"] == "close"
        stream.until("snapshot")
        assert patch(server.port, path, 0, b"four").status == 204
        assert kinds(list(stream)) == ["finished"]


def test_connection_ends_with_the_stream_so_that_no_download_has_its_small_buffers(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    with listening(server, path) as stream:
        assert stream.fields["connection"] == "close"
        assert len(list(stream)) == 1
        assert stream.is_closed()
    assert content(server.port, path) == b"four"


def test_connection_serves_other_requests_after_an_answer_without_events(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    with listening(server, path) as stream:
        (snapshot,) = list(stream)
    with Connection(server.port) as connection:
        connection.send_head("GET", f"{path}/events", {"Last-Event-ID": str(snapshot.number)})
        assert connection.answer().status == 204
        connection.send_head("HEAD", f"{path}/events")
        assert connection.answer().status == 200
        connection.send_head("HEAD", path, TUS)
        assert connection.answer().status == 200


# Limits and shutdown.


def test_listeners_are_counted_and_limited(tmp_path: Path) -> None:
    with serving(tmp_path, max_listeners=2) as server:
        path = create(server.port, 10)
        first, second = listening(server, path), listening(server, path)
        assert metric(server.port, "tusd_listeners") == 2
        refused = request(server.port, "GET", f"{path}/events")
        assert (refused.status, refused["Retry-After"]) == (503, "5")
        assert refused.text.startswith("ERR_TOO_MANY_LISTENERS")
        assert request(server.port, "HEAD", path).status == 200
        second.close()
        wait_until(lambda: metric(server.port, "tusd_listeners") == 1, "the server has noticed that a client left")
        listening(server, path).close()
        first.close()


def test_one_address_has_a_part_of_the_places(tmp_path: Path) -> None:
    with serving(tmp_path, max_listeners=32) as server, ExitStack() as stack:
        path = f"{create(server.port, 10)}/events"
        for _ in range(8):
            assert stack.enter_context(Listening(server.port, path)).status == 200
        refused = request(server.port, "GET", path)
        assert (refused.status, refused["Retry-After"]) == (503, "5")
        assert refused.text.startswith("ERR_TOO_MANY_LISTENERS")
        with Listening(server.port, path, address="127.0.0.2") as stream:
            assert stream.status == 200


def test_stream_is_no_duration_of_a_request(server: ServerProcess) -> None:
    path = create(server.port, 4, body=b"four")
    with listening(server, path) as stream:
        assert len(list(stream)) == 1
    assert metric(server.port, "tusd_request_duration_seconds_count") == metric(server.port, "tusd_requests_total") - 1


def test_shutdown_ends_streams_with_the_time_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        path = create(server.port, 10)
        with listening(server, path) as stream:
            stream.until("snapshot")
            server.process.send_signal(signal.SIGTERM)
            assert list(stream) == []
            assert stream.retry is not None
            assert 1000 <= stream.retry <= 5000
        assert server.wait(TIMEOUT) in (0, -signal.SIGTERM)


@pytest.mark.integrated  # another server has no small buffers, and does not end a connection that is not read
@pytest.mark.long
@pytest.mark.fresh_interpreter
def test_listener_that_does_not_read_holds_nothing_and_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path, idle_timeout="2s") as server:
        path = create(server.port, None)
        assert patch(server.port, path, 0, b"x").status == 204
        with Listening(server.port, f"{path}/events", receive_buffer=1024):
            interrupt_until_listeners_leave(server, path)
        assert metric(server.port, "tusd_connections_ended_total") == 1
