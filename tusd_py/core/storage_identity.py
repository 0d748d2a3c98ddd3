"""The identity of a storage: a random id that is kept in it, and beside the records of its uploads.

Absent bytes mean something only in the storage that they were stored in. Before the server concludes anything from
absence, the storage has to show its id (`Proof`): a mount that is away, another directory or another bucket cannot.
"""

from __future__ import annotations

import logging
import re
import secrets

from tusd_py.core.errors import WrongStorage

logger = logging.getLogger("tusd_py.storage")

PRIVATE_FOLDER = ".tusd-py"  # in the upload directory: no upload id starts with a dot
NAME = "identity"  # of what holds it, in the private folder or below the prefix of a bucket
MAX_LENGTH = 64  # bytes that are read
IDENTITY = re.compile(r"[0-9a-f]{32}")


def new_identity() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def parse_identity(content: bytes) -> str | None:
    """The id; None if it is none, as after a power cut in the middle of its first writing."""
    text = content.decode("ascii", "replace").strip()
    return text if IDENTITY.fullmatch(text) else None


class Proof:
    """Compares the id that a storage shows with the one that its records name."""

    def __init__(self, what_to_check: str) -> None:
        """`what_to_check` goes into the sentence for the operator."""
        self.what_to_check = what_to_check
        self.expected: str | None = None  # None: nothing is known, everything is taken for granted
        self._failed = False

    def judge(self, found: str | None) -> None:
        """Raise `WrongStorage` unless this is the id that is expected; may be called in any thread."""
        if self.expected is None or found == self.expected:
            if self._failed:
                self._failed = False
                logger.warning("the storage is again the one that the records name")
            return
        error = WrongStorage(explanation=self.explain(found))
        if not self._failed:
            self._failed = True
            logger.error("nothing is concluded from missing bytes: %s", error.explanation)
        raise error

    def explain(self, found: str | None) -> str:
        """A sentence for the operator."""
        state = "has no identity" if found is None else "has another identity"
        return f"the storage {state} than its records name: check {self.what_to_check}"
