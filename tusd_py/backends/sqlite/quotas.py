"""The usage of each owner in SQLite: a table that triggers keep in step with the records.

The triggers are part of the file, so that every change counts in its own transaction, whichever process makes it.
They are made, and the records counted, when a quota is first asked about: before, counting costs nothing.
"""

from __future__ import annotations

import json
import sqlite3

from tusd_py.core.quotas import MAX_COUNTED, Usage, check_growth, check_new, growth, has_quota, replaces_partials
from tusd_py.core.upload import Upload


def _counted(row: str) -> str:
    """Return the expression of `counted_bytes` for a row, which may be broken."""
    size = f"CAST(coalesce({row}.length, {row}.offset) AS INTEGER)"
    return (
        f"CASE WHEN {row}.status IN ('terminated', 'expired') OR {row}.uncounted <> 0 "
        f"OR ({row}.concatenation = 'final' AND {row}.status <> 'complete') "
        f"THEN 0 ELSE min(max({size}, 0), {MAX_COUNTED}) END"
    )


def _open(row: str) -> str:
    """Return the expression of `is_open` for a row."""
    return f"({row}.status IN ('active', 'finishing') AND {row}.concatenation <> 'final' AND {row}.uncounted = 0)"


ADD_NEW = (
    f"INSERT INTO owner_usage (owner, bytes, open) VALUES (NEW.owner, {_counted('NEW')}, {_open('NEW')}) "
    "ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes, open = open + excluded.open"
)
TAKE_OLD = (
    f"UPDATE owner_usage SET bytes = bytes - {_counted('OLD')}, open = open - {_open('OLD')} WHERE owner = OLD.owner"
)
FORGET_UNUSED = "DELETE FROM owner_usage WHERE owner = OLD.owner AND bytes = 0 AND open = 0"
EARLIER = (  # of versions that counted other bytes of uploads whose length is beyond `MAX_COUNTED`
    *(f"DROP TRIGGER IF EXISTS usage_of_{change}" for change in ("new", "removed", "changed")),
    "DROP TABLE IF EXISTS usage",
)
START_COUNTING = (
    *EARLIER,
    "CREATE TABLE owner_usage (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL, open INTEGER NOT NULL) WITHOUT ROWID",
    f"CREATE TRIGGER owner_usage_new AFTER INSERT ON uploads BEGIN {ADD_NEW}; END",
    f"CREATE TRIGGER owner_usage_removed AFTER DELETE ON uploads BEGIN {TAKE_OLD}; {FORGET_UNUSED}; END",
    f"CREATE TRIGGER owner_usage_changed AFTER UPDATE ON uploads WHEN {_counted('OLD')} <> {_counted('NEW')} "
    f"OR {_open('OLD')} <> {_open('NEW')} OR OLD.owner <> NEW.owner BEGIN {TAKE_OLD}; {ADD_NEW}; END",
    f"INSERT INTO owner_usage (owner, bytes, open) SELECT owner, sum({_counted('uploads')}), sum({_open('uploads')}) "
    "FROM uploads GROUP BY owner",
)
SELECT_USAGE = "SELECT bytes, open FROM owner_usage WHERE owner = ?"
OF_PARTIALS = "concatenation = 'partial' AND id IN (SELECT value FROM json_each(?))"
SELECT_SHARE = f"SELECT coalesce(sum({_counted('uploads')}), 0) FROM uploads WHERE owner = ? AND {OF_PARTIALS}"
JOIN_PARTIALS = (
    "UPDATE uploads SET uncounted = 1, "
    "expires_at = CASE WHEN ?1 IS NULL THEN expires_at ELSE min(coalesce(expires_at, ?1), ?1) END "
    f"WHERE {OF_PARTIALS}"
)
RETURN_PARTIALS = f"UPDATE uploads SET uncounted = 0 WHERE {OF_PARTIALS}"


def read_usage(connection: sqlite3.Connection, owner: str) -> Usage:
    """Return the usage of an owner, within a transaction; start counting if nothing was counted yet."""
    try:
        row = connection.execute(SELECT_USAGE, (owner,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        for statement in START_COUNTING:
            connection.execute(statement)
        row = connection.execute(SELECT_USAGE, (owner,)).fetchone()
    return Usage() if row is None else Usage(*row)


def admit_new(connection: sqlite3.Connection, upload: Upload) -> None:
    """Raise `QuotaExceeded` if a new record is over a quota that it names."""
    if has_quota(upload):
        check_new(upload, read_usage(connection, upload.owner))


def admit_change(connection: sqlite3.Connection, before: Upload, after: Upload) -> None:
    """Raise `QuotaExceeded` if a change of a record makes the usage grow over the quota of the upload."""
    grows = growth(before, after)
    if grows and replaces_partials(before, after):
        (share,) = connection.execute(SELECT_SHARE, (after.owner, json.dumps(after.partial_ids))).fetchone()
        grows -= share
    if grows > 0:
        check_growth(after, grows, read_usage(connection, after.owner))


def join_partials(connection: sqlite3.Connection, final: Upload, until: float | None) -> None:
    """Record in the partial uploads of a final one that it counts in their place, and that they expire by `until`."""
    connection.execute(JOIN_PARTIALS, (until, json.dumps(final.partial_ids)))


def return_partials(connection: sqlite3.Connection, final: Upload) -> None:
    """Record in the partial uploads of a final one that has ended that they count again."""
    connection.execute(RETURN_PARTIALS, (json.dumps(final.partial_ids),))
