"""Settings and strategies of the property tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings, strategies as st

# A slow machine is no failure. Under CI the examples are always the same; elsewhere they differ, and find more.
on_any_machine = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)

HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)  # as it comes from the wire
