"""Puts simulated modules in the place of those of the standard library, in the modules of the server only."""

from __future__ import annotations

import fcntl
import genericpath
import glob
import io
import os
import pathlib
import posixpath
import queue
import random
import secrets
import socket
import sqlite3
import sys
import threading
import time
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import tusd_py.backends.disk.file_system_sync
import tusd_py.backends.disk.syncs
import tusd_py.core.clock
from tests.simulation import sqlite
from tests.simulation.loop import PROCESS
from tests.simulation.machine import FIRST_DESCRIPTOR
from tests.simulation.system_calls import FcntlModule, OsModule
from tests.simulation.threads import QueueModule, Scheduler, ThreadingModule, use
from tests.simulation.unix_sockets import SocketModule


class TimeModule:
    """The clocks of the machine of the process that asks; real ones outside a simulation."""

    def __init__(self) -> None:
        for name in dir(time):
            if name not in dir(self):
                setattr(self, name, getattr(time, name))
        self.scheduler: Scheduler | None = None

    def time(self) -> float:
        process = PROCESS.get()
        return time.time() if process is None else process.machine.wall()

    def monotonic(self) -> float:
        process = PROCESS.get()
        return time.monotonic() if process is None else process.machine.monotonic()

    def thread_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        assert self.scheduler is not None
        self.scheduler.sleep(seconds)


class RandomModule:
    """`random` and `secrets`, from the seed."""

    def __init__(self, *modules: ModuleType) -> None:
        for module in modules:
            for name in dir(module):
                if name not in dir(self):
                    setattr(self, name, getattr(module, name))
        self.rng = Random(0)

    def uniform(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def random(self) -> float:
        return self.rng.random()

    def getrandbits(self, count: int) -> int:
        return self.rng.getrandbits(count)

    def token_hex(self, count: int = 16) -> str:
        return self.rng.randbytes(count).hex()

    def token_urlsafe(self, count: int = 16) -> str:
        return self.token_hex(count)


class _SimulatedOpenFile(io.RawIOBase):
    """A simulated file for `io.open`, which `pathlib` uses."""

    def __init__(self, system: OsModule, descriptor: int) -> None:
        self._system = system
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return self._system.read(self._descriptor, 1 << 30)

    def write(self, content: Any) -> int:
        return self._system.write(self._descriptor, content)

    def close(self) -> None:
        if not self.closed:
            self._system.close(self._descriptor)
        super().close()


class IoModule:
    """A replacement for `io` in `pathlib`."""

    def __init__(self, system: OsModule) -> None:
        for name in dir(io):
            if name not in dir(self):
                setattr(self, name, getattr(io, name))
        self._system = system

    def open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        process = PROCESS.get()
        if process is None or not os.fspath(path).startswith(process.machine.files.top):
            return open(path, mode, *arguments, **options)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if "w" in mode else os.O_RDONLY
        descriptor = self._system.open(path, flags, 0o644)
        assert descriptor >= FIRST_DESCRIPTOR
        return _SimulatedOpenFile(self._system, descriptor)


class Modules:
    """The simulated modules of this process, which stay in place once `install` was called."""

    def __init__(self) -> None:
        self.os = OsModule()
        self.time = TimeModule()
        self.random = RandomModule(random, secrets)
        self._replaced: dict[int, Any] = {}  # the simulated modules, by the addresses of the real ones
        self._count = 0  # of all modules when there was no new one
        self._seen: set[str] = set()  # names of the modules of the server that have simulated ones
        self.sockets = SocketModule(self.os)

    def install(self) -> None:
        """Replace the real modules in those of the server, of which nearly all are imported by now."""
        sqlite.register()
        stand_ins = {
            os: self.os,
            fcntl: FcntlModule(self.os),
            time: self.time,
            random: self.random,
            secrets: self.random,
            threading: ThreadingModule(),
            queue: QueueModule(),
            sqlite3: sqlite.SqliteModule(),
            socket: self.sockets,
        }
        self._replaced = {id(real): stand_in for real, stand_in in stand_ins.items()}
        self._replace_in_new_modules()
        paths = {id(os): self.os, id(io): IoModule(self.os)}
        for name, module in list(sys.modules.items()):
            if name == "pathlib" or name.startswith("pathlib.") or module in (posixpath, genericpath):
                _replace(module, paths)
        tusd_py.core.clock._boot_id = _boot_id
        tusd_py.backends.disk.file_system_sync.sync_file_system = self.os.sync_file_system
        vars(tusd_py.backends.disk.syncs)["tells_gaps"] = lambda path: True
        for globber in [found for name, found in vars(glob).items() if name.endswith("Globber")]:
            globber.scandir = staticmethod(self.os.scandir)  # of `Path.glob` from Python 3.13 on

    def _replace_in_new_modules(self) -> None:
        for name in self.unseen():
            module = sys.modules[name]
            _replace(module, self._replaced)
            _replace_defaults(module, {time.monotonic: self.time.monotonic, time.time: self.time.time})
            self._seen.add(name)

    def unseen(self) -> list[str]:
        """Return the names of the modules of the server that were imported since the last world began."""
        if len(sys.modules) == self._count:
            return []
        names = [name for name in list(sys.modules) if name.partition(".")[0] == "tusd_py" and name not in self._seen]
        if not names:
            self._count = len(sys.modules)
        return names

    def use(self, scheduler: Scheduler, rng: Random) -> None:
        """Have the modules belong to a world."""
        self._replace_in_new_modules()
        use(scheduler)
        self.time.scheduler = scheduler
        self.random.rng = rng
        self.sockets.use(scheduler.loop, Random(0).random)


def _replace(module: ModuleType, stand_ins: dict[int, Any]) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, ModuleType) and id(value) in stand_ins:
            setattr(module, name, stand_ins[id(value)])


def _replace_defaults(module: ModuleType, stand_ins: dict[Any, Any]) -> None:
    """Replace clocks that are the defaults of parameters of the functions and methods of a module."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for function in (value, *vars(value).values()) if isinstance(value, type) else (value,):
            if isinstance(function, FunctionType):
                defaults = function.__defaults__ or ()
                function.__defaults__ = tuple(_stand_in(default, stand_ins) for default in defaults)
                named = function.__kwdefaults__ or {}
                function.__kwdefaults__ = {name: _stand_in(value, stand_ins) for name, value in named.items()}


def _stand_in(value: Any, stand_ins: dict[Any, Any]) -> Any:
    return stand_ins[value] if isinstance(value, BuiltinFunctionType) and value in stand_ins else value


def _boot_id() -> str:
    process = PROCESS.get()
    return "" if process is None else process.machine.boot_id


assert pathlib  # its `os` and `io` are replaced
