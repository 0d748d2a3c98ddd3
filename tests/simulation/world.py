"""A world made from a seed: machines, servers, clients and faults, and the story of what happened to them."""

from __future__ import annotations

import asyncio
import functools
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import tusd_py.sinks
from tests.simulation.application import CHOSEN, Application
from tests.simulation.clients import Client
from tests.simulation.event_ledger import EventLedger
from tests.simulation.faults import KINDS, Fault, draw
from tests.simulation.filesystem import ABILITIES, FileSystem
from tests.simulation.loop import PROCESS, SimulatedLoop, Stuck
from tests.simulation.machine import Machine
from tests.simulation.moments import CHANGE, FAILED_SYNC, Moments
from tests.simulation.operators import Operator
from tests.simulation.oracle import Expected, Oracle
from tests.simulation.patches import Modules
from tests.simulation.profiles import Profile, draw_profile
from tests.simulation.servers import Host
from tests.simulation.threads import Scheduler
from tusd_py.contracts.outbox import Outbox
from tusd_py.core.errors import UploadError
from tusd_py.sinks import outbox_of
from tusd_py.uploads.sweeping import OrphanCleaner

TOP = "/simulated/uploads"
LIVENESS = 60.0  # seconds after the end of the faults in which every upload can be finished
DELIVERY_PATIENCE = 60  # seconds after which an operator has events sent again
EXPIRY_PATIENCE = 20.0  # seconds after its expiry in which an upload is removed
TIMEOUT = 3600.0


@dataclass(slots=True)
class Outcome:
    """The result of a run."""

    seed: int
    violations: list[str]
    story: list[str]
    digest: int
    steps: int
    faults: list[Fault]
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


class World:
    """One run. `without` are the numbers of faults to leave out."""

    kinds = KINDS
    sizes: Sequence[int] = (1, 40, 700, 3000, 9000, 40_000)  # of uploads, at most
    profiles: Sequence[Profile] = ()  # beside one that prefers nothing
    most_faults = 6
    period = 30.0  # seconds in which faults begin
    patience = 25.0  # seconds that a client waits for an answer
    machine_names: Sequence[str] = ("host",)
    process_counts: Sequence[int] = (1, 1, 2)
    has_files = True  # of uploads, on one host
    operators: float = 0.0  # of the runs have an operator
    applications: float = 0.0  # of the runs have an application with hooks and sinks of events

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = ()) -> None:
        self.seed = seed
        self.rng = Random(f"{seed} clients")
        self.loop = SimulatedLoop(Random(f"{seed} order"))  # type: ignore[abstract]
        self.scheduler = Scheduler(self.loop, Random(f"{seed} threads"))
        modules.use(self.scheduler, Random(f"{seed} names"))
        self.story: list[str] = []
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        plan = Random(f"{seed} plan")
        self.profile = draw_profile(Random(f"{seed} profile"), self.profiles, self.most_faults)
        self.habits = self.profile.habits
        self.settings = _settings(plan)
        if self.profile.durability:
            self.settings["durability"] = plan.choice(self.profile.durability)
        self.settings |= {name: plan.choice(values) for name, values in self.profile.settings.items()}
        self.settings |= _rare_settings(Random(f"{seed} rare settings"))
        self._settings_rng = Random(f"{seed} settings")
        files = FileSystem(Random(f"{seed} disk"), TOP)
        files.lacks = _draw_lacks(Random(f"{seed} abilities"))
        self.machines = [
            Machine(name, self.loop, self.scheduler, Random(f"{seed} machine{name.removeprefix('host')}"), files)
            for name in self.machine_names
        ]
        self.machine = self.machines[0]
        self.hosts = [
            Host(
                self.machines[number % len(self.machines)],
                self.loop,
                Random(f"{seed} host {number}"),
                self._next_settings,
                self.log,
                self._given,
            )
            for number in range(plan.choice(self.profile.processes or self.process_counts))
        ]
        self.oracle = Oracle(self.settings["durability"], self._stored, self.complain)
        self.oracle.now = self.loop.time
        self.oracle.expires_after = self.settings["expires_after"]
        self.oracle.retention = self.settings.get("retention", 0)
        self.ledger = EventLedger(self.oracle)
        self.application = self._draw_application()
        files.on_failed_sync = lambda: self.oracle.lost_unsynced(records=False)
        self.faults = draw(plan, self.period, self.profile, self.kinds)
        self.left_out = set(without)
        self.calm = asyncio.Event()  # no more faults: everything must work
        self.orphans_possible = False
        self.clients = [
            Client(self, number, Random(f"{seed} client {number}"))
            for number in range(plan.choice(self.profile.clients or (1, 2, 3, 4)))
        ]
        rng = Random(f"{seed} operator")
        self.operators_here = [Operator(self, rng)] if rng.random() < self.operators else []
        self._uploads = 0
        self._restarts: set[asyncio.Task[None]] = set()

    def _next_settings(self) -> dict[str, Any]:
        """Return the settings of the next life of a server: those of the run, some of them changed."""
        wanted = {} if self.application is None else self.application.settings
        return {**self.settings, **_changes_of_settings(self._settings_rng), **wanted}

    def _draw_application(self) -> Application | None:
        share = self.applications if self.profile.applications is None else self.profile.applications
        if Random(f"{self.seed} has an application").random() >= share:
            return None
        application = Application(self.seed, self.loop, self.ledger, self.log, has_files=self.has_files)
        vars(tusd_py.sinks)["make_sink"] = application.make_sink
        return application

    # The records for the report.

    def log(self, text: str) -> None:
        self.story.append(f"{self.loop.now - 1000:10.4f}  {text}")

    def complain(self, text: str) -> None:
        self.violations.append(text)
        self.log(f"VIOLATION: {text}")

    def next_upload(self) -> int:
        """Return the number of a new upload."""
        self._uploads += 1
        return self._uploads

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def components(self) -> dict[str, Any]:
        """Return the components of a new server that the settings do not choose."""
        return {}

    def _given(self) -> dict[str, Any]:
        """Return everything that a new server is given beside its settings."""
        hooks = None if self.application is None else self.application.hooks
        return self.components() | ({} if hooks is None else {"hooks": hooks})

    def _stored(self, upload_id: str) -> bytes | None:
        files = self.machine.files
        paths = (name for name in files.names() if name.rpartition("/")[2] == upload_id and "." not in name)
        return files.read(f"{TOP}/{next(paths, upload_id)}")

    @property
    def is_calm(self) -> bool:
        return self.calm.is_set()

    @property
    def moments(self) -> Moments:
        return self.machine.files.moments

    @property
    def storage_is_sick(self) -> bool:
        """Whether the server may have met an error of the storage."""
        return any(
            self.counts.get(kind)
            for kind in (
                "sync fails",
                "sync kills",
                "record sync fails",
                "write fails",
                "full",
                "away",
                "stall",
                "hang",
                "power cut",
            )
        )

    def host_for(self, rng: Random) -> Host | None:
        """Return a host whose server is up, if there is one."""
        up = [host for host in self.hosts if host.is_up and host.process is not None and host.process.alive]
        return rng.choice(up) if up else None

    # The run.

    def run(self) -> Outcome:
        self.log(f"seed {self.seed} ({self.profile.name}): {len(self.hosts)} processes, {len(self.clients)} clients")
        self.log(f"{self.settings}")
        try:
            self.loop.run(self._main(), TIMEOUT)
        except Stuck as stuck:
            self.complain(f"the world is stuck: {stuck}")
        except Exception as error:  # of a client that met an answer nobody expects, or a mistake of the simulation
            self.complain(f"the run ends with {error!r} in line {_last_line(error)}")
        for context in self.loop.errors:
            if "exception" in context and not isinstance(context["exception"], asyncio.CancelledError):
                self.complain(f"in the event loop: {context['message']}: {context['exception']!r}")
        outcome = Outcome(
            self.seed, self.violations, self.story, self.loop.digest, self.loop.steps, self.faults, self.loop.now - 1000
        )
        outcome.counts = self.counts
        self.loop.dispose()
        return outcome

    async def _main(self) -> None:
        for host in self.hosts:
            await host.start()
        faults = asyncio.ensure_future(self._inject())
        clients = [asyncio.ensure_future(client.live()) for client in self.clients]
        operators = [asyncio.ensure_future(operator.live()) for operator in self.operators_here]
        await faults
        await self._calm_down()
        if operators:
            await asyncio.wait(operators)
        await self._finish(clients)
        if any(upload.abandoned for upload in self.oracle.uploads) and not self.counts.get("clock"):
            await self._expire()
        await self._clean()
        await self._deliver_events()
        await self._restore_backup()
        records = await self.hosts[0].record_ids()
        for host in self.hosts:
            await host.shut_down()
            host.end_lingering()
            for leftover in host.leftovers:
                self.complain(leftover)
        self._look_for_remains(records)

    async def _inject(self) -> None:
        begin = self.loop.now
        for fault in self.faults:
            await asyncio.sleep(max(0.0, begin + fault.at - self.loop.now))
            if fault.number not in self.left_out:
                self.log(str(fault))
                self.count(fault.kind)
                self._apply_when_due(fault)
        await asyncio.sleep(max(0.0, begin + self.period - self.loop.now))

    def _apply_when_due(self, fault: Fault) -> None:
        apply = functools.partial(self._apply_next, fault)
        if fault.moment:
            then = functools.partial(self._wait_for_changes, fault) if fault.changes else apply
            self.moments.wait(fault.moment, 1, then)
        elif fault.changes:
            self._wait_for_changes(fault)
        else:
            self._apply(fault)

    def _wait_for_changes(self, fault: Fault) -> None:
        self.moments.wait(CHANGE, fault.changes, functools.partial(self._apply_next, fault))

    def _apply_next(self, fault: Fault) -> None:
        """Apply a fault whose moment has come in a call of a process, before that call ends if it can be."""
        caller = PROCESS.get()
        targets = [number for number, host in enumerate(self.hosts) if host.process is caller]
        due = replace(fault, target=targets[0]) if targets else fault

        def apply() -> None:
            if not self.is_calm:
                self.log(f"now fault {fault.number}")
                self._apply(due)

        self.loop.call_next(apply)

    def _apply(self, fault: Fault) -> None:
        host = self.hosts[fault.target % len(self.hosts)]
        if fault.kind == "kill":
            host.kill()
            self._start_later(host, fault.seconds)
        elif fault.kind == "power cut":
            self.power_cut(fault.seconds)
        elif fault.kind == "pause" and host.process is not None:
            host.process.pause()
            self.loop.call_later(fault.seconds, host.process.go_on)
        elif fault.kind == "shutdown":
            self._track(asyncio.ensure_future(self._restart(host, fault.seconds)))
        elif fault.kind == "sync kills":
            self.machine.files.failing_syncs += 1
            self._apply_when_due(replace(fault, kind="kill", moment=FAILED_SYNC, changes=0))
        elif fault.kind == "clock":
            host.machine.clock_error += (fault.amount - 0.5) * 10 ** (2 + fault.seconds % 6)
        else:
            self._apply_to_files(fault)

    def _apply_to_files(self, fault: Fault) -> None:
        files = self.machine.files
        if fault.kind == "stall":
            files.stalled_until = max(files.stalled_until, self.loop.now + fault.seconds * 2)
        elif fault.kind == "hang":
            files.hang_seconds = fault.seconds
        elif fault.kind == "sync fails":
            files.failing_syncs += 1 + int(fault.amount * 3)
        elif fault.kind == "record sync fails":
            files.failing_record_syncs += 1 + int(fault.amount * 2)
        elif fault.kind == "write fails":
            files.failing_writes += 1 + int(fault.amount * 3)
        elif fault.kind == "full":
            files.is_full = True
            self.loop.call_later(fault.seconds, setattr, files, "is_full", False)
        elif fault.kind == "away":
            self._unmount(fault.seconds)

    def _unmount(self, seconds: float) -> None:
        """Show an empty folder in place of the files; only while the servers run, whose records are open."""
        self.machine.files.is_away = True
        self.loop.call_later(seconds, setattr, self.machine.files, "is_away", False)

    def power_cut(self, seconds: float) -> None:
        """Take the power from all machines and their disk."""
        files = self.machine.files
        for host in self.hosts:
            host.kill()
            host.end_lingering()
        for machine in self.machines:
            for database in list(machine.databases.values()):
                database.abandon()
            machine.boots += 1
            machine.booted_at = self.loop.now
        files.power_cut()
        files.stalled_until = 0.0
        files.is_away = files.is_full = False
        files.stop_failing()
        files.hang_seconds = 0.0
        self.orphans_possible = True
        self.oracle.lost_unsynced(records=True)
        for host in self.hosts:
            self._start_later(host, seconds)

    def _track(self, task: asyncio.Task[None]) -> None:
        self._restarts.add(task)
        task.add_done_callback(self._restarted)

    def _restarted(self, task: asyncio.Task[None]) -> None:
        self._restarts.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.complain(f"a server could not be ended or started: {error!r}")

    def _start_later(self, host: Host, seconds: float) -> None:
        self._track(asyncio.ensure_future(self._start(host, seconds)))

    async def _start(self, host: Host, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self.machine.files.is_away:  # noqa: ASYNC110 - an operator mounts first
            await asyncio.sleep(0.5)
        if not host.is_starting and (host.process is None or not host.process.alive):
            await host.start()

    async def _restart(self, host: Host, seconds: float) -> None:
        await host.shut_down()
        await self._start(host, seconds)

    def _clean_now(self, host: Host) -> None:
        """Remove orphans of any age: the lock protects what a request is about to commit."""
        if host.is_up and host.process is not None and host.process.alive and host.server is not None:
            cleaner = OrphanCleaner(host.server.service)
            cleaning = self.loop.create_task(cleaner.clean(older_than=0), context=host.process.context.copy())
            cleaning.add_done_callback(self._cleaned)

    def _cleaned(self, cleaning: asyncio.Task[Any]) -> None:
        if not cleaning.cancelled() and not isinstance(cleaning.exception(), UploadError | None):
            self.complain(f"the cleanup of orphans fails: {cleaning.exception()!r}")

    async def _calm_down(self) -> None:
        """End all faults, and have every server run."""
        files = self.machine.files
        self.log("the faults end")
        files.is_full = files.is_away = False
        files.stop_failing()
        files.stalled_until = files.hang_seconds = 0.0
        files.hangs_end_at = self.loop.now
        self.moments.forget()
        for host in self.hosts:
            if host.process is not None and host.process.paused:
                host.process.go_on()
        while self._restarts:
            await asyncio.wait(list(self._restarts))
        for host in self.hosts:
            if not host.is_up:
                await self._start(host, 0.0)
        if self.application is not None:
            self.application.is_calm = True
        self.calm.set()

    async def _finish(self, clients: Sequence[asyncio.Task[None]]) -> None:
        _, running = await asyncio.wait(clients, timeout=LIVENESS)
        for task in clients:
            if task in running:
                task.cancel()
            elif (error := task.exception()) is not None:
                raise error
        for client in self.clients:
            for upload in client.uploads:
                if not (upload.complete or upload.given_up or upload.is_gone):
                    self.complain(f"upload {upload.number} is not finished after {LIVENESS:.0f} s: {client.doing}")

    async def _expire(self) -> None:
        """Wait until the abandoned uploads have expired, and check that they are gone."""
        await asyncio.sleep(self.settings["expires_after"] + EXPIRY_PATIENCE)
        for upload in self.oracle.uploads:
            if upload.abandoned:
                await self.clients[0].check_expired(upload)

    async def _deliver_events(self) -> None:
        """Wait until every event is delivered, with the help of an operator if their pauses are long."""
        if self.application is None:
            return
        for _ in range(2):
            for _ in range(DELIVERY_PATIENCE):
                await asyncio.sleep(1.0)
                if not await self._on_first_host(lambda outbox: outbox.outbox_depth()):
                    self.ledger.check_all(self.oracle.uploads, self.application.sinks)
                    return
            self.log("the operator has the events sent again")
            await self._on_first_host(lambda outbox: outbox.retry(None))
        self.complain("events are not delivered in the end")

    async def _on_first_host(self, ask: Callable[[Outbox], Coroutine[Any, Any, Any]]) -> Any:
        """Ask the outbox, on behalf of the first process."""
        host = self.hosts[0]
        assert host.process is not None
        assert host.server is not None
        asking = ask(outbox_of(host.server.service.state))
        return await self.loop.create_task(asking, context=host.process.context.copy())

    def removed(self, upload: Expected) -> None:
        """Check what is left of an upload that was removed; files are looked at in the end."""

    async def _clean(self) -> None:
        """Do what a server does only after days."""

    async def _restore_backup(self) -> None:
        """Go back to a backup of the records, if there is one."""

    def _look_for_remains(self, records: set[str]) -> None:
        """Check what the storage has: the bytes of every complete upload, and nothing of one that was removed."""
        names = {name.rpartition("/")[2] for name in self.machine.files.names() if not name.startswith(".tusd-py/")}
        for upload in self.oracle.uploads:
            self.oracle.note_expiry(upload)
            self._check_remains(upload, names)
        for name in sorted(names - records):
            # A power cut takes records that name files; a process may die between a claim and the record.
            if not (self.orphans_possible or (name.startswith(CHOSEN) and not self._stored(name))):
                self.complain(f"the file {name} is left over")

    def _check_remains(self, upload: Expected, names: set[str]) -> None:
        if upload.is_gone and not self.orphans_possible and upload.id in names:
            self.complain(f"upload {upload.number} was removed, and its file is still there")
        is_sure = upload.complete and not upload.may_be_gone
        if is_sure and (self._stored(upload.id) or b"") != bytes(upload.known):
            self.complain(f"upload {upload.number} is complete, and its file is not what was sent")


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.lineno} of {frame.filename}"


def _settings(plan: Random) -> dict[str, Any]:
    return {
        "durability": plan.choice(("complete", "complete", "complete", "always", "never")),
        "sweep_interval": 10.0,
        "expires_after": plan.choice((0, 0, 600)),
        "shutdown_grace": 5.0,
        "lock_timeout": 3.0,
        "concatenation_unfinished": plan.random() < 0.3,
        "buffer_size": "1MiB",
        "idle_timeout": 15.0,
    }


def _rare_settings(rng: Random) -> dict[str, Any]:
    """Return settings that few servers have."""
    settings: dict[str, Any] = {}
    if rng.random() < 0.08:
        settings["max_size"] = rng.choice((2000, 20_000))
    if rng.random() < 0.08:
        settings |= {"file_mode": "0600", "directory_mode": "0700"}
    return settings


def _draw_lacks(rng: Random) -> frozenset[str]:
    """Return what the file system cannot do; most can do everything."""
    if rng.random() < 0.8:
        return frozenset()
    return frozenset(ability for ability in ABILITIES if rng.random() < 0.4)


def _changes_of_settings(rng: Random) -> dict[str, Any]:
    """Return settings that may change from one life of a server to the next, without a promise that depends on them."""
    return {
        "date_folders": rng.random() < 0.3,
        "shutdown_grace": rng.choice((5.0, 5.0, 2.0)),
        "lock_timeout": rng.choice((3.0, 3.0, 1.0)),
    }
