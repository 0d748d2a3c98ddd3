"""A world made from a seed: machines, servers, clients and faults, and the story of what happened to them."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import tusd_py.composition
import tusd_py.sinks
from tests.simulation.administrators import Administrator, check_totals
from tests.simulation.application import CHOSEN, Application
from tests.simulation.clients import Client
from tests.simulation.event_ledger import EventLedger
from tests.simulation.faults import KINDS, Fault, draw
from tests.simulation.filesystem import FileSystem
from tests.simulation.followers import Follower, LastLook
from tests.simulation.loop import SimulatedLoop, Stuck
from tests.simulation.machine import Machine
from tests.simulation.operators import Operator
from tests.simulation.oracle import Expected, Oracle
from tests.simulation.patches import Modules
from tests.simulation.profiles import Profile, draw_profile
from tests.simulation.rules import OWNERS, Rules
from tests.simulation.servers import Host
from tests.simulation.threads import Scheduler
from tests.simulation.world_faults import FaultyWorld
from tests.simulation.world_settings import changes_of_settings, draw_lacks, draw_rare_settings, draw_settings
from tusd_py.core.errors import StateUnavailable, UploadError
from tusd_py.core.quotas import counted_bytes, is_open
from tusd_py.core.upload import Upload
from tusd_py.sinks import outbox_of
from tusd_py.uploads.queries import MAX_AGE
from tusd_py.uploads.service import UploadService

TOP = "/simulated/uploads"
LIVENESS = 60.0  # seconds after the end of the faults in which every upload can be finished
DELIVERY_PATIENCE = 60  # seconds after which an operator has events sent again
EXPIRY_PATIENCE = 20.0  # seconds after its expiry in which an upload is removed
TIMEOUT = 3600.0
ATTEMPTS = 5  # to ask something in the end


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


class World(FaultyWorld):
    """One run."""

    kinds: Mapping[str, int] = KINDS
    sizes: Sequence[int] = (1, 40, 700, 3000, 9000, 40_000)  # of uploads, at most
    profiles: Sequence[Profile] = ()  # beside one that prefers nothing
    most_faults = 6
    period = 30.0  # seconds in which faults begin
    patience = 25.0  # seconds that a client waits for an answer
    machine_names: Sequence[str] = ("host",)
    process_counts: Sequence[int] = (1, 1, 2)
    has_files = True  # of uploads, on one host, so that an application may choose their places
    operators: float = 0.0  # of the runs have an operator
    administrators: float = 0.25  # of the runs have an administrator
    followers: float = 0.25  # of the runs have a listener to live progress
    applications: float = 0.0  # of the runs have an application with hooks and sinks of events
    rules_share: float = 0.35  # of the runs have rules for senders and contents

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        """Build a world.

        Args:
            seed: decides everything.
            modules: the simulated modules of this process.
            without: numbers of faults to leave out.
            profile: name of the profile, in place of one that the seed draws.
        """
        self.seed = seed
        self.rng = Random(f"{seed} clients")
        self.loop = SimulatedLoop(Random(f"{seed} order"))  # type: ignore[abstract]
        self.scheduler = Scheduler(self.loop, Random(f"{seed} threads"))
        modules.use(self.scheduler, Random(f"{seed} names"))
        self._modules = modules
        self.story: list[str] = []
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        plan = Random(f"{seed} plan")
        self.profile = draw_profile(Random(f"{seed} profile"), self.profiles, self.most_faults, profile)
        self.habits = self.profile.habits
        self.settings = draw_settings(plan) | self._own_settings()
        if self.profile.durability:
            self.settings["durability"] = plan.choice(self.profile.durability)
        self.settings |= {name: plan.choice(values) for name, values in self.profile.settings.items()}
        self.settings |= draw_rare_settings(Random(f"{seed} rare settings"))
        self.rules = Rules(seed, self.loop, self.log, self.rules_share)
        self.settings |= self.rules.settings
        vars(tusd_py.composition)["ClamdScanner"] = self.rules.make_scanner
        self._settings_rng = Random(f"{seed} settings")
        files = FileSystem(Random(f"{seed} disk"), TOP)
        files.lacks = draw_lacks(Random(f"{seed} abilities"))
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
        self.oracle = self._make_oracle()
        self.oracle.refuses = self.rules.refuses
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
        self._draw_administrator(Random(f"{seed} administrator"))
        rng = Random(f"{seed} follower")
        self.followers_here = [Follower(self, rng)] if rng.random() < self.followers else []
        self._uploads = 0
        self._restarts: set[asyncio.Task[None]] = set()

    def _own_settings(self) -> dict[str, Any]:
        """Return settings that all runs of this kind of world have."""
        return {}

    def _make_oracle(self) -> Oracle:
        return Oracle(self.settings["durability"], self._stored, self.complain)

    def _next_settings(self) -> dict[str, Any]:
        """Return the settings of the next life of a server: those of the run, some of them changed."""
        wanted = {} if self.application is None else self.application.settings
        return {**self.settings, **changes_of_settings(self._settings_rng), **wanted}

    def _draw_administrator(self, rng: Random) -> None:
        """Have an administrator in some runs, and most lives of the servers prepared for one."""
        if rng.random() < self.administrators:
            self.operators_here.append(Administrator(self, rng))
            lives = Random(f"{self.seed} administrated lives")
            for host in self.hosts:
                host.is_administrated = lambda: lives.random() < 0.8

    @property
    def is_administrated(self) -> bool:
        return any(isinstance(operator, Administrator) for operator in self.operators_here)

    @property
    def owners(self) -> Sequence[str]:
        """The owners of uploads; none without a rule."""
        return OWNERS if self.rules.has_owners else ()

    def owner_of(self, upload: Expected) -> str:
        return self.rules.owner(self.client_of(upload).number)

    @property
    def keeps_every_record(self) -> bool:
        """Whether every upload that clients know has a record, which lists find."""
        return True

    def _draw_application(self) -> Application | None:
        share = self.applications if self.profile.applications is None else self.profile.applications
        if Random(f"{self.seed} has an application").random() >= share:
            return None
        application = Application(self.seed, self.loop, self.ledger, self.log, has_files=self.has_files)
        vars(tusd_py.sinks)["make_sink"] = application.make_sink
        return application

    def next_upload(self) -> int:
        """Return the number of a new upload."""
        self._uploads += 1
        return self._uploads

    def client_of(self, upload: Expected) -> Client:
        """Return the client that has made an upload."""
        return next(client for client in self.clients if upload in client.uploads)

    def components(self) -> dict[str, Any]:
        """Return the components of a new server that the settings do not choose."""
        return {}

    def _given(self) -> dict[str, Any]:
        """Return everything that a new server is given beside its settings."""
        hooks = None if self.application is None else self.application.hooks
        return self.components() | self.rules.components | ({} if hooks is None else {"hooks": hooks})

    def _stored(self, upload_id: str) -> bytes | None:
        files = self.machine.files
        paths = (name for name in files.names() if name.rpartition("/")[2] == upload_id and "." not in name)
        return files.read(f"{TOP}/{next(paths, upload_id)}")

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
        for name in self._modules.unseen():
            self.complain(f"the module {name} was imported in a run, and has real clocks: import it in runner.py")
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
        operators += [asyncio.ensure_future(follower.live()) for follower in self.followers_here]
        await faults
        await self._calm_down()
        if operators:
            await asyncio.wait(operators)
        last_looks = [LastLook(self, follower) for follower in self.followers_here]
        for look in last_looks:
            look.begin()
        await self._finish(clients)
        for look in last_looks:
            await look.end()
        await self._end()

    async def _end(self) -> None:
        """Check everything once more at rest, and shut all servers down."""
        if any(upload.abandoned for upload in self.oracle.uploads) and not self.counts.get("clock"):
            await self._expire()
        await self._clean()
        await self._check_usage()
        await self._check_totals()
        await self._deliver_events()
        await self._restore_backup()
        records = await self.hosts[0].record_ids()
        for host in self.hosts:
            await host.shut_down()
            host.end_lingering()
            for leftover in host.leftovers:
                self.complain(leftover)
        self._look_for_remains(records)

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
        self.rules.is_calm = True
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
                await self.client_of(upload).check_expired(upload)

    async def _deliver_events(self) -> None:
        """Wait until every event is delivered, with the help of an operator if their pauses are long."""
        if self.application is None:
            return
        for _ in range(2):
            for _ in range(DELIVERY_PATIENCE):
                await asyncio.sleep(1.0)
                if not await self._events_wait():
                    self.ledger.check_all(self.oracle.uploads, self.application.sinks)
                    return
            self.log("the operator has the events sent again")
            await self._on_first_host(lambda service: outbox_of(service.state).retry(None))
        self.complain("events are not delivered in the end")

    async def _events_wait(self) -> bool:
        """Return whether an event is still to be delivered."""
        return bool(await self._on_first_host(lambda service: outbox_of(service.state).outbox_depth()))

    async def _on_first_host(self, ask: Callable[[UploadService], Awaitable[Any]]) -> Any:
        """Ask the service of the first process something, on its behalf; again if an earlier fault is told only now."""
        host = self.hosts[0]
        assert host.process is not None
        assert host.server is not None
        service = host.server.service

        async def asking() -> Any:
            return await ask(service)

        for _ in range(ATTEMPTS):
            try:
                return await self.loop.create_task(asking(), context=host.process.context.copy())
            except UploadError:
                await asyncio.sleep(1.0)
        raise StateUnavailable("the records or the storage cannot be used in the end")

    async def _check_usage(self) -> None:
        """Check that the usage of every owner is what the records say, and no more than is allowed."""
        if not self.rules.has_quotas:
            return
        for owner in self.owners or ("",):
            usage, counted = await self._on_first_host(partial(_usage_of, owner))
            if usage != counted:
                self.complain(f"the usage of {owner!r} is {usage}, and its uploads have {counted}")
            if not self.oracle.losses and counted[0] > self.settings.get("quota_bytes", counted[0]):
                self.complain(f"{owner!r} has {counted[0]} bytes, which are more than its quota")

    async def _check_totals(self) -> None:
        """Check the totals that an administrator sees at rest."""
        for _ in range(ATTEMPTS if self.is_administrated else 0):
            await asyncio.sleep(MAX_AGE)
            before = await self._on_first_host(_records_of)
            wrong = await self._on_first_host(partial(self._compare_totals, before))
            if before == await self._on_first_host(_records_of):  # the sweeper has removed nothing meanwhile
                if wrong:
                    self.complain(wrong)
                return

    async def _compare_totals(self, records: Sequence[Upload], _: UploadService) -> str:
        server = self.hosts[0].server
        assert server is not None
        return await check_totals(server, records)

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
            self._check_remains(upload, names, records)
        for name in sorted(names - records):
            # A power cut takes records that name files; a process may die between a claim and the record.
            if not (self.orphans_possible or (name.startswith(CHOSEN) and not self._stored(name))):
                self.complain(f"the file {name} is left over")

    def _check_remains(self, upload: Expected, names: set[str], records: set[str]) -> None:
        is_removed = upload.was_removed or (upload.is_gone and upload.id not in records)  # else the sweeper comes soon
        if is_removed and not self.orphans_possible and upload.id in names:
            self.complain(f"upload {upload.number} was removed, and its file is still there")
        is_sure = upload.complete and not upload.may_be_gone
        if is_sure and (self._stored(upload.id) or b"") != bytes(upload.known):
            self.complain(f"upload {upload.number} is complete, and its file is not what was sent")


async def _usage_of(owner: str, service: UploadService) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the bytes and the number of unfinished uploads of an owner, as counted and by the records."""
    state: Any = service.state
    usage = await state.usage_of(owner)
    own = [upload async for upload in state.all() if upload.owner == owner]
    return (usage.bytes, usage.open), (sum(map(counted_bytes, own)), sum(map(is_open, own)))


async def _records_of(service: UploadService) -> list[Upload]:
    return [upload async for upload in service.state.all()]


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.lineno} of {frame.filename}"
