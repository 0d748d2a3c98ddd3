"""Wrong wall clocks: in this process (`FakeClock`), or in a server process (`clock.c`, preloaded).

    clock = PreloadedClock(tmp_path / "clock", clock_library)
    with ServerProcess(tmp_path / "uploads", env=clock.env) as server:
        clock.set(86400)  # a day ahead

The library comes from the fixture `clock_library` in `tests/conftest.py`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
DAY = 86400.0  # seconds


class FakeClock:
    """A clock of one host (`tusd_py.core.clock.Clock`) that stands still unless the test moves it."""

    def __init__(self, wall: float | None = None, *, monotonic: float = 1000.0, era: str = "first boot") -> None:
        self.now = time.time() if wall is None else wall
        self.uptime = monotonic
        self.boot = era

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.uptime

    def era(self) -> str:
        return self.boot

    def advance(self, seconds: float) -> None:
        """Let time pass for both clocks."""
        self.now += seconds
        self.uptime += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, by `seconds`."""
        self.now += seconds

    def reboot(self, era: str, *, off_for: float = 60.0) -> None:
        """Start the system again after it was off for some seconds."""
        self.now += off_for
        self.uptime = 5.0
        self.boot = era


class HostClock(FakeClock):
    """The real clocks of this host, with a wall clock that is wrong by `wrong_by` seconds."""

    def __init__(self, wrong_by: float) -> None:
        super().__init__()
        self.wrong_by = wrong_by

    def wall(self) -> float:
        return time.time() + self.wrong_by

    def monotonic(self) -> float:
        return time.monotonic()


def build(compiler: str, folder: Path) -> Path:
    """Compile the library into the folder."""
    library = folder / "clock.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-lm"], check=True)
    return library


class PreloadedClock:
    """The wall clock of every process started with `env`, which the test sets while they run."""

    def __init__(self, file: Path, library: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._library = library
        self.set(0)

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "TUSD_PY_CLOCK": str(self._file)}

    def set(self, wrong_by: float) -> None:
        """Set the clock ahead by `wrong_by` seconds, or behind if negative."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{wrong_by}")
        new.replace(self._file)
