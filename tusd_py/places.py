"""Names of the places that components live in, for messages, and errors that name them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tusd_py.core.errors import StateUnavailable, StorageUnavailable, UploadError
from tusd_py.core.redaction import without_password
from tusd_py.core.storage_identity import PRIVATE_FOLDER
from tusd_py.settings import Settings


def upload_directory(settings: Settings) -> str:
    """Return the name of the upload directory for a message."""
    return f"the upload directory {settings.upload_dir}"


def redis(settings: Settings) -> str:
    """Return the name of the Redis server for a message, without its password."""
    return f"Redis at {without_password(settings.redis.url or '')}"


def bucket(settings: Settings) -> str:
    """Return the name of the S3 bucket for a message."""
    return f"the S3 bucket {settings.s3.bucket}"


def make_private_folder(settings: Settings) -> None:
    """Make the upload directory and the private folder in it, unless they exist. Runs in a worker thread.

    Raises `StorageUnavailable` with a sentence that names the directory.
    """
    with errors_at(upload_directory(settings)):
        settings.upload_dir.mkdir(parents=True, exist_ok=True)
        (settings.upload_dir / PRIVATE_FOLDER).mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def errors_at(place: str, *, records: str = "") -> Iterator[None]:
    """Convert errors of a component and of the operating system to `PLACE cannot be used: REASON`.

    A `StateUnavailable` stays one, and names the place of the `records` if that is given; every other error becomes a
    `StorageUnavailable`.
    """
    try:
        yield
    except (StorageUnavailable, StateUnavailable, OSError) as error:
        if isinstance(error, StateUnavailable):
            raise StateUnavailable(f"{records or place} cannot be used: {reason_of(error)}") from error
        raise StorageUnavailable(f"{place} cannot be used: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return the reason that an operator can act on: the error of the operating system behind `error`, or its own text.

    Error numbers and class names are left out, unless there is nothing else.
    """
    has_default_message = isinstance(error, UploadError) and error.message == error.default_message
    reason = error.__cause__ if has_default_message or isinstance(error.__cause__, OSError) else error
    reason = reason or error
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return text or ("it timed out" if isinstance(reason, TimeoutError) else f"it failed ({type(reason).__name__})")
