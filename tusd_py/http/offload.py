"""Downloads that a proxy in front sends by itself: the header field that tells it the file. Pure functions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

Kind = Literal["x-accel-redirect", "x-sendfile"]


@dataclass(frozen=True, slots=True)
class DownloadOffload:
    """The kind of proxy, the directory of the uploads, and the location of the proxy that stands for it."""

    kind: Kind
    directory: Path
    prefix: str = ""  # of X-Accel-Redirect, without a slash at its end

    def header_field(self, file: Path) -> dict[str, str] | None:
        """Return the header field that makes the proxy send a file; None for one outside of the directory.

        The value is percent-encoded, as nginx, lighttpd and mod_xsendfile of Apache expect it.
        """
        if not file.is_relative_to(self.directory):
            return None
        if self.kind == "x-sendfile":
            return {"X-Sendfile": quote(os.fsencode(file.absolute()))}
        return {"X-Accel-Redirect": f"{self.prefix}/{quote(os.fsencode(file.relative_to(self.directory)))}"}
