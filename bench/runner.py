"""The rounds of the workloads: in each, every server runs once, so that noise affects all servers alike."""

import contextlib
import math
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import BenchError, NotOfferedError
from bench.measure import Meter, Usage
from bench.payload import Payload, delete, verify
from bench.recipes import Recipe
from bench.servers import Target, kill, running
from bench.workloads import Plan, Work, Workload

# The server of a measurement that lasts longer is killed.
MEASUREMENT_SECONDS = 300
SCRATCH_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one server."""

    bytes: int
    operations: int
    usage: Usage
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one workload: samples by server, and the reason why a server has none."""

    workload: Workload
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else 0.0


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(target: Target, workload: Workload, plan: Plan, payload: Payload, with_bytes: bool) -> Sample:
    watchdog = threading.Timer(MEASUREMENT_SECONDS, kill, [target.process])
    watchdog.daemon = True
    watchdog.start()
    try:
        meter = Meter(target.process)
        work = workload.run(target, plan, payload, meter)
        verify(target.port, target.directory, work.uploads, payload, with_bytes)
        delete(target.port, target.directory, work.uploads)
    finally:
        watchdog.cancel()
    assert meter.usage is not None
    return sample(work, meter.usage)


def sample(work: Work, usage: Usage) -> Sample:
    p50, p99 = (percentile(work.latencies, share) for share in (0.50, 0.99))
    return Sample(work.bytes, work.operations, usage, p50, p99)


def run_workload(
    workload: Workload, recipes: Sequence[Recipe], rounds: int, plan: Plan, payload: Payload, home: Path
) -> Result:
    result = Result(workload)
    try:
        with contextlib.ExitStack() as stack:
            targets = start_all(workload, recipes, home, stack, result)
            for number in range(rounds):
                # Each round starts with another server: the first one of a round has the quietest disk.
                shift = number % max(1, len(targets))
                for target in targets[shift:] + targets[:shift]:
                    if target.name not in result.failures:
                        run_round(target, number, plan, payload, result)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return result


def start_all(
    workload: Workload, recipes: Sequence[Recipe], home: Path, stack: contextlib.ExitStack, result: Result
) -> list[Target]:
    targets: list[Target] = []
    for recipe in recipes:
        try:
            target = stack.enter_context(running(recipe, home))
        except (BenchError, OSError) as error:
            result.failures[recipe.name] = f"did not start: {error}"
            continue
        reason = workload.fits(target)
        if reason:
            result.failures[recipe.name] = reason
        else:
            targets.append(target)
    return targets


def touch_memory(scratch: Path, size: int) -> None:
    """Make the kernel use as much memory for a file as the workload will, and free it again.

    A virtual machine returns free memory to its host, and the first use of it afterwards is slow.
    """
    block = bytes(SCRATCH_BLOCK)
    with scratch.open("wb") as file:
        for _ in range(size // SCRATCH_BLOCK):
            file.write(block)
        scratch.unlink()


def run_round(target: Target, number: int, plan: Plan, payload: Payload, result: Result) -> None:
    workload = result.workload
    # Dirty pages of the previous server must not slow this one down.
    os.sync()
    touch_memory(target.directory / ".scratch", plan.size)
    try:
        measured = measure(target, workload, plan, payload, with_bytes=number == 0)
    except (BenchError, OSError, KeyError, ValueError) as error:
        failed = f"failed in round {number + 1}: {error or type(error).__name__}"
        result.failures[target.name] = str(error) if isinstance(error, NotOfferedError) else failed
        result.samples.pop(target.name, None)
        report_progress(f"  {workload.name:9} {target.name} {result.failures[target.name]}")
        return
    result.samples.setdefault(target.name, []).append(measured)
    usage = measured.usage
    numbers = f"{usage.seconds:7.2f} s  {usage.cpu_seconds:6.2f} s CPU  peak {usage.peak_bytes >> 20} MiB"
    report_progress(f"  {workload.name:9} round {number + 1} {target.name:12} {numbers}")
