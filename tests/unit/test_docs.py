"""Everything that the documents name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import tusd_py
from tests.support.harness import ROOT
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
    others |= {"--no-access-log", "--ws-max-size", "--ws-per-message-deflate"}  # of uvicorn
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
