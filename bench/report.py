"""The report: Markdown tables of the best rounds, the spread, and how our server compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.recipes import Absent, Recipe
from bench.runner import Result, Sample

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
GIB, MIB = 1 << 30, 1 << 20
NEW_DOCUMENT = f"# Performance\n\n{START}\n{END}\n"


@dataclass(frozen=True, slots=True)
class Metric:
    title: str
    value: Callable[[Sample], float]
    digits: int
    highest: bool = False

    def best(self, samples: Sequence[Sample]) -> float:
        """Return the value of the best round, since noise only adds to times; for a peak, that of all rounds."""
        return (max if self.highest else min)(self.value(sample) for sample in samples)

    def format(self, value: float) -> str:
        return f"{value:,.{self.digits}f}".replace(",", " ")

    def spread(self, samples: Sequence[Sample]) -> str:
        values = [self.value(sample) for sample in samples]
        return f"{self.format(min(values))} .. {self.format(max(values))}"


@dataclass(frozen=True, slots=True)
class Report:
    recipes: Sequence[Recipe]
    absent: Sequence[Absent]
    results: Sequence[Result]
    machine: Sequence[tuple[str, str]]
    command: str
    rounds: int
    date: str


SPEED = Metric("MB/s", lambda s: s.bytes / s.usage.seconds / 1e6, 0, highest=True)
CPU_PER_GIB = Metric("CPU s/GiB", lambda s: s.usage.cpu_seconds / s.bytes * GIB, 2)
RATE = Metric("per second", lambda s: s.operations / s.usage.seconds, 0, highest=True)
CPU_EACH = Metric("CPU ms each", lambda s: s.usage.cpu_seconds / s.operations * 1e3, 3)
P50 = Metric("p50 ms", lambda s: s.p50 * 1e3, 2)
P99 = Metric("p99 ms", lambda s: s.p99 * 1e3, 2)
IDLE = Metric("RSS before, MiB", lambda s: s.usage.idle_bytes / MIB, 1)
PEAK = Metric("peak RSS, MiB", lambda s: s.usage.peak_bytes / MIB, 1, highest=True)

# The first metric is the one whose spread is shown; the first two are compared.
METRICS: dict[str, tuple[Metric, ...]] = {
    "bulk": (SPEED, CPU_PER_GIB, PEAK),
    "chunks": (SPEED, CPU_PER_GIB, P50, P99, PEAK),
    "small": (RATE, CPU_EACH, P50, P99, PEAK),
    "memory": (PEAK, CPU_PER_GIB, IDLE),
}


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its head, all columns but the first are right-aligned."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]


def ordered(report: Report, result: Result) -> list[Recipe]:
    return [recipe for recipe in report.recipes if recipe.name in result.samples]


def result_section(report: Report, result: Result) -> list[str]:
    metrics = METRICS[result.workload.kind]
    rows = [["server", metrics[0].title, "min .. max", *(metric.title for metric in metrics[1:])]]
    for recipe in ordered(report, result):
        samples = result.samples[recipe.name]
        first, *rest = (metric.format(metric.best(samples)) for metric in metrics)
        rows.append([recipe.name, first, metrics[0].spread(samples), *rest])
    lines = [f"### {result.workload.title}", "", *table(rows), ""]
    missing = [f"{name} {reason}" for name, reason in result.failures.items()]
    return [*lines, f"Not in the table: {'; '.join(missing)}.", ""] if missing else lines


def ratio(metric: Metric, ours: Sequence[Sample], other: Sequence[Sample]) -> str:
    """Return our value divided by that of the other server; a dash where the clock was too coarse."""
    below = metric.best(other)
    return f"{metric.best(ours) / below:.2f}" if below else "–"


def ratio_section(report: Report, ours: Recipe) -> list[str]:
    others = [recipe for recipe in report.recipes if not recipe.ours]
    rows = [["workload", "ratio of", *(recipe.name for recipe in others)]]
    for result in report.results:
        mine = result.samples.get(ours.name)
        if not mine:
            continue
        for metric in METRICS[result.workload.kind][:2]:
            cells = [
                ratio(metric, mine, result.samples[recipe.name]) if recipe.name in result.samples else ""
                for recipe in others
            ]
            rows.append([result.workload.title, metric.title, *cells])
    if len(rows) == 1 or not others:
        return []
    return [f"### `{ours.name}` divided by the others", "", *table(rows), ""]


def machine_section(report: Report) -> list[str]:
    lines = [f"- {name}: {text}" for name, text in report.machine]
    lines += [f"- Server `{recipe.name}`: {recipe.version}" for recipe in report.recipes]
    lines += [f"- Server `{absent.name}`: absent, {absent.reason}" for absent in report.absent]
    return [*lines, f"- Command: `{report.command}`, {report.rounds} rounds, {report.date}", ""]


def explanation(report: Report) -> list[str]:
    return [
        "Every server runs on the same machine and file system in the same run, and gets its turn in every round.",
        "A figure is that of the best round, since noise only adds; the spread over the rounds stands beside the first",
        "one. CPU time is the user and system time of the server's whole process tree, without the load generator's.",
        "Peak RSS is summed over the tree and is the highest of all rounds. No server writes an access log.",
        "For MB/s and `per second` a ratio above 1 is in our favour, for CPU and RSS one below 1.",
        "",
        "`ours` syncs a finished upload to disk before it answers, which is its default. No peer does that, nor does",
        "`floor`: compare these with `ours-nosync`, and `ours` with `floor-fsync`.",
        "",
    ]


def markdown(report: Report, chart: str = "") -> str:
    lines = [*machine_section(report), *explanation(report)]
    if chart:
        lines += [f"![Throughput and CPU time of each server]({chart})", ""]
    for recipe in report.recipes:
        if recipe.ours:
            lines += ratio_section(report, recipe)
    for result in report.results:
        lines += result_section(report, result)
    return "\n".join(lines).rstrip() + "\n"


def split_document(document: str) -> tuple[str, str]:
    """Return the text before and after the section that is replaced, markers included in both."""
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the file has no section between {START} and {END}")
    return before + START, END + after


def read_document(path: Path) -> tuple[str, str]:
    return split_document(path.read_text() if path.exists() else NEW_DOCUMENT)
