"""What the tests of properties share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings, strategies as st

# A slow machine is no failure.
on_any_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)  # as it comes from the wire
