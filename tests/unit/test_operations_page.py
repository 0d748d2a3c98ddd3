"""The pages on operations and troubleshooting against the code."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping

import pytest

from tests.support.harness import ROOT
from tools.operations_tables import written
from tusd_py.core.errors import MalwareFound
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished
from tusd_py.http.errors import STATUS
from tusd_py.observability.catalogue import ENTRIES, Kind
from tusd_py.observability.label_values import JOB, REASON, REDIS_CALL, S3_OPERATION
from tusd_py.observability.log_fields import COMMON_FIELDS, LINES
from tusd_py.observability.logging import JsonFormatter, log_refused_upload, log_requests
from tusd_py.observability.metrics import PLAIN_COUNTERS

PAGE = (ROOT / "docs" / "operations.md").read_text()
CODE = re.compile(r"`(ERR_[A-Z_]+)`")
PARTS_OF_HISTOGRAM = re.compile(r"_(?:bucket|sum|count)$")


def test_tables_of_page_are_those_of_code() -> None:
    """After a change of a catalogue: make tables."""
    assert written(PAGE) == PAGE


def test_page_that_lacks_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tables metrics"):
        written(PAGE.replace("<!-- table: metrics -->", ""))


def test_metric_named_on_page_exists() -> None:
    named = {PARTS_OF_HISTOGRAM.sub("", name) for name in re.findall(r"tusd_[a-z0-9_]+", PAGE)}
    assert named - set(ENTRIES) == {"tusd_py"}


def test_every_line_with_fields_is_on_page() -> None:
    for line in LINES:
        assert re.search(rf"`{line.logger}`[^|]*?`{line.message}`", PAGE) or line.message == "refused"


def lines_of_server(caplog: pytest.LogCaptureFixture) -> Mapping[str, list[str]]:
    """Return the fields of a line of every kind, in which each field has a value, by the message of the line."""
    events = EventBus()
    log_requests(events)
    upload = Upload("a", 1.0, 1, offset=1, status=Status.COMPLETE, metadata="filename YQ==", owner="ann")
    request = RequestContext("PATCH", "/files/id", {}, client="127.0.0.1", principal="bob")
    finished = RequestFinished(
        "PATCH", "/files/a", 423, 1.0, "ERR", "a", 1, 1, 0, 1, "::1", "r", "ann", "another owner"
    )
    with caplog.at_level("INFO"):
        events.publish(finished)
        events.publish(UploadFinished(upload))
        log_refused_upload(upload, MalwareFound(), request)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
    return {record.__dict__["event"]: list(record.__dict__["fields"]) for record in caplog.records}


def test_line_has_every_field_of_the_catalogue(caplog: pytest.LogCaptureFixture) -> None:
    found = lines_of_server(caplog)
    assert found == {line.message: [field.name for field in line.fields] for line in LINES if line.message in found}
    assert {line.message for line in LINES} - set(found) == {"admin"}  # see tests/admin/test_access.py


def test_line_in_json_has_the_common_fields() -> None:
    try:
        raise ValueError
    except ValueError:
        record = logging.LogRecord("tusd_py", logging.ERROR, "", 0, "text", (), sys.exc_info())
    assert list(json.loads(JsonFormatter().format(record))) == [field.name for field in COMMON_FIELDS]


def test_no_other_line_has_fields() -> None:
    """Fields are given to `log_line` alone, which takes them from the catalogue."""
    sources = {path: path.read_text() for path in (ROOT / "tusd_py").rglob("*.py")}
    with_fields = [path.name for path, source in sources.items() if '"fields"' in source or "FieldMessage(" in source]
    assert with_fields == ["logging.py"]


def test_catalogue_has_every_job() -> None:
    jobs = re.findall(r'Job\("([a-z-]+)"', (ROOT / "tusd_py" / "jobs" / "duties.py").read_text())
    assert tuple(jobs) == JOB.values


def test_catalogue_has_every_call_of_redis() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tusd_py" / "backends" / "redis").rglob("*.py"))
    commands = {name.lower() for name in re.findall(r'\("([A-Z]{3,})"', sources)} - {"eval", "evalsha", "noauth"}
    scripts = set(re.findall(r'_load\("\w+", "(\w+)"', sources))
    others = set(re.findall(r'_call\(\s*"(\w+)"', sources))
    assert {"hgetall", "acquire", "pubsub"} <= commands | scripts | others <= set(REDIS_CALL.values)


def test_catalogue_has_every_operation_of_s3() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tusd_py" / "backends" / "s3").rglob("*.py"))
    verbs = "abort|complete|copy|create|delete|get|head|list|put|upload"
    operations = set(re.findall(rf'"((?:{verbs})_[a-z0-9_]+)"', sources)) | {"presign"}
    assert operations == set(S3_OPERATION.values)


def test_catalogue_has_every_reason_for_the_end_of_a_connection() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tusd_py" / "uvicorn_server").rglob("*.py"))
    reasons = set(re.findall(r'(?:connection_ended\(|self\._end_with_reason, )"(\w+)"', sources))
    assert reasons == set(REASON.values)


def test_names_follow_the_conventions_of_prometheus() -> None:
    for name, entry in ENTRIES.items():
        assert name.endswith("_total") or entry.kind is not Kind.COUNTER or name in PLAIN_COUNTERS
        assert name.endswith("_seconds") == (entry.unit == "seconds")
        assert entry.unit != "bytes" or "bytes" in name
        assert bool(entry.buckets) == (entry.kind is Kind.HISTOGRAM)
        assert entry.buckets == tuple(sorted(entry.buckets))


def test_troubleshooting_has_every_error_code() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tusd_py").rglob("*.py"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = set(re.findall(r"\b(ERR_[A-Z_]+[A-Z])\b", sources))
    assert set(CODE.findall(page)) == codes


def test_troubleshooting_has_status_of_every_error() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \| (.*?) \|", page, re.MULTILINE)
    documented = {
        (int(status), code)
        for statuses, codes in rows
        for status in statuses.split(",")
        for code in CODE.findall(codes)
    }
    expected = {(status, kind.code) for kind, (status, *_) in STATUS.items()}
    assert expected - documented == set()


def test_troubleshooting_quotes_messages_as_they_are() -> None:
    sources = " ".join(path.read_text() for path in (ROOT / "tusd_py").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # strings over several lines
    tables = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Log lines")[2]
    cells = " ".join(re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE))
    pieces = [piece.strip() for line in re.findall(r"`([^`]+)`", cells) for piece in line.split("...")]
    assert [piece for piece in pieces if piece not in sources] == []
