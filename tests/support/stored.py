"""The files and records that a server keeps, compared before and after."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.harness import ServerProcess

COLUMNS = ("id", "length", "offset", "status", "metadata", "concat_header", "owner", "expires_at")


@dataclass(frozen=True)
class Stored:
    """State of a server: its data files with their sizes, its records, and what is counted of each owner, if it is."""

    files: Mapping[str, int]
    records: Mapping[str, Sequence[Any]]
    usage: Mapping[str, Sequence[Any]]


def stored(server: ServerProcess) -> Stored:
    folder = Path(server.upload_dir)
    files = {}
    for place, folders, names in os.walk(folder):
        if ".tusd-py" in folders:
            folders.remove(".tusd-py")
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):
                files[os.path.relpath(path, folder)] = os.stat(path).st_size
    database = f"file:{folder / '.tusd-py' / 'uploads.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM uploads").fetchall()
        counts = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'owner_usage'").fetchone()
        usage = connection.execute("SELECT owner, bytes, open FROM owner_usage").fetchall() if counts else []
    return Stored(files, {row[0]: row[1:] for row in rows}, {row[0]: row[1:] for row in usage})


@contextlib.contextmanager
def unchanged(server: ServerProcess) -> Iterator[None]:
    """Assert that the context changes neither the files nor the records of a server, nor what it counts."""
    before = stored(server)
    yield
    assert stored(server) == before


def new_upload(server: ServerProcess, before: Stored) -> str:
    """Return the URL of the one upload that was added since `before`, if the client was not told."""
    added = set(stored(server).records) - set(before.records)
    assert len(added) == 1, added
    return f"{server.url}/{added.pop()}"
