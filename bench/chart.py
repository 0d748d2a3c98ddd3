"""A bar chart as plain SVG text."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.report import CPU_PER_GIB, SPEED, Metric, Report
from bench.runner import Result

WIDTH, MARGIN, LABEL, VALUE = 900, 20, 120, 80
BAR, GAP, TITLE = 16, 4, 30
OURS, FLOOR, PEER = "#2563eb", "#9ca3af", "#f59e0b"
CHARTED = ("patch", "chunks", "parallel")


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    text: str
    colour: str


def text(left: float, top: float, words: str, style: str = "") -> str:
    return f'<text x="{left:.0f}" y="{top:.0f}" {style}>{escape(words)}</text>'


def bars(report: Report, result: Result, metric: Metric) -> list[Bar]:
    found: list[Bar] = []
    for recipe in report.recipes:
        samples = result.samples.get(recipe.name)
        if samples:
            colour = OURS if recipe.ours else FLOOR if recipe.name.startswith("floor") else PEER
            value = metric.best(samples)
            found.append(Bar(recipe.name, value, metric.format(value), colour))
    return found


def panel(title: str, rows: Sequence[Bar], left: float, top: float) -> list[str]:
    """Return the SVG elements of one titled group of bars, drawn to the scale of the longest."""
    room = WIDTH / 2 - MARGIN - LABEL - VALUE
    longest = max((row.value for row in rows), default=0) or 1
    parts = [text(left, top + 16, title, 'font-weight="bold"')]
    for number, row in enumerate(rows):
        y = top + TITLE + number * (BAR + GAP)
        length = max(1.0, room * row.value / longest)
        parts.append(text(left + LABEL - 8, y + 12, row.label, 'text-anchor="end"'))
        parts.append(
            f'<rect x="{left + LABEL:.0f}" y="{y:.0f}" width="{length:.1f}" height="{BAR}" fill="{row.colour}"/>'
        )
        parts.append(text(left + LABEL + length + 6, y + 12, row.text))
    return parts


def svg(report: Report) -> str:
    """Throughput on the left and CPU time on the right, one row of panels for each bulk workload."""
    parts: list[str] = []
    top = float(MARGIN)
    for result in report.results:
        if result.workload.name not in CHARTED or not result.samples:
            continue
        for left, metric, note in ((MARGIN, SPEED, "more is better"), (WIDTH / 2, CPU_PER_GIB, "less is better")):
            title = f"{result.workload.title}: {metric.title} ({note})"
            parts += panel(title, bars(report, result, metric), left, top)
        top += TITLE + len(result.samples) * (BAR + GAP) + MARGIN
    frame = f'viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}"'
    style = 'font-family="sans-serif" font-size="12" fill="#111827"'
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {frame} {style}>'
    return "\n".join([head, background, *parts, "</svg>", ""])
