"""The metrics of running servers: they tell of the work that was done, whichever process did it."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import serving
from tests.support.hook_endpoint import SILENCE, HookEndpoint
from tests.support.redis_server import shared_redis_url
from tests.support.s3_server import s3_server
from tests.support.s3_uploads import Place, serving as serving_s3
from tests.support.timing import wait_until
from tests.support.wire.events import Listening
from tests.support.wire.requests import content, create, patch, request, stalled_patch
from tusd_py.observability.catalogue import ENTRIES, Kind, MetricEntry
from tusd_py.observability.label_values import OTHER


def scraped(port: int) -> dict[str, float]:
    """Return every sample by its name and labels, as `name{label=value}`."""
    text = request(port, "GET", "/metrics").body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def upload(port: int, size: int = 1000) -> str:
    """Upload in two pieces; return the path."""
    path = create(port, size)
    assert patch(port, path, 0, bytes(size // 2)).status == 204
    assert patch(port, path, size // 2, bytes(size - size // 2)).status == 204
    return path


def test_processes_with_redis_and_hooks_tell_of_their_work_together(tmp_path: Path) -> None:
    shared = {"redis_url": shared_redis_url(), "redis_prefix": f"{secrets.token_hex(8)}:"}
    with HookEndpoint() as hooks, serving(tmp_path, workers=2, hooks_http=hooks.url, **shared) as server:
        paths = [upload(server.port) for _ in range(5)]
        for path in paths:
            content(server.port, path)
        assert request(server.port, "PROPFIND", "/files").status >= 400
        wanted = {"PATCH": 10, "POST": 5, "GET": 5, OTHER: 1}
        wait_until(lambda: requests_of(scraped(server.port)) == wanted, "all are counted")
        wait_until(
            lambda: scraped(server.port).get("tusd_hook_duration_seconds_count{hook=post-finish,result=ok}") == 5
        )
        found = scraped(server.port)
        files = {name: found[f"tusd_request_duration_seconds_count{{{name}}}"] for name in labels_of("PATCH", "POST")}
        assert files == {"method=PATCH,status_class=2xx": 10, "method=POST,status_class=2xx": 5}
        assert found["tusd_request_first_byte_seconds_count{method=GET}"] == 5
        assert found["tusd_storage_write_seconds_count"] == 10
        assert found["tusd_lock_wait_seconds_count"] >= 10
        assert found["tusd_hook_duration_seconds_count{hook=pre-create,result=ok}"] == 5
        assert found["tusd_redis_call_duration_seconds_count{call=acquire}"] >= 10
        assert found["tusd_storage_free_bytes"] > 0
        assert found["tusd_uploads_active"] == 0
        assert not [name for name in found if f"call={OTHER}" in name]
        assert exposed_names(server.port) >= {name_of_sample(entry) for entry in ENTRIES.values() if not entry.labels}


def exposed_names(port: int) -> set[str]:
    """Return the names of all samples as they are exposed; `scraped` has those that its parser gives to counters."""
    lines = request(port, "GET", "/metrics").body.decode().splitlines()
    return {line.partition(" ")[0].partition("{")[0] for line in lines if not line.startswith("#")}


def name_of_sample(entry: MetricEntry) -> str:
    """Return the name of a sample that a metric has once it has any."""
    return f"{entry.name}_count" if entry.kind is Kind.HISTOGRAM else entry.name


def requests_of(found: dict[str, float]) -> dict[str, float]:
    """Return the numbers of requests by their methods."""
    beginning = "tusd_requests_total{method="
    return {name[len(beginning) : -1]: value for name, value in found.items() if name.startswith(beginning)}


def labels_of(*methods: str) -> list[str]:
    return [f"method={method},status_class=2xx" for method in methods]


def test_s3_is_measured_by_operation(tmp_path: Path) -> None:
    with serving_s3(tmp_path, Place(s3_server())) as server:
        upload(server.port, 12 << 20)
        found = scraped(server.port)
        for operation in ("create_multipart_upload", "upload_part", "complete_multipart_upload"):
            assert found[f"tusd_s3_call_duration_seconds_count{{operation={operation},result=ok}}"] > 0
        assert found["tusd_storage_write_seconds_count"] > 0
        assert found["tusd_storage_free_bytes"] != found["tusd_storage_free_bytes"]  # not a number
        assert not [name for name in found if f"operation={OTHER}" in name]


def test_interruption_and_resumption_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        path = create(server.port, 100)
        with contextlib.closing(stalled_patch(server.port, path, bytes(100), 40)):
            wait_until(lambda: scraped(server.port)["tusd_uploads_active"] == 1, "the append is under way")
        wait_until(lambda: scraped(server.port)["tusd_uploads_interrupted_total"] == 1, "it is interrupted")
        assert patch(server.port, path, 40, bytes(60)).status == 204
        found = scraped(server.port)
        assert (found["tusd_uploads_resumed_total"], found["tusd_uploads_active"]) == (1, 0)


def test_hook_that_does_not_answer_has_failed(tmp_path: Path) -> None:
    with HookEndpoint() as hooks:
        hooks.reply = SILENCE
        with serving(tmp_path, hooks_http=hooks.url, hooks_http_retry=1) as server:
            refused = request(server.port, "POST", "/files", {"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
            assert refused.status == 503
            found = scraped(server.port)
    assert found["tusd_hook_duration_seconds_count{hook=pre-create,result=failed}"] == 1


def test_messages_to_listeners_are_counted_by_kind(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        path = create(server.port, 10)
        with Listening(server.port, f"{path}/events") as first, Listening(server.port, f"{path}/events") as second:
            for stream in (first, second):
                event = stream.next()
                assert event is not None
                assert event.kind == "snapshot"
            assert scraped(server.port)["tusd_listeners{kind=sse}"] == 2
            assert patch(server.port, path, 0, bytes(10)).status == 204
            for stream in (first, second):
                while stream.next() is not None:
                    pass
        found = scraped(server.port)
    assert found["tusd_progress_messages_total{kind=snapshot}"] == 2
    assert found["tusd_progress_messages_total{kind=finished}"] == 2
