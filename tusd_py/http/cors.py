"""Cross-origin requests: which origins may upload, and what they get to see."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("POST", "HEAD", "PATCH", "DELETE", "GET", "OPTIONS")
EXPOSED_HEADERS = (
    "Location",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Defer-Length",
    "Upload-Metadata",
    "Upload-Concat",
    "Upload-Expires",
    "Tus-Resumable",
    "Tus-Version",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Checksum-Algorithm",
    "Retry-After",
    "X-Request-ID",
)
MAX_AGE = 86400  # seconds; browsers cap it themselves


def with_cors(app: ASGIApp, origins: Sequence[str], *, credentials: bool) -> ASGIApp:
    """Let browsers on these origins use the application; without any, none but its own."""
    if not origins:
        return app
    everyone = "*" in origins
    return CORSMiddleware(
        app,
        allow_origins=["*"] if everyone else [],
        allow_origin_regex=None if everyone else origin_pattern(origins),
        allow_methods=METHODS,
        allow_headers=["*"],  # whatever the page's own headers are: a preflight that fails hides the reason from it
        allow_credentials=credentials,
        expose_headers=EXPOSED_HEADERS,
        max_age=MAX_AGE,
    )


def origin_pattern(origins: Sequence[str]) -> str:
    """An anchored pattern: each origin as it stands, where `*` is one or more labels of a host name, or a port."""
    alternatives = (re.escape(origin.rstrip("/")).replace(r"\*", r"[A-Za-z0-9.-]+") for origin in origins)
    return "|".join(f"(?:{alternative})" for alternative in alternatives)
