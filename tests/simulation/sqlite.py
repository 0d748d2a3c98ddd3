"""The real SQLite (of the package apsw) on simulated files, behind the interface of `sqlite3` that the server uses.

The processes of a machine share one connection with exclusive locking, since a VFS in Python has no shared memory: a
statement, or a transaction, is one step of the simulation, before which and after which others run.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import apsw

from tests.simulation.filesystem import File, FileSystem, Folder
from tests.simulation.machine import Machine, Process
from tests.simulation.moments import CHANGE, FAILED_SYNC
from tests.simulation.system_calls import process_now

NAME = "simulated"
JOURNALS = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
WRITES = ("INSERT", "UPDATE", "DELETE")
MAX_READ_TIME = 0.6  # seconds

_machine: Machine | None = None  # on whose behalf SQLite runs now
_user: Process | None = None  # the process of the statement that runs
_dead = False  # whether its process is gone: nothing is written any more


def _io_error(code: int) -> apsw.IOError:
    failure = apsw.IOError("simulated")
    failure.extendedresult = code  # type: ignore[attr-defined]
    failure.result = apsw.SQLITE_IOERR  # type: ignore[attr-defined]
    return failure


def _with_code(failure: apsw.Error, code: int) -> apsw.Error:
    """Return an error with its code: one that Python raises has none, and would be told as a general one."""
    failure.extendedresult = failure.result = code  # type: ignore[attr-defined]
    return failure


class SimulatedVFS(apsw.VFS):
    """A file system of SQLite that opens the files of the machine that it runs for."""

    def __init__(self) -> None:
        super().__init__(NAME, base="", maxpathname=512)

    def xFullPathname(self, name: str) -> str:
        return name

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = name if isinstance(name, str) else name.filename()
        assert _machine is not None
        files = _machine.files
        try:
            folder, last = files.place(path)
        except OSError:
            raise _with_code(apsw.CantOpenError("simulated"), apsw.SQLITE_CANTOPEN) from None
        inode = folder.entries.get(last)
        if inode is None:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE or files.room <= 0 or _dead:
                raise _with_code(apsw.CantOpenError("simulated"), apsw.SQLITE_CANTOPEN)
            inode = files.new_file(0o600)
            folder.change((last, inode))
            unsynced = folder if flags[0] & JOURNALS else None
        else:
            unsynced = None
        assert isinstance(inode, File)
        flags[1] = flags[0]
        return SimulatedFile(files, inode, unsynced)

    def xAccess(self, pathname: str, flags: int) -> bool:
        assert _machine is not None
        return _exists(_machine.files, pathname)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        assert _machine is not None
        if _dead:
            raise _io_error(apsw.SQLITE_IOERR_DELETE)
        try:
            folder, last = _machine.files.place(filename)
        except OSError:
            raise _io_error(apsw.SQLITE_IOERR_DELETE) from None
        if last in folder.entries:
            found = folder.entries[last]
            _machine.files.grow(-len(found.data) if isinstance(found, File) else 0)
            folder.change((last, None))
        if syncdir:
            folder.sync()

    def xRandomness(self, numbytes: int) -> bytes:
        assert _machine is not None
        return _machine.rng.randbytes(numbytes)

    def xCurrentTime(self) -> float:
        assert _machine is not None
        return _machine.wall() / 86400 + 2440587.5

    def xSleep(self, microseconds: int) -> int:
        return microseconds


def _exists(files: FileSystem, path: str) -> bool:
    try:
        files.find(path)
    except OSError:
        return False
    return True


class SimulatedFile:
    """An open file of SQLite."""

    def __init__(self, files: FileSystem, file: File, unsynced: Folder | None) -> None:
        """`unsynced` is the folder that the first sync is to sync too, as the VFS of SQLite for Unix does."""
        self._unsynced = unsynced
        self._errors_seen = files.failed_syncs
        self._errors_seen_by: dict[Process | None, int] = {}  # the last failed sync that a process knows of
        self._files = files
        self._file = file

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._file.data[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        if _dead:
            raise _io_error(apsw.SQLITE_IOERR_WRITE)
        end = offset + len(data)
        if self._files.fits(self._file, end) < end:
            raise _with_code(apsw.FullError("simulated"), apsw.SQLITE_FULL)
        if self._files.failing_writes > 0:
            self._files.failing_writes -= 1
            raise _io_error(apsw.SQLITE_IOERR_WRITE)
        self._files.grow(max(0, end - len(self._file.data)))
        self._file.write(offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        if _dead:
            raise _io_error(apsw.SQLITE_IOERR_TRUNCATE)
        self._files.grow(newsize - len(self._file.data))
        self._file.cut(newsize)

    def xSync(self, flags: int) -> None:
        if _dead:
            raise _io_error(apsw.SQLITE_IOERR_FSYNC)
        self._files.syncs += 1
        if self._files.failing_syncs > 0 or self._files.failing_record_syncs > 0:
            if self._files.failing_record_syncs > 0:
                self._files.failing_record_syncs -= 1
            else:
                self._files.failing_syncs -= 1
            self._files.fail_sync(self._file)
            self._files.moments.note(FAILED_SYNC)
        seen = max(self._errors_seen, self._errors_seen_by.get(_user, _user.errors_seen if _user else 0))
        if seen < self._file.failed:
            self._errors_seen_by[_user] = self._file.failed
            raise _io_error(apsw.SQLITE_IOERR_FSYNC)
        self._file.sync()
        if self._unsynced is not None:
            self._unsynced.sync()
            self._unsynced = None

    def xFileSize(self) -> int:
        return len(self._file.data)

    def xLock(self, level: int) -> None: ...

    def xUnlock(self, level: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xClose(self) -> None: ...

    def xSectorSize(self) -> int:
        return 512

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False


_vfs: SimulatedVFS | None = None


def register() -> None:
    """Have SQLite know the VFS, once for each process of the host."""
    global _vfs
    if _vfs is None:
        _vfs = SimulatedVFS()


class Database:
    """A file that SQLite has open for the processes of a machine."""

    def __init__(self, machine: Machine, path: str) -> None:
        self.machine = machine
        self.path = path
        self.users: dict[Process, int] = {}
        self.synchronous = ""  # the pragma in effect
        with _on_behalf_of(machine):
            self.connection = apsw.Connection(path, vfs=NAME)
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")

    def release(self, process: Process) -> None:
        self.users[process] -= 1
        if not self.users[process]:
            del self.users[process]
        if not self.users:
            self.machine.databases.pop(self.path, None)
            with contextlib.suppress(apsw.Error), _on_behalf_of(self.machine):  # SQLite itself tells nobody of these
                self.connection.close()

    def end_of(self, process: Process) -> None:
        """A process has died."""
        self.users.pop(process, None)
        if not self.users:
            self.abandon()

    def abandon(self) -> None:
        """End without a word to the file."""
        self.machine.databases.pop(self.path, None)
        with contextlib.suppress(apsw.Error), _on_behalf_of(self.machine, dead=True):
            self.connection.close(True)


class _on_behalf_of:
    def __init__(self, machine: Machine, *, dead: bool = False, user: Process | None = None) -> None:
        self._state = (machine, dead, user)

    def __enter__(self) -> None:
        global _machine, _dead, _user
        self._previous = (_machine, _dead, _user)
        _machine, _dead, _user = self._state

    def __exit__(self, *_: object) -> None:
        global _machine, _dead, _user
        _machine, _dead, _user = self._previous


class Cursor:
    """The outcome of a statement."""

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[Any]:
        return self._rows

    def __iter__(self) -> Any:
        return iter(self._rows)


class Connection:
    """A connection of a process, with the interface of `sqlite3.Connection`."""

    text_factory: Any = str

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._machine = database.machine
        self._process = process
        self._closed = False
        self._synchronous = ""  # the pragma of this connection, which shares another one
        database.users[process] = database.users.get(process, 0) + 1

    @property
    def in_transaction(self) -> bool:
        return self._database.connection.in_transaction

    def _pause(self) -> None:
        scheduler, files = self._machine.scheduler, self._machine.files
        if scheduler.is_in_thread and not self.in_transaction:
            scheduler.pause()
            while files.stalled_until > scheduler.loop.now:
                scheduler.sleep(min(0.5, files.stalled_until - scheduler.loop.now) + scheduler.latency())

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Cursor:
        self._pause()
        moments = self._machine.files.moments
        reached = moments.reached
        try:
            cursor = self._execute(statement, values)
            if statement == "COMMIT" or (statement.startswith(WRITES) and not self.in_transaction):
                moments.note(CHANGE)
        finally:
            if moments.reached > reached and not self.in_transaction and self._machine.scheduler.is_in_thread:
                self._machine.scheduler.sleep(0.0)
        self._pause()
        return cursor

    def _execute(self, statement: str, values: Sequence[Any]) -> Cursor:
        process_now()
        scripted = self._machine.record_answers
        if scripted and statement.startswith(scripted[0][0]):
            answer = scripted.pop(0)[1]
            if isinstance(answer, int):
                raise _failure(sqlite3.OperationalError, "simulated", answer)
            return Cursor([answer], -1)
        connection = self._database.connection
        with _on_behalf_of(self._machine, user=self._process):
            try:
                self._restore_pragma(statement)
                rows = list(connection.execute(statement, tuple(values)))
            except apsw.Error as failure:
                raise _translated(failure) from failure
        return Cursor(rows, connection.changes() if statement.startswith(WRITES) else -1)

    def _restore_pragma(self, statement: str) -> None:
        if statement.startswith("PRAGMA synchronous"):
            self._synchronous = self._database.synchronous = statement
        elif self._synchronous not in ("", self._database.synchronous) and not self.in_transaction:
            self._database.connection.execute(self._synchronous)
            self._database.synchronous = self._synchronous

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> Cursor:
        return Cursor([], sum([self._execute(statement, values).rowcount for values in rows]))

    def executescript(self, statements: str) -> None:
        self._execute(statements, ())

    def rollback(self) -> None:
        self._execute("ROLLBACK", ())

    def close(self) -> None:
        if self._process.alive and not self._closed:
            self._closed = True
            self._database.release(self._process)


class ReadingConnection(Connection):
    """A connection that only reads (`mode=ro`), and asks a handler now and then whether its read is to end."""

    _is_to_end: Callable[[], bool] | None = None

    def set_progress_handler(self, handler: Callable[[], bool], _: int) -> None:
        self._is_to_end = handler

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Cursor:
        assert statement.startswith(("SELECT", "BEGIN", "ROLLBACK")), f"{statement} does not only read"
        scheduler = self._machine.scheduler
        if not self.in_transaction and scheduler.rng.random() < self._machine.files.slow_reads:
            scheduler.sleep(scheduler.rng.random() * MAX_READ_TIME)
        if statement.startswith("SELECT") and self._is_to_end is not None and self._is_to_end():
            raise _failure(sqlite3.OperationalError, "interrupted", apsw.SQLITE_INTERRUPT)
        return super().execute(statement, values)


def _translated(failure: apsw.Error) -> sqlite3.Error:
    code: int = getattr(failure, "extendedresult", 0) or getattr(failure, "result", apsw.SQLITE_ERROR)
    kind: type[sqlite3.Error] = sqlite3.OperationalError
    if isinstance(failure, apsw.ConstraintError):
        kind = sqlite3.IntegrityError
    elif isinstance(failure, apsw.CorruptError | apsw.NotADBError):
        kind = sqlite3.DatabaseError
    return _failure(kind, str(failure), code)


def _failure(kind: type[sqlite3.Error], text: str, code: int) -> sqlite3.Error:
    result = kind(text)
    names = {**apsw.mapping_result_codes, **apsw.mapping_extended_result_codes}
    result.sqlite_errorcode = code
    result.sqlite_errorname = str(names.get(code, "SQLITE_ERROR"))
    return result


class SqliteModule:
    """A replacement for the module `sqlite3` in the code of the server."""

    def __init__(self) -> None:
        for name in dir(sqlite3):
            if name not in dir(self):
                setattr(self, name, getattr(sqlite3, name))

    def connect(self, path: Any, *, uri: bool = False, **_: object) -> Connection:
        process = process_now()
        machine = process.machine
        key = unquote(urlsplit(path).path) if uri else str(path)
        if uri and not _exists(machine.files, key):
            raise _failure(sqlite3.OperationalError, "unable to open database file", apsw.SQLITE_CANTOPEN)
        database = machine.databases.get(key)
        if database is None:
            try:
                database = machine.databases[key] = Database(machine, key)
            except apsw.Error as failure:
                raise _translated(failure) from failure
        return ReadingConnection(database, process) if uri else Connection(database, process)
