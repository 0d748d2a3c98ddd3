"""The alert rules for Prometheus against the metrics and against the page on operations."""

from __future__ import annotations

import re

import pytest

from tests.support.harness import ROOT
from tusd_py.observability.catalogue import ENTRIES, Kind
from tusd_py.observability.label_values import OTHER

RULES = (ROOT / "deploy" / "prometheus-alerts.yaml").read_text()
RULE = re.compile(
    r"      - alert: (?P<name>\w+)\n"
    r"        expr: '(?P<expression>[^'\n]+)'\n"
    r"(?:        for: \d+m\n)?"
    r"        annotations:\n"
    r"          summary: '(?:[^'\n]|'')+'\n"
)
SELECTOR = re.compile(r"(tusd_[a-z0-9_]+)(?:\{([^}]*)\})?")
PARTS = ("_bucket", "_sum", "_count")
EXPRESSIONS = [match["expression"] for match in RULE.finditer(RULES)]


def test_file_has_rules_and_nothing_else() -> None:
    head, _, rules = RULES.partition("    rules:\n")
    assert head.endswith("groups:\n  - name: tusd-py\n")
    assert RULE.sub("", rules) == ""
    names = [match["name"] for match in RULE.finditer(RULES)]
    assert len(names) == len(set(names)) > 10


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rule_names_metrics_and_values_of_labels_that_exist(expression: str) -> None:
    for name, conditions in SELECTOR.findall(expression):
        part = next((part for part in PARTS if name.endswith(part) and name not in ENTRIES), "")
        entry = ENTRIES[name.removesuffix(part)]
        assert bool(part) == (entry.kind is Kind.HISTOGRAM)
        labels = {label.name: label for label in entry.labels}
        for label, value in re.findall(r'(\w+)="([^"]*)"', conditions):
            assert not labels[label].values or value in (*labels[label].values, OTHER)


def test_rules_are_those_of_the_page() -> None:
    table = (ROOT / "docs" / "operations.md").read_text().partition("## Alerts")[2]
    on_page = re.findall(r"^\| [^|]+ \| `([^`]*tusd_[^`]*)`", table, re.MULTILINE)
    assert on_page == EXPRESSIONS
