"""Schema of the records in SQLite, and the migration of files of earlier versions."""

from __future__ import annotations

import sqlite3

from tusd_py.core.errors import StateUnavailable

VERSION = 1  # `user_version` of the files that this version writes; 0 in those before it

SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, length INTEGER, deferred INTEGER NOT NULL,
    offset INTEGER NOT NULL, status TEXT NOT NULL, metadata TEXT, concatenation TEXT NOT NULL, concat_header TEXT,
    partial_ids TEXT NOT NULL, expires_at REAL, completed_at REAL, checkpoint INTEGER NOT NULL,
    layout TEXT NOT NULL DEFAULT '', token INTEGER NOT NULL, synced INTEGER NOT NULL DEFAULT 0,
    location TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '',
    event_sequence INTEGER NOT NULL DEFAULT 0, max_size INTEGER, given_expiry REAL,
    uncounted INTEGER NOT NULL DEFAULT 0, quota_bytes INTEGER, quota_uploads INTEGER,
    reserved_until REAL, conditions TEXT NOT NULL DEFAULT '', client TEXT NOT NULL DEFAULT '', updated_at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    upload_id TEXT, number INTEGER, end INTEGER NOT NULL, etag TEXT NOT NULL, checksum TEXT NOT NULL,
    PRIMARY KEY (upload_id, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metadata (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uploads_by_expiry ON uploads (expires_at) WHERE expires_at IS NOT NULL;
DROP INDEX IF EXISTS uploads_finishing;
CREATE INDEX IF NOT EXISTS uploads_to_finish ON uploads (status)
    WHERE status = 'finishing' AND (concatenation <> 'final' OR expires_at IS NULL);
CREATE TABLE IF NOT EXISTS history (
    upload_id TEXT, number INTEGER, entry TEXT NOT NULL, PRIMARY KEY (upload_id, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting_finals (
    partial_id TEXT, final_id TEXT, PRIMARY KEY (partial_id, final_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
    number INTEGER PRIMARY KEY, sink TEXT NOT NULL, event_id TEXT NOT NULL, upload_id TEXT NOT NULL,
    sequence INTEGER NOT NULL, type TEXT NOT NULL, time REAL NOT NULL, document TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX IF NOT EXISTS deliveries_by_event ON deliveries (event_id, sink);
CREATE INDEX IF NOT EXISTS deliveries_by_time ON deliveries (sink, dead, next_at);
CREATE INDEX IF NOT EXISTS deliveries_by_upload ON deliveries (upload_id, sink) WHERE dead = 0;
CREATE TABLE IF NOT EXISTS new_deliveries (
    number INTEGER PRIMARY KEY, sink TEXT NOT NULL, event_id TEXT NOT NULL, upload_id TEXT NOT NULL,
    sequence INTEGER NOT NULL, type TEXT NOT NULL, time REAL NOT NULL, document TEXT NOT NULL
);
DROP INDEX IF EXISTS new_deliveries_by_event;
CREATE INDEX IF NOT EXISTS new_deliveries_by_sink ON new_deliveries (sink);
"""
# Columns that files of earlier versions lack. Those versions too synced the bytes of uploads of unknown length before
# every response.
ADD_COLUMNS = {
    "layout": ("ALTER TABLE uploads ADD COLUMN layout TEXT NOT NULL DEFAULT ''",),
    "location": ("ALTER TABLE uploads ADD COLUMN location TEXT NOT NULL DEFAULT ''",),
    "owner": ("ALTER TABLE uploads ADD COLUMN owner TEXT NOT NULL DEFAULT ''",),
    "event_sequence": ("ALTER TABLE uploads ADD COLUMN event_sequence INTEGER NOT NULL DEFAULT 0",),
    "max_size": ("ALTER TABLE uploads ADD COLUMN max_size INTEGER",),
    "given_expiry": ("ALTER TABLE uploads ADD COLUMN given_expiry REAL",),
    "uncounted": ("ALTER TABLE uploads ADD COLUMN uncounted INTEGER NOT NULL DEFAULT 0",),
    "quota_bytes": ("ALTER TABLE uploads ADD COLUMN quota_bytes INTEGER",),
    "quota_uploads": ("ALTER TABLE uploads ADD COLUMN quota_uploads INTEGER",),
    "reserved_until": ("ALTER TABLE uploads ADD COLUMN reserved_until REAL",),
    "conditions": ("ALTER TABLE uploads ADD COLUMN conditions TEXT NOT NULL DEFAULT ''",),
    "client": ("ALTER TABLE uploads ADD COLUMN client TEXT NOT NULL DEFAULT ''",),
    "updated_at": ("ALTER TABLE uploads ADD COLUMN updated_at REAL",),
    "synced": (
        "ALTER TABLE uploads ADD COLUMN synced INTEGER NOT NULL DEFAULT 0",
        "UPDATE uploads SET synced = offset WHERE deferred",
    ),
}


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables, or add the columns that an older file lacks.

    Raises:
        StateUnavailable: the file was written by a later version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StateUnavailable(
            f"its records were written by a newer version of tusd-py (format {version}; this version reads "
            f"formats up to {VERSION})"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCHEMA)
    if version == VERSION and _columns(connection) >= ADD_COLUMNS.keys():
        return
    connection.execute("BEGIN IMMEDIATE")
    for column in ADD_COLUMNS.keys() - _columns(connection):
        for statement in ADD_COLUMNS[column]:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _columns(connection: sqlite3.Connection) -> set[str]:
    return {row[1] for row in connection.execute("PRAGMA table_info(uploads)")}
