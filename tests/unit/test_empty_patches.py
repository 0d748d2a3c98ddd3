"""Clients that send empty PATCHes in a loop, and those that send one now and then."""

from __future__ import annotations

import pytest

from tusd_py.http import empty_patches
from tusd_py.http.empty_patches import EmptyPatches
from tusd_py.http.errors import HTTPError


def test_empty_patches_in_a_row_wait_longer_and_longer_and_are_refused_in_the_end() -> None:
    patches = EmptyPatches()
    pauses = [patches.pause("a") for _ in range(empty_patches.MAX_EMPTY_PATCHES)]
    assert pauses[:3] == [0, 0, 0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == empty_patches.MAX_PAUSE
    with pytest.raises(HTTPError, match="empty PATCH") as refusal:
        patches.pause("a")
    assert refusal.value.status == 400
    with pytest.raises(HTTPError, match="empty PATCH"):
        patches.pause("a")
    assert patches.pause("b") == 0
    patches.brought_bytes("a")
    assert patches.pause("a") == 0


def test_empty_patches_now_and_then_are_answered_at_once() -> None:
    now = 1000.0
    patches = EmptyPatches(lambda: now)
    for _ in range(2 * empty_patches.MAX_EMPTY_PATCHES):
        assert patches.pause("a") == 0
        now += empty_patches.RUN_TIMEOUT + 1


def test_the_uploads_with_empty_patches_that_are_remembered_are_bounded() -> None:
    patches = EmptyPatches()
    for number in range(empty_patches.MAX_TRACKED_UPLOADS + 100):
        patches.pause(str(number))
    assert len(patches._runs) == empty_patches.MAX_TRACKED_UPLOADS
