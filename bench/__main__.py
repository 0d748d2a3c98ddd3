"""The command line of the benchmark. Every server listens on 127.0.0.1 and is ended with the benchmark."""

import argparse
import dataclasses
import datetime
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import growth, hostile, machine, recipes
from bench.chart import svg
from bench.load import generator
from bench.payload import payload_file
from bench.recipes import WORK, Recipe, ServerOptions
from bench.report import Report, markdown, read_document
from bench.runner import Result, report_progress, run_workload
from bench.workloads import Plan, Workload, catalogue

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MIN_SIZE = 64 << 20
MAX_COUNT = 100
QUICK = Plan(size=128 << 20, small_uploads=400, heads=2000, connections=1000, slow_bytes=256 << 10)
QUICK_ROUNDS, ROUNDS = 2, 3
# Reports of their own about our server: one needs very many descriptors, the other very many records.
ON_REQUEST = {hostile.NAME: hostile.main, growth.NAME: growth.main}


def size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB)", text)
    if not match or int(match[1]) * UNITS[match[2]] < MIN_SIZE:
        raise argparse.ArgumentTypeError("a size is like 512MiB or 1GiB, and at least 64MiB")
    return int(match[1]) * UNITS[match[2]]


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {MAX_COUNT} is needed")
    return int(text)


def names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this server, a raw floor and peers.")
    parser.add_argument("--rounds", type=count, help=f"rounds of each workload (default {ROUNDS})")
    parser.add_argument(
        "--only", type=names, metavar="NAME,...", help=f"workloads: {', '.join([*catalogue(Plan()), *ON_REQUEST])}"
    )
    servers = ", ".join(recipes.catalogue(ServerOptions()))
    parser.add_argument("--servers", type=names, metavar="NAME,...", help=f"servers: {servers}")
    parser.add_argument("--size", type=size, help="what a bulk workload moves (default 1GiB)")
    parser.add_argument("--workers", type=count, default=0, help="also run our server with that many worker processes")
    parser.add_argument("--quick", action="store_true", help="small sizes and 2 rounds: to see that everything works")
    parser.add_argument(
        "--write", type=Path, metavar="PATH", help="put the report into this file and a chart beside it"
    )
    parser.add_argument("--directory", type=Path, default=WORK, help="where uploads are stored (default bench/.work)")
    parser.add_argument("--tusd", type=Path, metavar="BINARY", help="a tusd binary (default: built with go install)")
    parser.add_argument("--rustus", type=Path, metavar="BINARY", help="a rustus binary")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="a checkout of another revision of this server, with its .venv"
    )
    parser.add_argument("--ours-arguments", default="", metavar="TEXT", help="more arguments for our own server")
    return parser.parse_args(arguments)


def chosen(wanted: Sequence[str] | None, known: Mapping[str, object], what: str) -> list[str]:
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        sys.exit(f"unknown {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if wanted is None or name in wanted]


def make_plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    if not options.size:
        return plan
    return dataclasses.replace(plan, size=options.size)


def check_room(directory: Path, plan: Plan, servers: int) -> None:
    """Exit if the directory lacks space.

    Needed are the payload, one upload just made from it, and the small uploads until their workload ends.
    """
    needed = 2 * max(plan.size, 1000 * plan.slow_bytes) + servers * (256 << 20)
    if shutil.disk_usage(directory).free < 2 * needed:
        sys.exit(f"{directory} has less than {2 * needed >> 30} GiB free")


def measure_all(
    options: argparse.Namespace, plan: Plan, workloads: Sequence[Workload], servers: Sequence[Recipe], rounds: int
) -> list[Result]:
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        home = Path(name)
        with payload_file(home / "payload", plan.size) as payload:
            for workload in workloads:
                report_progress(workload.title)
                results.append(run_workload(workload, servers, rounds, plan, payload, home / workload.name))
    return results


def check_document(path: Path) -> None:
    """Exit before the first round if the report cannot be written to `path`."""
    try:
        read_document(path)
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


def write(path: Path, report: Report) -> None:
    before, after = read_document(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart = path.with_suffix(".svg")
    chart.write_text(svg(report))
    path.write_text(f"{before}\n{markdown(report, chart.name)}{after}")


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    plan = make_plan(options)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    extra = tuple(shlex.split(options.ours_arguments))
    server_options = ServerOptions(options.workers, options.tusd, options.rustus, options.baseline, extra)
    known = catalogue(plan)
    names_wanted = chosen(options.only, {**known, **ON_REQUEST}, "workload")
    workloads = [known[name] for name in names_wanted if name in known]
    server_names = chosen(options.servers, recipes.catalogue(server_options), "server")
    if options.write:
        check_document(options.write)
    options.directory.mkdir(parents=True, exist_ok=True)
    # SIGTERM unwinds like Ctrl-C, so that every server is ended and every file removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    requested = [ON_REQUEST[name] for name in names_wanted if options.only and name in ON_REQUEST]
    for report_alone in requested:
        report_alone(options.directory, quick=options.quick, extra=extra)
    if requested and not workloads:
        return
    report_progress("Setting up the servers (once; peers are kept in bench/.work)")
    servers, absent = recipes.set_up(server_names, server_options)
    for missing in absent:
        report_progress(f"  {missing.name} is absent: {missing.reason}")
    load = generator().description
    report_progress(f"Load generator of small requests: {load}")
    check_room(options.directory, plan, len(servers))
    results = measure_all(options, plan, workloads, servers, rounds)
    command = shlex.join(["python", "-m", "bench", *arguments])
    date = datetime.date.today().isoformat()
    conditions = [*machine.description(options.directory), ("Load generator of small requests", load)]
    report = Report(servers, absent, results, conditions, command, rounds, date)
    print(markdown(report))
    if options.write:
        write(options.write, report)


if __name__ == "__main__":
    main(sys.argv[1:])
