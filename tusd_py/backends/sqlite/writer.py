"""The writer of a SQLite file: runs jobs together in one transaction, and handles failures of the disk.

Jobs of the event loop run in the thread of the writer. A thread that calls `run_now` runs its own job, together with
those that other threads have added meanwhile. Invariant: a thread uses the connection only while it holds
`_connection_lock`.

Full disk: the write-ahead log is written back to the file and truncated, and the jobs are tried again; jobs that remove
something may then use the reserved space (`reserve.py`).

Failed sync, of the log or of the file: pages of the log that were not synced before may be lost although they can still
be read, and a later sync would prove nothing. Every change therefore fails until the whole log has been written to the
file and synced there; then the log begins anew.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tusd_py.backends.sqlite.job_threads import Job, JobThreads
from tusd_py.backends.sqlite.outbox import add_events
from tusd_py.backends.sqlite.reserve import Reserve
from tusd_py.backends.sqlite.schema import prepare
from tusd_py.core.errors import StateFull, StateUnavailable, UploadError
from tusd_py.core.outbox import OutboxEvent

T = TypeVar("T")

logger = logging.getLogger("tusd_py.state")

BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
BUSY_PAUSE = 0.02  # seconds
BUSY_TIMEOUT = 5.0  # seconds that a write waits for the write of another process
CHECKPOINT_WRITES = 250  # writes after which the log is written back; about a thousand of its pages
MAX_IDLE_LOG = 4 << 20  # bytes
UNREADY_TIME = 60.0  # seconds after a failed sync during which `check` fails
CLOSE_TIMEOUT = 10.0  # seconds
FULL_DISK_ERRORS = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN", "SQLITE_CANTOPEN")
SYNC_FAILED = "a sync of the records to the disk failed: look at the disk"
LOG_IN_USE = "another process has the log of the records in use for too long"


class SQLiteWriter:
    """The thread that runs jobs on a SQLite file, in the order of their submission."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection_lock = threading.Lock()
        self._thread_jobs: deque[Job] = deque()  # of threads that wait for `_connection_lock`
        self._reserve = Reserve(path.with_name("reserve"))
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""
        self._jobs_since_checkpoint = 0
        self._log_unsynced = False  # whether a sync failed and the log has not been written back since
        self._log_inherited = True  # whether the log may hold what an earlier process wrote, and could not sync
        self._failed_at: float | None = None  # monotonic time of the last failed sync
        self._threads = JobThreads(self._commit, self._maintain, self._end)

    @property
    def is_in_doubt(self) -> bool:
        """Whether the log may bring back, after a crash, a change whose commit has failed.

        Until the log begins anew the records as they can be read are no reason to cut bytes off.
        """
        return self._log_unsynced

    def submit(self, job: Job) -> None:
        """Queue a job for the thread of the writer."""
        self._threads.submit(job)

    def run_now(self, job: Job) -> Any:
        """Run a job in the thread of the caller; return its result or raise its error. Blocks."""
        self._thread_jobs.append(job)
        with self._connection_lock:
            if not job.ended:  # a thread that had the lock earlier may have run the job
                jobs = [self._thread_jobs.popleft() for _ in range(len(self._thread_jobs))]
                self._run_jobs(jobs)
                for ended in jobs:
                    ended.ended = True
                self._jobs_since_checkpoint += len(jobs)
                if self._jobs_since_checkpoint >= CHECKPOINT_WRITES > self._jobs_since_checkpoint - len(jobs):
                    self._threads.submit(Job(_no_op, False, None))  # makes the writer's thread write the log back
        if job.error is not None:
            raise job.error
        return job.result

    def read_now(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read in the thread of the caller what no crash takes back; raises `StateUnavailable`. Blocks."""
        with self._connection_lock:
            try:
                connection = self._connected()
                if self._log_unsynced:
                    self._write_log_back()
                return read(connection)
            except sqlite3.Error as error:
                raise _state_error(error) from error

    def close(self) -> None:
        """Run the queued jobs and end the thread; wait at most `CLOSE_TIMEOUT`. Blocks."""
        self._threads.close(CLOSE_TIMEOUT)

    def check(self) -> None:
        """Raise `StateUnavailable` for `UNREADY_TIME` after a failed sync, and until the log is synced again."""
        if self._failed_at is None:
            return
        if self._log_unsynced or time.monotonic() - self._failed_at < UNREADY_TIME:
            raise StateUnavailable(SYNC_FAILED)
        self._failed_at = None

    def connect(self) -> sqlite3.Connection:
        """Return a connection to a file with all tables; raises `StateUnavailable`, `StateFull`."""
        try:
            return self._connect()
        except sqlite3.Error as error:
            # A full disk has no space for the files that SQLite makes beside its own.
            if _is_full(error) and self._reserve.release():
                with contextlib.suppress(sqlite3.Error):
                    return self._connect()
            raise _state_error(error) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        deadline = time.monotonic() + BUSY_TIMEOUT
        try:
            while True:
                try:
                    prepare(connection)
                except sqlite3.Error as error:
                    if connection.in_transaction:
                        connection.rollback()
                    # Processes that start together conflict here, and SQLite does not wait by itself.
                    if getattr(error, "sqlite_errorcode", None) not in BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(BUSY_PAUSE)
                else:
                    # SQLite does not report a failed sync of a checkpoint that it makes by itself.
                    connection.execute("PRAGMA wal_autocheckpoint = 0")
                    connection.execute(f"PRAGMA journal_size_limit = {MAX_IDLE_LOG}")
                    return connection
        except BaseException:
            connection.close()
            raise

    def _commit(self, jobs: Sequence[Job]) -> None:
        with self._connection_lock:
            self._run_jobs(jobs)

    def _end(self) -> None:
        with self._connection_lock:
            self._disconnect()

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        error = self._try_jobs(jobs)
        if error is None or not _is_full(error):
            return
        self._write_back("TRUNCATE")
        if not _is_full(self._try_jobs(jobs)):
            return
        for job in jobs:
            if job.removes and self._try_jobs([job]) is not None and self._reserve.release():
                self._write_back("TRUNCATE")
                self._try_jobs([job])

    def _try_jobs(self, jobs: Sequence[Job]) -> sqlite3.Error | None:
        """Run the jobs in one transaction; return the error that made all of them fail, or None."""
        try:
            self._transact(jobs)
        except (sqlite3.Error, UploadError) as error:
            cause = error if isinstance(error, sqlite3.Error) else error.__cause__
            for job in jobs:
                job.result, job.error = None, error if isinstance(error, UploadError) else _state_error(error)
            if isinstance(cause, sqlite3.Error):
                self._handle_error(cause)
                return cause
        return None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection, self._synchronous = self.connect(), ""
        return self._connection

    def _transact(self, jobs: Sequence[Job]) -> None:
        connection = self._connected()
        if self._log_unsynced:
            self._write_log_back()
        elif self._log_inherited:
            self._write_inherited_log_back(durable=any(job.durable for job in jobs))
        # FULL syncs the log at the commit, NORMAL leaves that to the kernel.
        wanted = "FULL" if any(job.durable for job in jobs) else "NORMAL"
        if self._synchronous != wanted:
            connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted
        _transact(connection, jobs)

    def _write_log_back(self, timeout: float = 0.0) -> None:
        """Write every page of the log to the file, and sync it; raises `StateUnavailable`.

        Waits at most `timeout` seconds for the checkpoint of another process, for which SQLite does not wait.
        """
        assert self._connection is not None
        self._connection.execute("PRAGMA synchronous = FULL")
        self._synchronous = "FULL"
        deadline = time.monotonic() + timeout
        while self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() >= deadline:
                raise StateUnavailable(SYNC_FAILED if self._log_unsynced else LOG_IN_USE)
            time.sleep(BUSY_PAUSE)
        if self._log_unsynced:
            logger.warning("the records are written and synced again after the failure")
        self._log_unsynced = self._log_inherited = False

    def _write_inherited_log_back(self, *, durable: bool) -> None:
        """Write back the log that was there at the start, before a change counts as durable.

        A sync of it may have failed in a process that has ended since. Pages that were not synced then can still be
        read, and no later sync would prove them: a power cut would take them, and all that follows them in the log.
        Without room, or while other processes use the log, changes that need not be durable are made all the same.
        """
        try:
            self._write_log_back(BUSY_TIMEOUT if durable else 0.0)
        except (sqlite3.Error, StateUnavailable) as error:
            if durable or (isinstance(error, sqlite3.Error) and not _is_full(error)):
                raise

    def _handle_error(self, error: sqlite3.Error) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
        if _is_full(error) or not _error_name(error).startswith("SQLITE_IOERR"):
            return
        if not self._log_unsynced:
            logger.error("the records could not be written to the disk (%s): %s", _error_name(error), self._path)
        self._log_unsynced, self._failed_at = True, time.monotonic()
        self._disconnect()

    def _maintain(self, written: int) -> None:
        with self._connection_lock:
            self._jobs_since_checkpoint += written
            if self._connection is None or self._log_unsynced:
                return
            if self._jobs_since_checkpoint >= CHECKPOINT_WRITES:
                self._write_back("PASSIVE")
            self._reserve.restore()

    def _write_back(self, mode: str) -> None:
        """Write the log back to the file, as far as readers allow."""
        self._jobs_since_checkpoint = 0
        if self._connection is None:
            return
        try:
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            self._handle_error(error)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _transact(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Run the jobs in one transaction; a single statement is a transaction by itself.

    The events of all jobs are stored together: each statement lets go of the interpreter lock.
    """
    events: list[OutboxEvent] = []
    together = len(jobs) > 1 or jobs[0].compound or bool(jobs[0].events)
    if together:
        connection.execute("BEGIN IMMEDIATE")
    for job in jobs:
        job.error = None
        try:
            job.result = job.work(connection)
        except sqlite3.Error:
            raise
        except Exception as error:  # of this job alone, which changed nothing: a lost lock, an invalid value
            job.error = error
        else:
            events += job.events
    if events:
        add_events(connection, events)
    if together:
        connection.execute("COMMIT")


def _no_op(connection: sqlite3.Connection) -> None: ...


def _error_name(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


def _is_full(error: sqlite3.Error | None) -> bool:
    return error is not None and _error_name(error) in FULL_DISK_ERRORS


def _state_error(error: sqlite3.Error) -> UploadError:
    failure = StateFull() if _error_name(error) == "SQLITE_FULL" else StateUnavailable()
    failure.__cause__ = error
    return failure
