"""The header fields by which browsers let the pages load and do nothing but what they need."""

from __future__ import annotations

from urllib.parse import urlsplit

from tusd_py.http.cors import RawHeaders
from tusd_py.http.security_headers import SECURITY_HEADERS

# `data:` and `blob:` are icons in the style sheet of Uppy, previews of chosen files, and recordings that are played.
POLICY = (
    "default-src 'self'; connect-src {connect}; img-src 'self' data: blob:; media-src 'self' blob:;"
    " object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PERMISSIONS = "camera=(self), microphone=(self), screen-wake-lock=(self), geolocation=(), payment=(), usb=()"


def page_headers(public_url: str | None) -> RawHeaders:
    """Return the header fields of every page; uploads may have URLs below `public_url`, if there is one."""
    return [
        *SECURITY_HEADERS,
        (b"content-security-policy", content_security_policy(public_url).encode()),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"permissions-policy", PERMISSIONS.encode()),
    ]


def content_security_policy(public_url: str | None) -> str:
    """Return the policy of the pages: everything from their own origin, no script or style within the page."""
    connect = "'self'"
    if public_url is not None:
        parts = urlsplit(public_url)
        connect += f" {parts.scheme}://{parts.netloc}"
    return POLICY.format(connect=connect)
