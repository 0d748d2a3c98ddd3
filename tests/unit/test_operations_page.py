"""The pages on operations and troubleshooting against the code."""

from __future__ import annotations

import re

import pytest

from tests.support.harness import ROOT
from tusd_py.core.upload import Status, Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished
from tusd_py.http.errors import STATUS
from tusd_py.observability.logging import log_requests
from tusd_py.observability.metrics import Metrics

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CODE = re.compile(r"`(ERR_[A-Z_]+)`")
PARTS_OF_HISTOGRAM = re.compile(r"_(?:bucket|sum|count)$")


def metrics() -> dict[str, str]:
    """Return the type of every metric of a server."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", Metrics(EventBus()).render().decode(), re.MULTILINE))


def fields_after(sentence: str) -> list[str]:
    """Return the names in the first column of the table after a sentence of the page."""
    table = OPERATIONS.partition(sentence)[2].partition("|---")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)


def test_table_of_metrics_has_every_metric_with_its_type() -> None:
    assert dict(re.findall(r"^\| `(tusd_[a-z0-9_]+)` \| (\w+) \|", OPERATIONS, re.MULTILINE)) == metrics()


def test_metric_named_in_alert_exists() -> None:
    named = {
        PARTS_OF_HISTOGRAM.sub("", name) for name in re.findall(r"tusd_[a-z0-9_]+", OPERATIONS) if name != "tusd_py"
    }
    assert named - set(metrics()) - {"tusd_py"} == set()


@pytest.mark.parametrize(
    ("sentence", "event"),
    [
        (
            "Each request is one line",
            RequestFinished("PATCH", "/files/a", 423, 1.0, "ERR", "a", 1, 1, 0, 1, "::1", "r", "ann", "another owner"),
        ),
        (
            "Each finished upload is one line",
            UploadFinished(Upload("a", 1.0, 1, offset=1, status=Status.COMPLETE, metadata="filename YQ==")),
        ),
    ],
)
def test_table_of_fields_has_every_field_of_line(
    caplog: pytest.LogCaptureFixture, sentence: str, event: RequestFinished | UploadFinished
) -> None:
    events = EventBus()
    log_requests(events)
    with caplog.at_level("INFO"):
        events.publish(event)
    assert fields_after(sentence) == list(caplog.records[-1].__dict__["fields"])


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
