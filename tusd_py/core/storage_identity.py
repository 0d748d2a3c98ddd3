"""The identity of a storage: a random id that is kept in it, and beside the records of its uploads.

The absence of bytes means something only in the storage that they were stored in. Before the server concludes anything
from absence, the storage has to prove its id (`Proof`): an unmounted directory, another one or another bucket cannot.
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import NoReturn

from tusd_py.core.errors import WrongStorage

logger = logging.getLogger("tusd_py.storage")

PRIVATE_FOLDER = ".tusd-py"  # in the upload directory: no upload id starts with a dot
NAME = "identity"  # name of the file or object that holds the id
MAX_LENGTH = 64  # bytes of the file or object that are read
IDENTITY = re.compile(r"[0-9a-f]{32}")


def new_identity() -> str:
    """Return a new id of 128 random bits."""
    return secrets.token_hex(16)


def parse_identity(content: bytes) -> str | None:
    """Return the id; None if the content is not one, as after a power cut during its first writing."""
    text = content.decode("ascii", "replace").strip()
    return text if IDENTITY.fullmatch(text) else None


class Proof:
    """The comparison of the id that a storage has with the one that its records name."""

    def __init__(self, what_to_check: str) -> None:
        """Begin without an expected id; `what_to_check` is advice in messages to the operator."""
        self.what_to_check = what_to_check
        self.expected: str | None = None  # None: not known, so that every id is accepted
        self._failed = False

    def judge(self, found: str | None) -> None:
        """Raise `WrongStorage` unless this is the expected id. Runs in any thread."""
        if self.expected is None or found == self.expected:
            if self._failed:
                self._failed = False
                logger.warning("the storage is again the one that the records name")
            return
        self.refuse(self.explain(found))

    def refuse(self, explanation: str) -> NoReturn:
        """Raise `WrongStorage` with a sentence for the operator, which is logged once. Runs in any thread."""
        if not self._failed:
            self._failed = True
            logger.error("nothing is concluded from missing bytes: %s", explanation)
        raise WrongStorage(explanation=explanation)

    def explain(self, found: str | None) -> str:
        """Return a sentence about the failure for the operator."""
        state = "has no identity" if found is None else "has another identity"
        return f"the storage {state} than its records name: check {self.what_to_check}"
