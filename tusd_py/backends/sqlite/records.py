"""The statements about records, and the functions that run them on one connection.

Functions with a connection run in the thread that has it, and raise `sqlite3.Error`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any

from tusd_py.backends.sqlite.queries import DELETE_HISTORY
from tusd_py.backends.sqlite.quotas import admit_change, admit_new, join_partials, return_partials
from tusd_py.backends.sqlite.read_thread import decode_text
from tusd_py.core.errors import LockLost, UploadExists
from tusd_py.core.quotas import growth, replaces_partials, returns_partials
from tusd_py.core.upload import Upload
from tusd_py.core.upload_codec import FIELDS, encode_row

SELECT = f"SELECT {', '.join(FIELDS)} FROM uploads"
SELECT_ONE = f"{SELECT} WHERE id = ?"
EXISTS = "SELECT 1 FROM uploads WHERE id = ?"
SELECT_DUE = (
    f"{SELECT} WHERE expires_at <= ? UNION ALL "
    f"{SELECT} WHERE status = 'finishing' AND (concatenation <> 'final' OR expires_at IS NULL) "
    "AND (expires_at IS NULL OR expires_at > ?) LIMIT ? OFFSET ?"
)
INSERT = f"INSERT INTO uploads ({', '.join(FIELDS)}) VALUES ({', '.join('?' * len(FIELDS))})"
# The completion of a final upload marks its partial ones without their locks: who read them before must not undo that.
KEEP_MARK = "uncounted = max(CASE concatenation WHEN 'partial' THEN uncounted ELSE 0 END, ?)"
# The server never changes these of a record, though another caller may. SQLite writes the entry of an index anew if a
# statement names one of its columns.
KEPT = ("id", "created_at", "owner", "client")
CHANGED = [name for name in FIELDS if name not in KEPT]


def _update(names: Sequence[str]) -> str:
    """Return the statement that replaces these fields of a record."""
    assignments = [KEEP_MARK if name == "uncounted" else f"{name} = ?" for name in names]
    return f"UPDATE uploads SET {', '.join(assignments)} WHERE id = ? AND token <= ? AND offset = ? AND status = ?"


UPDATE = _update(CHANGED)
UPDATE_WHOLE = _update(FIELDS)
DELETE = "DELETE FROM uploads WHERE id = ? AND (token <= ? OR typeof(token) <> 'integer')"
SELECT_AFTER = f"{SELECT} WHERE id > ? ORDER BY id LIMIT ?"
INSERT_PART = "INSERT OR REPLACE INTO parts (upload_id, number, end, etag, checksum) VALUES (?, ?, ?, ?, ?)"
SELECT_PARTS = "SELECT number, end, etag, checksum FROM parts WHERE upload_id = ? ORDER BY number"
SELECT_METADATA = "SELECT value FROM metadata WHERE name = ?"
INSERT_METADATA = "INSERT OR IGNORE INTO metadata (name, value) VALUES (?, ?)"
UPDATE_METADATA = "UPDATE metadata SET value = ? WHERE name = ? AND value = ?"
INSERT_WAITING = "INSERT OR IGNORE INTO waiting_finals (partial_id, final_id) VALUES (?, ?)"
SELECT_WAITING = "SELECT final_id FROM waiting_finals WHERE partial_id = ? LIMIT ?"
DELETE_WAITING = "DELETE FROM waiting_finals WHERE partial_id = ? AND final_id = ?"
DELETE_PARTS = "DELETE FROM parts WHERE upload_id = ?"

_changed_values = itemgetter(*map(FIELDS.index, CHANGED))  # of a row
_kept = attrgetter(*KEPT)  # of an upload


def may_use_reserve(before: Upload, after: Upload) -> bool:
    """Return whether a change of a record may use the space reserved for removals: the bytes beyond it make room."""
    return after.has_ended or after.offset < before.offset


def is_compound(before: Upload, after: Upload) -> bool:
    """Return whether a change of a record takes more than one statement."""
    return growth(before, after) > 0 or replaces_partials(before, after) or returns_partials(before, after)


def insert_record(connection: sqlite3.Connection, upload: Upload, now: float, *, enforce: bool) -> None:
    """Add a record, which was changed now if it does not tell when.

    Raises `UploadExists`, and `QuotaExceeded` if quotas are to be enforced.
    """
    if enforce:
        admit_new(connection, upload)
    try:
        connection.execute(INSERT, encode_row(upload, now))
    except sqlite3.IntegrityError:
        raise UploadExists from None


def replace_record(
    connection: sqlite3.Connection,
    before: Upload,
    after: Upload,
    *,
    enforce: bool,
    partials_until: float | None = None,
) -> Upload:
    """Replace a record, and return the new one.

    Raises `LockLost` if the record has changed, or has a newer token; `QuotaExceeded` if quotas are to be enforced.
    """
    if enforce:
        admit_change(connection, before, after)
    condition = (before.id, after.token, before.offset, before.status)
    row = encode_row(after)
    if _kept(before) == _kept(after):
        replaced = connection.execute(UPDATE, (*_changed_values(row), *condition))
    else:
        replaced = connection.execute(UPDATE_WHOLE, (*row, *condition))
    if replaced.rowcount == 0:
        raise LockLost
    if replaces_partials(before, after):
        join_partials(connection, after, partials_until)
    elif returns_partials(before, after):
        return_partials(connection, after)
    return after


def delete_record(connection: sqlite3.Connection, upload_id: str, token: int) -> None:
    """Remove a record, and what belongs to it; raises `LockLost` if the record has a newer token."""
    deleted = connection.execute(DELETE, (upload_id, token)).rowcount
    if not deleted and connection.execute(EXISTS, (upload_id,)).fetchone() is not None:
        raise LockLost
    connection.execute(DELETE_PARTS, (upload_id,))
    connection.execute(DELETE_HISTORY, (upload_id,))


def fetch_rows(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> list[Any]:
    """Return the rows of a query; texts that are not UTF-8 are returned as bytes."""
    try:
        return connection.execute(statement, values).fetchall()
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    connection.text_factory = decode_text
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.text_factory = str
