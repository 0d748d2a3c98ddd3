"""The supervisor of several server processes on one port, each with a listening socket of its own.

This way the kernel spreads the connections evenly: of processes that share one socket, the one that wakes first takes
most long uploads.

SIGTERM and SIGINT drain and end all processes, even while SIGHUP replaces them one by one; one that dies is started
again. The counts of ended processes stay in `/metrics`, merged into one file.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from tusd_py.asyncutil import shared_rates
from tusd_py.observability.logging import configure
from tusd_py.observability.metrics_merge import merge_counts
from tusd_py.settings import Settings
from tusd_py.uvicorn_server.malloc import tune_malloc
from tusd_py.uvicorn_server.process import Address, allow_successor, bind, run_server
from tusd_py.uvicorn_server.terminal import Terminal

logger = logging.getLogger("tusd_py.supervisor")

START_TIMEOUT = 120.0  # seconds a process may take until it accepts connections, also on a busy machine
KILL_DELAY = 5.0  # seconds after the shutdown grace
RESTART_PAUSE = 1.0  # seconds before a process that died is started again
SHARED_MEMORY = "/dev/shm"  # where Linux has a file system in memory
METRICS_PREFIX = "tusd-py-metrics-"
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # makes prometheus_client count across processes; read at its import


@dataclass(slots=True)
class Worker:
    """A server process, and one end of a pipe to it.

    The process writes to the pipe when it is ready, and ends when the end of the supervisor is closed.
    """

    process: BaseProcess
    pipe: Connection
    started: float = field(default_factory=time.monotonic)

    def is_ready(self) -> bool:
        """Return whether the process accepts connections; call it once, after its pipe has become readable."""
        try:
            return self.pipe.poll() and bool(self.pipe.recv())
        except (EOFError, OSError):
            return False


def run_worker(
    settings: Settings,
    address: Address,
    admin_address: Address | None,
    metrics: Sequence[socket.socket],
    pipe: Connection,
) -> None:
    """Run one server process until a signal ends it. All processes share the sockets of the metrics."""
    if not settings.disable_malloc_tuning:
        tune_malloc()
    configure(settings.log_format, settings.log_level)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor decides what a closed terminal means
    listener = bind(address, shared=True)
    threading.Thread(target=_end_with_supervisor, args=(pipe,), daemon=True).start()
    admin = None if admin_address is None else bind(admin_address, shared=True)
    run_server(settings, listener, lambda: pipe.send(True), admin, metrics)


def _end_with_supervisor(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """The parent of `settings.workers` server processes on the address of the reserved socket."""

    def __init__(
        self,
        settings: Settings,
        reserved: socket.socket,
        admin: socket.socket | None = None,
        metrics: Sequence[socket.socket] = (),
    ) -> None:
        """Take the socket that reserves the address, and those of administrators and of metrics, if they have any."""
        self._metrics = metrics
        self._settings = settings
        self._reserved = [reserved] if admin is None else [reserved, admin]
        self._address: Address = reserved.getsockname()
        self._admin_address: Address | None = None if admin is None else admin.getsockname()
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []
        self._draining: list[Worker] = []  # replaced processes that have not ended
        self._terminal = Terminal()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._received: list[int] = []

    def run(self, ready: Callable[[], None]) -> int:
        """Run until a signal stops the supervisor; return the exit code."""
        os.environ[METRICS_VARIABLE] = metrics_folder = _make_metrics_folder()
        self._share_rates(Path(metrics_folder) / "rates")
        previous = self._install_signal_handlers()
        try:
            if not self._start_all():
                return 0 if self._stopping else 1
            ready()
            while not self._stopping:
                self._wait_and_act()
            return 0
        finally:
            for reserved in self._reserved:  # not before: those that die are started again
                allow_successor(reserved)
            for listener in self._metrics:  # nobody accepts on it once the processes drain
                listener.close()
            self._stop([*self._workers, *self._draining])
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            self._wake_receiver.close()
            self._wake_sender.close()
            shutil.rmtree(metrics_folder, ignore_errors=True)

    def _share_rates(self, path: Path) -> None:
        """Let the processes count limited rates in one file."""
        if not (self._settings.rate_create or self._settings.rate_bytes):
            return
        try:
            shared_rates.create(path)
            os.environ[shared_rates.VARIABLE] = str(path)
        except OSError as error:
            logger.warning("each process counts limited rates by itself: %s", error)

    @property
    def _stopping(self) -> bool:
        """Whether a signal has asked for the end; SIGHUP does if the terminal has closed."""
        return (
            signal.SIGTERM in self._received
            or signal.SIGINT in self._received
            or (signal.SIGHUP in self._received and self._terminal.has_closed())
        )

    def _install_signal_handlers(self) -> dict[int, signal._HANDLER]:
        self._wake_sender.setblocking(False)
        signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        return {
            number: signal.signal(number, lambda received, _: self._received.append(received)) for number in numbers
        }

    def _start_all(self) -> bool:
        self._workers = [self._start() for _ in range(self._settings.workers)]
        return all(self._becomes_ready(worker) for worker in self._workers)

    def _becomes_ready(self, worker: Worker) -> bool:
        """Wait until a process accepts connections; return False if it does not in time, or at a stop signal."""
        told: list[Connection | int] = [worker.pipe, worker.process.sentinel]
        self._wait(told, START_TIMEOUT)
        if self._stopping:
            return False
        if not wait(told, 0):
            logger.error("process %s did not accept connections within %g seconds", worker.process.pid, START_TIMEOUT)
            return False
        return worker.is_ready()

    def _wait(self, objects: Sequence[Connection | int], seconds: float) -> None:
        """Wait for one of these objects, at most `seconds`; a stop signal ends the wait."""
        deadline = time.monotonic() + seconds
        while not self._stopping and not wait(objects, 0):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            wait([self._wake_receiver, *objects], remaining)
            self._drain_wake_ups()

    def _start(self) -> Worker:
        with contextlib.suppress(OSError):  # logind empties /dev/shm when a user logs out; else the folder is there
            os.mkdir(os.environ[METRICS_VARIABLE], 0o700)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=run_worker, args=(self._settings, self._address, self._admin_address, self._metrics, theirs)
        )
        process.start()
        theirs.close()
        return Worker(process, ours)

    def _wait_and_act(self) -> None:
        """Wait for a signal or the death of a process, and act on it."""
        if not self._received:  # a signal may have come during another wait
            wait([self._wake_receiver, *(worker.process.sentinel for worker in self._workers)])
            self._drain_wake_ups()
        if self._stopping:
            return
        if signal.SIGHUP in self._received:
            self._received = [number for number in self._received if number != signal.SIGHUP]
            self._replace_all()
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            logger.error("process %s died with code %s", worker.process.pid, worker.process.exitcode)
            self._workers.remove(worker)
            _clean_up_after(worker)
            if time.monotonic() - worker.started < RESTART_PAUSE:
                self._wait([], RESTART_PAUSE)
            if not self._stopping:
                self._workers.append(self._start())

    def _drain_wake_ups(self) -> None:
        while wait([self._wake_receiver], 0):
            self._wake_receiver.recv(4096)

    def _replace_all(self) -> None:
        """Start a new process for each old one, and drain the old one once the new one accepts connections."""
        for old in list(self._workers):
            new = self._start()
            self._workers.append(new)
            if not self._becomes_ready(new):
                if not self._stopping:
                    logger.error("a new process did not start; the old ones go on")
                    self._workers.remove(new)
                    self._stop([new])
                return
            self._workers.remove(old)
            self._draining = [old]
            if old.process.is_alive():
                os.kill(old.process.pid or 0, signal.SIGINT)  # unlike SIGTERM without --drain-delay: others serve on
            self._wait([old.process.sentinel], self._settings.shutdown_grace + KILL_DELAY)
            if self._stopping:
                return  # the old process ends with the others
            self._stop(self._draining)
            self._draining = []

    def _stop(self, workers: list[Worker]) -> None:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_delay + self._settings.shutdown_grace + KILL_DELAY
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))  # one deadline for all
            if worker.process.is_alive():
                logger.error("process %s did not end in time", worker.process.pid)
                worker.process.kill()
                worker.process.join()
            _clean_up_after(worker)


def _make_metrics_folder() -> str:
    """Make the folder of the files that the processes map into memory, and return its path.

    A file in memory has its room once it was written to. On a full disk, a write to a hole, or to any page where files
    are copied on write, would end the process by SIGBUS.
    """
    with contextlib.suppress(OSError):
        return tempfile.mkdtemp(prefix=METRICS_PREFIX, dir=SHARED_MEMORY)
    return tempfile.mkdtemp(prefix=METRICS_PREFIX)


def _clean_up_after(worker: Worker) -> None:
    worker.pipe.close()
    folder = os.environ[METRICS_VARIABLE]
    mark_process_dead(worker.process.pid, folder)  # type: ignore[no-untyped-call]
    try:
        merge_counts(Path(folder), worker.process.pid or 0)
    except OSError as error:  # a full disk, for example; only the number of files is harmed
        logger.warning("the metrics of process %s were not merged: %s", worker.process.pid, error)
