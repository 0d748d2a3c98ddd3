"""Header fields of every answer that tell browsers to be careful."""

from __future__ import annotations

from tusd_py.http.cors import RawHeaders

# The type of an answer is the one that it names, and no page learns the URL of an upload from a link in it.
SECURITY_HEADERS: RawHeaders = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Of texts for people and programs, which load nothing and are part of no page.
TEXT_HEADERS: RawHeaders = [
    *SECURITY_HEADERS,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
