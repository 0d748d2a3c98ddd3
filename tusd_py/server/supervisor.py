"""Several server processes on one port, each with a listening socket of its own, so that the kernel spreads the
connections evenly (processes that share one socket leave most long uploads to whichever wakes first).

SIGTERM and SIGINT drain and end all of them, SIGHUP replaces them one by one, and one that dies is started again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from prometheus_client.multiprocess import mark_process_dead

from tusd_py.events.logs import configure
from tusd_py.server.memory import keep_freed_memory
from tusd_py.server.run import bind, run_server
from tusd_py.settings import Settings

logger = logging.getLogger("tusd_py.supervisor")

START_TIMEOUT = 30.0  # seconds a process may take until it accepts connections
KILL_DELAY = 5.0  # seconds after the shutdown grace
RESTART_PAUSE = 1.0  # seconds before a process that died is started again
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # makes prometheus_client count across processes; read at its import


@dataclass(slots=True)
class Worker:
    """One server process. Our end of the pipe tells when it is ready; its end tells it when we are gone."""

    process: BaseProcess
    pipe: Connection
    started: float = field(default_factory=time.monotonic)

    def wait_until_ready(self) -> bool:
        try:
            return self.pipe.poll(START_TIMEOUT) and bool(self.pipe.recv())
        except (EOFError, OSError):
            return False


def run_worker(settings: Settings, address: tuple[str, int], pipe: Connection) -> None:
    """The life of one server process."""
    if not settings.disable_malloc_tuning:
        keep_freed_memory()
    configure(settings.log_format, settings.log_level)
    listener = bind(address, shared=True)
    threading.Thread(target=_end_with_supervisor, args=(pipe,), daemon=True).start()
    run_server(settings, listener, lambda: pipe.send(True))


def _end_with_supervisor(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor:
    """Keeps `settings.workers` processes running on the address of the reserved socket."""

    def __init__(self, settings: Settings, reserved: socket.socket) -> None:
        self._settings = settings
        self._address: tuple[str, int] = reserved.getsockname()[:2]
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._received: list[int] = []

    def run(self, ready: Callable[[], None]) -> int:
        """Run until a signal says to stop; returns the exit code."""
        os.environ[METRICS_VARIABLE] = metrics_folder = tempfile.mkdtemp(prefix="tusd-py-metrics-")
        previous = self._take_signals()
        try:
            if not self._start_all():
                return 1
            ready()
            while signal.SIGTERM not in self._received and signal.SIGINT not in self._received:
                self._watch()
            return 0
        finally:
            self._stop(self._workers)
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            self._wake_receiver.close()
            self._wake_sender.close()
            shutil.rmtree(metrics_folder, ignore_errors=True)

    def _take_signals(self) -> dict[int, signal._HANDLER]:
        self._wake_sender.setblocking(False)
        signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        return {
            number: signal.signal(number, lambda received, _: self._received.append(received)) for number in numbers
        }

    def _start_all(self) -> bool:
        self._workers = [self._start() for _ in range(self._settings.workers)]
        return all(worker.wait_until_ready() for worker in self._workers)

    def _start(self) -> Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run_worker, args=(self._settings, self._address, theirs))
        process.start()
        theirs.close()
        return Worker(process, ours)

    def _watch(self) -> None:
        """Wait for a signal or the death of a process, and act on it."""
        wait([self._wake_receiver, *(worker.process.sentinel for worker in self._workers)])
        if signal.SIGHUP in self._received:
            self._drain_wake_ups()
            self._received.remove(signal.SIGHUP)
            self._replace_all()
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            logger.error("process %s died with code %s", worker.process.pid, worker.process.exitcode)
            self._workers.remove(worker)
            _forget(worker)
            if time.monotonic() - worker.started < RESTART_PAUSE:
                wait([self._wake_receiver], RESTART_PAUSE)
            if not self._received:
                self._workers.append(self._start())

    def _drain_wake_ups(self) -> None:
        while wait([self._wake_receiver], 0):
            self._wake_receiver.recv(4096)

    def _replace_all(self) -> None:
        """Start a new process for each old one, and drain the old one once the new one accepts connections."""
        for old in list(self._workers):
            new = self._start()
            if not new.wait_until_ready():
                logger.error("a new process did not start; the old ones go on")
                self._stop([new])
                return
            self._workers.append(new)
            self._workers.remove(old)
            self._stop([old])

    def _stop(self, workers: list[Worker]) -> None:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + self._settings.shutdown_grace + KILL_DELAY
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                logger.error("process %s did not end in time", worker.process.pid)
                worker.process.kill()
                worker.process.join()
            _forget(worker)


def _forget(worker: Worker) -> None:
    worker.pipe.close()
    mark_process_dead(worker.process.pid, os.environ[METRICS_VARIABLE])  # type: ignore[no-untyped-call]
