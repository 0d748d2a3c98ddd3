"""The choice of hooks for each endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import serving
from tests.support.hook_endpoint import HookEndpoint
from tests.support.timing import wait_until
from tests.support.wire.requests import create, patch
from tusd_py import InvalidSettings, TusServer
from tusd_py.contracts.hooks import HookType
from tusd_py.hooks.config import HooksConfig


@pytest.fixture
def endpoints() -> Iterator[tuple[HookEndpoint, HookEndpoint]]:
    with HookEndpoint() as first, HookEndpoint() as second:
        yield first, second


def test_an_endpoint_gets_the_hooks_that_its_url_names(
    tmp_path: Path, endpoints: tuple[HookEndpoint, HookEndpoint]
) -> None:
    first, second = endpoints
    urls = f"{first.url}#pre-create+pre-finish,{second.url}#post-finish"
    with serving(tmp_path, hooks_http=urls) as site:
        assert patch(site.port, create(site.port, 4), 0, b"abcd").status == 204
        wait_until(lambda: bool(second.asked), "the completion is told")

    assert [asked.type for asked in first.asked] == ["pre-create", "pre-finish"]
    assert [asked.type for asked in second.asked] == ["post-finish"]
    assert {asked.path for asked in [*first.asked, *second.asked]} == {"/hooks"}


def test_an_endpoint_without_a_choice_gets_the_enabled_hooks() -> None:
    config = HooksConfig(http=("https://a.example/#post-finish", "https://b.example/?t=1"), enabled_events=("expired",))
    assert config.endpoints == (
        ("https://a.example/", frozenset({HookType.POST_FINISH})),
        ("https://b.example/?t=1", frozenset({HookType.EXPIRED})),
    )


@pytest.mark.parametrize("choice", ["", "x", "post-finish+", "post-finish,post-create+x", "post_finish"])
def test_a_choice_of_unknown_hooks_stops_the_start(tmp_path: Path, choice: str) -> None:
    with pytest.raises(InvalidSettings, match="hooks_http must be URLs such as"):
        TusServer(upload_dir=tmp_path, hooks_http=f"https://a.example/#{choice}")


def test_one_endpoint_is_not_named_twice_with_different_hooks(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="is there twice"):
        TusServer(upload_dir=tmp_path, hooks_http="https://a.example/#post-finish,https://a.example/#pre-create")
