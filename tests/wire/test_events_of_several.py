"""Live progress of several uploads in one stream."""

from __future__ import annotations

import pytest

from tests.support.harness import ServerProcess
from tests.support.server_connections import metric
from tests.support.wire.events import Event, Listening, kinds
from tests.support.wire.messages import TUS, identity
from tests.support.wire.requests import create, patch, request


def listening(server: ServerProcess, *paths: str) -> Listening:
    query = "&".join(f"upload={identity(path)}" for path in paths)
    stream = Listening(server.port, f"/files/events?{query}")
    assert stream.status == 200
    return stream


def told(events: list[Event]) -> list[tuple[str, str, int]]:
    return [(event.kind, event.data["id"], event.offset) for event in events]


def test_stream_begins_with_a_snapshot_of_each_and_ends_after_the_last(server: ServerProcess) -> None:
    first, second = create(server.port, 4), create(server.port, 8, body=b"four")
    with listening(server, first, second) as stream:
        snapshots = [stream.next(), stream.next()]
        assert {(event.data["id"], event.offset) for event in snapshots if event} == {
            (identity(first), 0),
            (identity(second), 4),
        }
        assert patch(server.port, first, 0, b"four").status == 204
        assert told(stream.until("finished")) == [("finished", identity(first), 4)]
        assert patch(server.port, second, 4, b"more").status == 204
        rest = list(stream)
    assert told(rest) == [("finished", identity(second), 8)]


def test_unknown_and_finished_uploads_do_not_hold_the_stream(server: ServerProcess) -> None:
    done, gone = create(server.port, 4, body=b"four"), create(server.port, 4)
    assert request(server.port, "DELETE", gone).status == 204
    with listening(server, done, gone, "unknown", "a%2Fb", "events") as stream:
        assert kinds(list(stream)) == ["snapshot"]
    with listening(server, "unknown") as stream:
        assert list(stream) == []


def test_upload_is_told_of_once_however_often_it_is_named(server: ServerProcess) -> None:
    path = create(server.port, 4)
    with listening(server, path, path) as stream:
        stream.until("snapshot")
        assert patch(server.port, path, 0, b"four").status == 204
        assert kinds(list(stream)) == ["finished"]


@pytest.mark.parametrize("query", ["", "?", "?other=1", "?" + "&".join(f"upload={n}" for n in range(257))])
def test_stream_without_names_or_with_too_many_is_refused(server: ServerProcess, query: str) -> None:
    answer = request(server.port, "GET", f"/files/events{query}")
    assert answer.status == 400
    assert answer.text.startswith("ERR_INVALID_UPLOADS: ")


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_other_methods_are_not_allowed(server: ServerProcess, method: str) -> None:
    answer = request(server.port, method, "/files/events?upload=a", {"Upload-Length": "4"})
    assert answer.status == 405
    assert answer.listed("Allow") == ["OPTIONS", "GET", "HEAD"]


def test_head_and_options_have_no_events(server: ServerProcess) -> None:
    answer = request(server.port, "HEAD", "/files/events?upload=a")
    assert (answer.status, answer["Content-Type"]) == (200, "text/event-stream")
    assert request(server.port, "OPTIONS", "/files/events")["Tus-Version"] == "1.0.0"
    override = TUS | {"X-HTTP-Method-Override": "GET"}
    with Listening(server.port, "/files/events?upload=a", override, method="POST", body=b"") as stream:
        assert list(stream) == []
    assert metric(server.port, "tusd_listeners") == 0


def test_events_of_events_lead_nowhere(server: ServerProcess) -> None:
    assert request(server.port, "GET", "/files/events/events").status == 404
