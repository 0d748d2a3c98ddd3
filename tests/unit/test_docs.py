"""Everything that the documents name exists."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import pytest

import tusd_py
from tests.support.harness import ROOT
from tusd_py.core.errors import MalwareFound
from tusd_py.core.request_context import RequestContext
from tusd_py.core.upload import Upload
from tusd_py.events.bus import EventBus
from tusd_py.events.types import RequestFinished, UploadFinished
from tusd_py.observability.logging import log_refused_upload, log_requests
from tusd_py.observability.metrics import PLAIN_COUNTERS, Metrics
from tusd_py.settings import FIELDS, flag_name
from tusd_py.settings.help import choices, readable_default

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PAGES = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]
MAX_COLUMNS = 100
# Not prose: blocks of code and comments.
NOT_PROSE = re.compile(r"^```.*?^```$|<!--.*?-->", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)
# A sentence, an item or a cell that begins so hides its actor.
NO_ACTOR = re.compile(
    r"(?:^(?:[-*] |\d+\. |#+ )?|[.!?:]\s+|\| |\*\*)((?:What|Who|Whose|Whom|How|It|Whoever|Whatever|Whichever)\b.*)",
    re.MULTILINE,
)


def prose(document: Path) -> list[str]:
    """Return the lines of a page that are neither code nor part of a table."""
    lines = NOT_PROSE.sub("", document.read_text()).split("\n")
    return [line for line in lines if not line.startswith("|")]


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_page_has_lines_of_at_most_100_columns(document: Path) -> None:
    wide = [line for line in prose(document) if len(line) > MAX_COLUMNS and "://" not in line]
    assert wide == []


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_page_has_no_sentence_without_its_actor(document: Path) -> None:
    assert NO_ACTOR.findall(NOT_PROSE.sub("", document.read_text())) == []


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_table_has_no_gap(document: Path) -> None:
    """A row after an empty line would be shown as text."""
    gap = re.compile(r"^\|.*\n\n(\|.*)\n(?!\|[-|: ]+\|$)", re.MULTILINE)
    assert gap.findall(NOT_PROSE.sub("", document.read_text())) == []


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_link_within_page_leads_to_a_title(document: Path) -> None:
    text = document.read_text()
    titles = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in TITLE.findall(text)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= titles


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_documented(name: str) -> None:
    rows = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    cells = [row.replace("`", "").split(" | ") for row in rows if row.startswith(f"| `{flag_name(name)}` |")]
    assert len(cells) == 1
    assert (FIELDS[name].description or "") in cells[0][-1]
    assert cells[0][1].strip(" |") in (readable_default(name), "off", "")
    assert all(choice in cells[0][-1] for choice in choices(name))


def test_every_flag_in_the_documents_exists() -> None:
    flags = {flag_name(name) for name in FIELDS}
    switches = {flag.replace("--", "--no-", 1) for flag in flags}
    others = {"--help", "--version", "--config", "--dry-run", "--workers", "--write", "--tusd", "--only", "--baseline"}
    others |= {"--json", "--all"}  # of `tusd-py events`
    others |= {"--state"}  # of `tusd-py uploads`
    others |= {"--scope"}  # of `tusd-py token`
    others |= {"--expires", "--owner", "--types", "--metadata"}  # of `tusd-py sign`
    others |= {"--no-access-log"}  # of uvicorn
    text = "".join(document.read_text() for document in DOCUMENTS if document.name != "performance.md")
    mentioned = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", text))
    assert mentioned <= flags | switches | others


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(
        r"\bsrc(?:set)?=\"((?:docs/)?pictures/[^\"]+)\"", text
    ):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("name", ["architecture.md", "glossary.md"])
def test_module_named_in_page_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = set(re.findall(r"`((?:[a-z0-9_]+/)+(?:[a-z0-9_]+\.py)?)`", text))
    roots = (ROOT, ROOT / "tusd_py")
    assert [path for path in named if not any((root / path).exists() for root in roots)] == []


def test_architecture_lists_every_layer_in_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = re.findall(r"tusd_py\.(\w+)", " ".join(next(c["layers"] for c in contracts if c["type"] == "layers")))
    block = (ROOT / "docs" / "architecture.md").read_text().partition("## Layers")[2].split("```")[1]
    listed = re.findall(r"^(\w+)(?:/|\.py) ", block, re.MULTILINE)
    assert listed == [layer for layer in layers if layer != "__main__"]


def test_glossary_is_in_order_and_names_each_concept_once() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*:", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(set(terms), key=str.lower)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {tusd_py.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def pinned(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+==[^ ]+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_lock_of_make_run_is_a_subset_of_the_lock_of_the_tests() -> None:
    assert pinned("requirements-run.lock")
    assert pinned("requirements-run.lock") <= pinned("requirements.lock")


def test_lock_of_make_run_has_the_dependencies_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["redis"]
    names = {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in needed}
    assert names <= {pin.partition("==")[0] for pin in pinned("requirements-run.lock")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_nothing_is_installed_from_an_index_that_does_not_have_it(document: Path) -> None:
    assert not re.search(r"pip install '?tusd-py", document.read_text())


def test_the_wheel_in_the_readme_is_the_one_of_this_version() -> None:
    assert f"tusd_py-{tusd_py.__version__}-py3-none-any.whl" in (ROOT / "README.md").read_text()


def operations_table(title: str) -> dict[str, list[str]]:
    """Return the rows of the table below a title of the operations page, by their first cell."""
    section = (ROOT / "docs" / "operations.md").read_text().split(title, 1)[1]
    table = re.search(r"^\|---.*\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_operations_page_names_every_metric_with_its_type_and_labels() -> None:
    documented = operations_table("## Metrics")
    registered = {}
    for metric in vars(vars(Metrics(EventBus()))["_registry"])["_collector_to_names"]:
        attributes = vars(metric)
        name, labels = attributes["_name"], ", ".join(f"`{label}`" for label in attributes["_labelnames"])
        kind = type(metric).__name__.lower()
        registered[f"{name}_total" if kind == "counter" and name not in PLAIN_COUNTERS else name] = [kind, labels]
    assert {name: cells[:2] for name, cells in documented.items()} == registered


def test_operations_page_names_every_field_of_the_lines_of_requests_and_uploads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = EventBus()
    log_requests(events)
    upload = Upload("id", created_at=1, completed_at=2, length=3, offset=3, metadata="filename YQ==")
    request = RequestFinished(
        "PATCH",
        "/files/id",
        204,
        0.1,
        error_code="ERR",
        upload_id="id",
        bytes_received=3,
        offset_before=0,
        offset_after=3,
        client="127.0.0.1",
        request_id="1",
        principal="ann",
        refusal="another owner",
    )
    with caplog.at_level(logging.INFO):
        events.publish(request)
        events.publish(UploadFinished(upload))
    fields = {record.name: record.__dict__["fields"] for record in caplog.records}
    assert list(operations_table("Each request is one line")) == list(fields["tusd_py.requests"])
    assert list(operations_table("Each finished upload is one line")) == list(fields["tusd_py.uploads"])


def test_operations_page_names_every_field_of_the_lines_of_refused_uploads(caplog: pytest.LogCaptureFixture) -> None:
    upload = Upload("id", created_at=1, length=3, offset=3, owner="ann")
    request = RequestContext("PATCH", "/files/id", {}, client="127.0.0.1", principal="bob")
    with caplog.at_level(logging.INFO):
        log_refused_upload(upload, MalwareFound(), request)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list(operations_table("Each upload that is removed")) == list(caplog.records[0].__dict__["fields"])


def test_operations_page_names_every_job() -> None:
    jobs = re.findall(r'Job\("([a-z-]+)"', (ROOT / "tusd_py" / "jobs" / "duties.py").read_text())
    documented = operations_table("## Metrics")["tusd_job_duration_seconds"][-1]
    assert len(jobs) == 2
    assert re.findall(r"`([a-z-]+)`", documented)[:2] == jobs
