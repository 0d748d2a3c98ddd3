"""Directed scenarios: runs of a world that a script leads, with its own settings and faults, in place of a seed.

A scenario is an async function that is given the world. The function starts and stops servers, has clients make
requests, and complains of what must not be. After it the world ends as every run does, with all its checks. The order
of callbacks and the behaviour of threads come from the seed 0, so that a scenario runs the same way each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Protocol, cast

from tests.simulation.directed_client import DirectedClient
from tests.simulation.machine import EPOCH
from tests.simulation.oracle import Expected
from tests.simulation.patches import Modules
from tests.simulation.profiles import CAREFUL, Profile
from tests.simulation.runner import bugs, prepare
from tests.simulation.servers import Host
from tests.simulation.world import Outcome, World
from tests.simulation.worlds import DISK, world_of
from tusd_py.uploads.service import UploadService

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("directed_*.py"))  # with scenarios, and helpers
SEED = 0
EVERY_WORLD = "all"
SETTINGS: dict[str, Any] = {
    "durability": "complete",
    "sweep_interval": 10.0,
    "expires_after": 0,
    "shutdown_grace": 5.0,
    "lock_timeout": 3.0,
    "concatenation_unfinished": False,
    "buffer_size": "1MiB",
    "idle_timeout": 15.0,
    "date_folders": False,
}


class Script(Protocol):
    """The steps of a scenario."""

    async def __call__(self, world: Any, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Scenario:
    """A script, the kind of world that it leads, and the settings of its servers.

    Attributes:
        name: that of the script.
        script: the steps.
        world: the kind of the world.
        processes: number of them; each has its own machine where the world has several.
        settings: of the servers, beside `SETTINGS`.
        s3: of the storage in S3.
        lacks: the abilities that the file system does not have, see `filesystem.ABILITIES`.
    """

    name: str
    script: Script
    world: str = DISK
    processes: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    s3: Mapping[str, Any] = field(default_factory=dict)
    lacks: Sequence[str] = ()

    def run(self) -> Outcome:
        """Run the world from its start to its end."""
        modules = prepare()
        kind = world_of(self.world)
        profiles = (Profile(self.name, processes=(self.processes,), most_faults=0, habits=CAREFUL),)
        attributes = {"scenario": self, "profiles": profiles}
        directed = cast(type[World], type("Directed", (DirectedWorld, kind), attributes))
        outcome = directed(SEED, modules, (), self.name).run()
        outcome.violations += bugs()
        return outcome


SCENARIOS: dict[str, Scenario] = {}


def scenario(world: str = DISK, **options: Any) -> Callable[[Script], Script]:
    """Make a scenario of the function below, see `Scenario`."""

    def register(script: Any) -> Script:
        name = script.__name__
        assert name not in SCENARIOS
        SCENARIOS[name] = Scenario(name, script, world, **options)
        return cast(Script, script)

    return register


def all_scenarios() -> dict[str, Scenario]:
    """Return the scenarios of all modules, by name."""
    for module in MODULES:
        import_module(f"tests.simulation.{module}")
    return SCENARIOS


class DirectedWorld(World):
    """The part of a world that follows a script; the kind of the world comes after it among the bases."""

    scenario: Scenario
    operators = administrators = followers = applications = rules_share = 0.0

    def __init__(self, seed: int, modules: Modules, without: Sequence[int] = (), profile: str = "") -> None:
        super().__init__(seed, modules, without, profile)
        self.settings = SETTINGS | self._own_settings() | dict(self.scenario.settings)
        self.rules.settings = dict(self.scenario.settings)  # some of which change what clients may expect
        self.oracle.durability = self.settings["durability"]
        self.oracle.expires_after = self.settings["expires_after"]
        self.oracle.retention = self.settings.get("retention", 0)
        self.machine.files.lacks = frozenset(self.scenario.lacks)
        self.given: dict[str, Any] = {}  # components and hooks of the servers that are started from now on
        self.client = DirectedClient(self, 0, Random(f"{seed} client"))
        self.clients = [self.client]

    def _next_settings(self) -> dict[str, Any]:
        return dict(self.settings)

    def _given(self) -> dict[str, Any]:
        return super()._given() | self.given

    def _draw_config(self, _: Random) -> Any:
        """Return the configuration of S3; of worlds that have it."""
        from tests.simulation.s3_world import _config

        return _config(**{"dialect": "aws", "part_size": 5 << 10, **self.scenario.s3})

    async def _main(self) -> None:
        self._quieten()
        for host in self.hosts:
            await host.start()
        await self.scenario.script(self)
        await self._calm_down()
        await self._finish([self.loop.create_task(self.client.finish())])
        await self._end()

    def _quieten(self) -> None:
        """Have nothing fail by itself."""
        self.machine.files.slow_reads = 0.0
        for name in ("network", "redis"):
            if hasattr(self, name):
                getattr(self, name).usual = 0.0
        if hasattr(self, "redis"):
            self.redis.store.epoch = EPOCH
        for machine in self.machines:
            machine.clock_error = 0.0

    @property
    def host(self) -> Host:
        """The place of the first process."""
        return self.hosts[0]

    @property
    def service(self) -> UploadService:
        """The service of the first process."""
        assert self.host.server is not None
        return self.host.server.service

    def check(self, condition: object, text: str) -> None:
        """Complain with this text unless the condition is met."""
        if not condition:
            self.complain(text)

    async def on(self, host: Host, ask: Callable[[UploadService], Awaitable[Any]]) -> Any:
        """Ask the service of a process something on its behalf; errors are raised."""
        assert host.process is not None
        assert host.server is not None
        service = host.server.service

        async def asking() -> Any:
            return await ask(service)

        return await self.loop.create_task(asking(), context=host.process.context.copy())

    async def restart(self, host: Host) -> None:
        """End a process as SIGTERM does, also what lingers of it, and start it again."""
        await self.stop(host)
        await host.start()

    async def stop(self, host: Host) -> None:
        """End a process as SIGTERM does, also what lingers of it."""
        await host.shut_down()
        host.end_lingering()

    async def unfinished(self, length: int = 3000, sent: int = 1000, kind: str = "") -> Expected:
        """Return an upload of this length that has so many bytes."""
        upload = await self.client.create(length, kind)
        await self.client.append(upload, sent)
        return upload

    async def complete(self, length: int = 3000, kind: str = "") -> Expected:
        """Return an upload of this length that is complete."""
        return await self.unfinished(length, length, kind)


def run_all(names: Sequence[str], world: str) -> int:
    """Run these scenarios, or all of one kind of world, or all, and print those that fail; return the exit code."""
    failed = 0
    known = all_scenarios()
    wanted = names or [name for name, scenario in known.items() if scenario.world == world or world == EVERY_WORLD]
    for name in wanted:
        outcome = known[name].run()
        if outcome.violations or names:
            print(f"scenario {name}: {outcome.violations or 'no violation'}")
            print("\n".join(outcome.story), end="\n\n")
        print(f"{name}: {outcome.steps} callbacks, digest {outcome.digest:x}")
        failed += bool(outcome.violations)
    print(f"{len(wanted)} scenarios: {failed} failed")
    return 1 if failed else 0
