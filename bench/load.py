"""The load generator in C (`load.c`), which is built once for each version of its source and kept in bench/.work."""

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import BenchError, build, build_creation, build_patch
from bench.payload import Payload, Upload
from bench.recipes import WORK, Unavailable, run

SOURCE = Path(__file__).with_name("load.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
LIMIT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Generator:
    """The program, or for None the reason why the scripts in Python are used."""

    program: Path | None
    description: str


@functools.cache
def generator() -> Generator:
    """Return the load generator, compiled now unless that was done before."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return Generator(None, "Python scripts, which are slow themselves: there is no C compiler")
    try:
        return Generator(compile_program(compiler, WORK), f"bench/load.c, built with {Path(compiler).name}")
    except Unavailable as error:
        return Generator(None, f"Python scripts, which are slow themselves: {error}")


def compile_program(compiler: str, folder: Path) -> Path:
    """Return the program below `folder`; raises `Unavailable`."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = folder / "bin" / f"load-{digest}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        run([compiler, *FLAGS, "-o", unfinished, SOURCE])
        unfinished.replace(program)
    return program


def run_program(arguments: Sequence[str | int | Path], *, text: str = "", payload: Payload | None = None) -> list[str]:
    """Run the generator and return its lines; raises `BenchError` with its message."""
    passed = () if payload is None else (payload.descriptor,)
    words = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, pass_fds=passed, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator did not end within {LIMIT_SECONDS} s") from None
    if done.returncode:
        raise BenchError(done.stderr.strip() or f"the load generator ended with {done.returncode}")
    return done.stdout.splitlines()


@dataclass(frozen=True, slots=True)
class Load:
    """Many small requests to one server over some connections, each upload of `length` bytes."""

    program: Path
    port: int
    connections: int
    length: int

    def pairs(self, creation_path: str, payload: Payload, count: int) -> tuple[list[float], list[Upload]]:
        """Create uploads and send each its bytes with a PATCH; return the seconds of each and the uploads."""
        creation = build_creation(creation_path, self.length).data.decode()
        patch = build_patch("", 0, length=self.length).data.decode().removeprefix("PATCH ")
        return self._uploads("small", payload, count, creation, patch)

    def creations(self, creation_path: str, payload: Payload, count: int) -> tuple[list[float], list[Upload]]:
        """Create uploads with their bytes; return the seconds of each and the uploads."""
        creation = build_creation(creation_path, self.length, bytes(self.length)).data[: -self.length].decode()
        return self._uploads("creation", payload, count, creation)

    def heads(self, paths: Sequence[str], count: int) -> list[float]:
        """Ask for complete uploads in turn; return the seconds of each request."""
        head = build("HEAD", "").data.decode().removeprefix("HEAD ")
        lines = run_program([*self._start("head", count), head], text="\n".join(paths) + "\n")
        return [float(line.partition(" ")[0]) for line in lines]

    def _start(self, kind: str, count: int) -> list[str | int | Path]:
        return [self.program, kind, self.port, self.connections, count, self.length]

    def _uploads(self, kind: str, payload: Payload, count: int, *heads: str) -> tuple[list[float], list[Upload]]:
        start = self._start(kind, count)
        lines = run_program([*start, payload.descriptor, payload.size, *heads], payload=payload)
        span = payload.size - self.length
        seconds, uploads = [], []
        for number, line in enumerate(lines):
            took, _, path = line.partition(" ")
            seconds.append(float(took))
            uploads.append(Upload(path, number * self.length % span, self.length))
        return seconds, uploads
