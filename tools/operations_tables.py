"""Writer of the tables of docs/operations.md whose content is in the code: `python -m tools.operations_tables`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tusd_py.observability.catalogue import ENTRIES
from tusd_py.observability.label_values import MAX_NAMES, OTHER, STATUS, Label
from tusd_py.observability.log_fields import COMMON_FIELDS, LINES

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
TABLE = "<!-- table: {name} -->\n{content}\n<!-- end of table -->"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("| --- ", "|---") for line in lines)


def metrics() -> str:
    """Return the table of all metrics."""
    rows = [
        (
            f"`{entry.name}`",
            entry.kind,
            ", ".join(f"`{label.name}`" for label in entry.labels),
            entry.unit,
            entry.meaning,
        )
        for entry in ENTRIES.values()
    ]
    return table(("Metric", "Type", "Labels", "Unit", "Meaning"), rows)


def labels() -> str:
    """Return the table of the labels of all metrics and of their values."""
    users: dict[Label, list[str]] = {}
    for entry in ENTRIES.values():
        for label in entry.labels:
            users.setdefault(label, []).append(f"`{entry.name}`")
    rows = [(f"`{label.name}`", ", ".join(names), label.meaning, values_of(label)) for label, names in users.items()]
    return table(("Label", "Metrics", "Meaning", "Values"), rows)


def values_of(label: Label) -> str:
    """Return the set of values of a label as text."""
    if label is STATUS:
        return f"0, the statuses of HTTP, `{OTHER}`"
    if not label.values:
        return f"at most {MAX_NAMES}, then `{OTHER}`"
    return ", ".join(f"`{value}`" for value in (*label.values, OTHER))


def fields(title: str) -> str:
    """Return the table of the fields of one line of the log."""
    found = COMMON_FIELDS if title == "common" else next(line.fields for line in LINES if line.message == title)
    return table(("Field", "Unit", "Meaning"), ((f"`{field.name}`", field.unit, field.meaning) for field in found))


def tables() -> Mapping[str, Callable[[], str]]:
    """Return the functions that make the tables, by their names on the page."""
    made: dict[str, Callable[[], str]] = {"metrics": metrics, "labels": labels}
    for title in ("common", *(line.message for line in LINES)):
        made[f"fields of {title}"] = lambda title=title: fields(title)  # type: ignore[misc]
    return made


def written(page: str) -> str:
    """Return the page with its tables as the code has them; raises `ValueError` if it lacks one."""
    for name, make in tables().items():
        pattern = re.compile(re.escape(f"<!-- table: {name} -->") + r"\n.*?<!-- end of table -->", re.DOTALL)
        content = TABLE.format(name=name, content=make())
        page, count = pattern.subn(lambda _, content=content: content, page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE.name} has {count} tables {name}")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
