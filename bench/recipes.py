"""Start commands of each server. Peers are installed once, with their ordinary clients, below bench/.work."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
WORK = BENCH / ".work"
INSTALL_SECONDS = 900
# No server logs its requests: the peers are configured so, or do not by default.
QUIET = ("--log-level", "warning")
# rustus holds a request body in memory and refuses one above this limit, which is 256 KiB unless set.
RUSTUS_BODY_LIMIT = 4 << 30

Command = Callable[[int, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    version: str
    command: Command
    creation_path: str = "/files/"
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of the command line that concern the servers."""

    workers: int = 0
    tusd: Path | None = None
    rustus: Path | None = None
    baseline: Path | None = None
    extra: tuple[str, ...] = field(default=())


class Unavailable(Exception):
    """A peer that cannot be set up here; the text says why."""


def run(command: Sequence[str | Path], **environment: str) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        raise Unavailable(f"`{Path(command[0]).name}` failed: {error_summary(done.stderr or done.stdout)}")
    return done.stdout + done.stderr


def error_summary(text: str) -> str:
    """Return the end of an error message, without addresses, since the report must not name package registries."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"https?://\S+", "(address)", " ".join(lines[-2:]))[-300:] or "no message"


def needed(program: str) -> str:
    found = shutil.which(program)
    if not found:
        raise Unavailable(f"{program} is not installed")
    return found


def our_command(*arguments: str, python: str | Path = sys.executable) -> Command:
    def command(port: int, directory: Path) -> list[str]:
        # Without -P the package of the working directory would run, whichever interpreter is asked.
        server = [str(python), "-P", "-m", "tusd_py", "serve", "--host", "127.0.0.1"]
        return [*server, "--port", str(port), "--upload-dir", str(directory), *QUIET, *arguments]

    return command


def our_version() -> str:
    if not importlib.util.find_spec("tusd_py.__main__"):
        raise Unavailable("tusd_py cannot be run yet")
    return str(getattr(importlib.import_module("tusd_py"), "__version__", "unknown"))


def ours(name: str, *arguments: str) -> Recipe:
    return Recipe(name, our_version(), our_command(*arguments), "/files", ours=True)


def baseline(name: str, checkout: Path | None, *arguments: str) -> Recipe:
    """Return the recipe of another revision of this server: a checkout in which `make` has created a `.venv`."""
    if checkout is None:
        raise Unavailable("no checkout was named with --baseline")
    python = checkout.resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        raise Unavailable(f"{checkout} has no .venv")
    revision = run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"]).strip()
    return Recipe(name, revision, our_command(*arguments, python=python), "/files")


def floor(name: str, *arguments: str) -> Recipe:
    def command(port: int, directory: Path) -> list[str]:
        return [sys.executable, str(BENCH / "floor.py"), "--port", str(port), "--directory", str(directory), *arguments]

    return Recipe(name, "bench/floor.py", command)


def tus_node() -> Recipe:
    node, npm, home = needed("node"), needed("npm"), WORK / "node"
    package = home / "node_modules" / "@tus" / "server" / "package.json"
    if not package.exists():
        home.mkdir(parents=True, exist_ok=True)
        packages = ("@tus/server", "@tus/file-store")
        run([npm, "install", "--prefix", home, "--no-audit", "--no-fund", "--loglevel=error", *packages])
    # Node looks for packages beside the script, so the script has to lie beside them.
    script = shutil.copy(BENCH / "peers" / "tus_node.mjs", home / "server.mjs")
    version = f"@tus/server {json.loads(package.read_text())['version']}, node {run([node, '--version']).strip()}"
    return Recipe("tus-node", version, lambda port, directory: [node, str(script), str(port), str(directory)], "/files")


def tuspyserver() -> Recipe:
    home = WORK / "tuspyserver"
    python = home / "bin" / "python"
    ready = home / ".installed"
    if not ready.exists():
        run([sys.executable, "-m", "venv", home])
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "tuspyserver", "fastapi", "uvicorn[standard]"])
        ready.touch()
    program = (
        "from importlib.metadata import version as v; print(*(v(n) for n in ('tuspyserver', 'fastapi', 'uvicorn')))"
    )
    version, fastapi, uvicorn = run([python, "-c", program]).split()
    script = str(BENCH / "peers" / "tuspyserver_app.py")
    return Recipe(
        "tuspyserver",
        f"tuspyserver {version}, fastapi {fastapi}, uvicorn {uvicorn}",
        lambda port, directory: [str(python), script, str(port), str(directory)],
    )


def tusd_binary(given: Path | None) -> Path:
    built = WORK / "bin" / "tusd"
    found = given or (built if built.exists() else None) or shutil.which("tusd")
    if found:
        return Path(found)
    settings = {"GOBIN": str(built.parent), "GOFLAGS": os.environ.get("GOFLAGS") or "-mod=mod"}
    run([needed("go"), "install", "github.com/tus/tusd/v2/cmd/tusd@latest"], **settings)
    return built


def tusd(given: Path | None) -> Recipe:
    binary = tusd_binary(given)

    def command(port: int, directory: Path) -> list[str]:
        place = ["-host", "127.0.0.1", "-port", str(port), "-upload-dir", str(directory), "-base-path", "/files/"]
        return [str(binary), *place, "-verbose=false", "-show-greeting=false"]

    version = re.search(r"Version:\s*(\S+)", run([binary, "-version"]))
    return Recipe("tusd", f"tusd {version[1] if version else 'of unknown version'}", command)


def rustus(given: Path | None) -> Recipe:
    binary = str(given or shutil.which("rustus") or "")
    if not binary:
        raise Unavailable("no binary was named with --rustus")

    def command(port: int, directory: Path) -> list[str]:
        place = ["--host", "127.0.0.1", "--port", str(port), "--url", "/files"]
        store = ["--data-dir", str(directory), "--info-dir", str(directory), "--max-body-size", str(RUSTUS_BODY_LIMIT)]
        return [binary, *place, *store, "--log-level", "WARN"]

    return Recipe("rustus", run([binary, "--version"]).strip(), command)


def catalogue(options: ServerOptions) -> dict[str, Callable[[], Recipe]]:
    """Return every server by name, in the order of the report; calling an entry sets it up."""
    # The peers and the floor leave writing back to the kernel, and so must the entry that is compared with them.
    unsynced = ("--durability", "never")
    entries: dict[str, Callable[[], Recipe]] = {
        "ours": lambda: ours("ours", *options.extra),
        "ours-nosync": lambda: ours("ours-nosync", *unsynced, *options.extra),
        "baseline": lambda: baseline("baseline", options.baseline, *options.extra),
        "baseline-nosync": lambda: baseline("baseline-nosync", options.baseline, *unsynced, *options.extra),
    }
    if options.workers:
        name = f"ours x{options.workers}"
        entries[name] = lambda: ours(name, "--workers", str(options.workers), *options.extra)
    return entries | {
        "floor": lambda: floor("floor"),
        "floor-fsync": lambda: floor("floor-fsync", "--fsync"),
        "tusd": lambda: tusd(options.tusd),
        "rustus": lambda: rustus(options.rustus),
        "tus-node": tus_node,
        "tuspyserver": tuspyserver,
    }


def set_up(names: Sequence[str], options: ServerOptions) -> tuple[list[Recipe], list[Absent]]:
    recipes: list[Recipe] = []
    absent: list[Absent] = []
    for name, make in catalogue(options).items():
        if name not in names:
            continue
        try:
            recipes.append(make())
        except Unavailable as error:
            absent.append(Absent(name, str(error)))
    return recipes, absent
