"""`tusd-py sign`, and the settings of capabilities and signed URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.auth.signing import FIRST, signing_files
from tests.auth.site import OWNER, READER, ask
from tests.support.harness import serving
from tests.support.wire.messages import creation_headers, encoded, path_of
from tusd_py.cli import main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--capability-urls"], "--capability-urls needs --signing-key-file"),
        (["--signing-key-file", "missing"], "missing: No such file or directory"),
        (["--signing-key-file", "empty"], "empty: there is no key in it"),
        (["--signing-key-file", "short"], "short: line 1: a key has 64 hex digits"),
        (["--signing-key-file", "keys", "--capability-ttl", "0"], "--capability-ttl must be greater than 0"),
    ],
)
def test_wrong_setting_ends_the_start_with_a_sentence(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("short").write_text("abab")
    Path("keys").write_text(FIRST)
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_command_prints_urls_that_are_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = signing_files(tmp_path)
    with serving(tmp_path, **settings) as server:
        monkeypatch.setenv("TUSD_PY_SIGNING_KEY_FILE", str(settings["signing_key_file"]))
        monkeypatch.setenv("TUSD_PY_PUBLIC_URL", server.origin)

        def signed(*arguments: str) -> str:
            assert main(["sign", *arguments]) == 0
            url, empty = capsys.readouterr().out.split("\n")
            assert empty == ""
            return url.removeprefix(server.origin)

        limits = (
            "--owner",
            "ann",
            "--max-size",
            "1KiB",
            "--types",
            "text/plain,image/*",
            "--metadata",
            "filetype=text/plain",
        )
        url = signed("create", "--expires", "1h", *limits, "--metadata", "note=a=b")
        assert ask(server, None, "POST", url, {"Upload-Length": "1025"}).status == 413
        path = path_of(ask(server, None, "POST", url, creation_headers(4, b"four"), b"four"))
        header = ask(server, OWNER, "HEAD", path)["Upload-Metadata"]
        assert header == f"filetype {encoded('text/plain')},note {encoded('a=b')}"
        assert ask(server, None, "GET", signed("download", path.rpartition("/")[2], "--expires", "10m")).body == b"four"
        assert ask(server, READER, "GET", path).status == 200


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["create"], "--expires"),
        (["create", "--expires", "soon"], "the time to the expiry of a URL is a time such as"),
        (["create", "--expires", "0"], "has to be positive"),
        (["create", "--expires", "1h", "--max-size", "big"], "the largest size is a size in bytes"),
        (["create", "--expires", "1h", "--types", "image"], "a type is such as"),
        (["create", "--expires", "1h", "--metadata", "a"], "metadata is KEY=VALUE"),
        (["create", "--expires", "1h", "--metadata", "a=1", "--metadata", "a=2"], "twice"),
        (["create", "--expires", "1h", "--public-url", "x"], "--public-url must be a URL"),
        (["create", "--expires", "1h", "--signing-key-file", "missing"], "missing: No such file"),
        (["download", "--expires", "1h", "a/b"], "the id of an upload"),
        (["download", "--expires", "1h"], "ID"),
    ],
    ids=" ".join,
)
def test_command_refuses_what_no_url_can_have(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text(FIRST)
    monkeypatch.setenv("TUSD_PY_SIGNING_KEY_FILE", "keys")
    monkeypatch.setenv("TUSD_PY_PUBLIC_URL", "https://example.org")
    try:
        code = main(["sign", *arguments])
    except SystemExit as exit:  # of the parser
        code = int(exit.code or 0)
    assert code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["signing_key_file", "public_url"])
def test_command_names_the_setting_that_is_missing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(FIRST)
    given = {"signing_key_file": str(tmp_path / "keys"), "public_url": "https://example.org"}
    for name, value in given.items():
        if name != missing:
            monkeypatch.setenv(f"TUSD_PY_{name.upper()}", value)
    assert main(["sign", "create", "--expires", "1h"]) == 2
    assert f"--{missing.replace('_', '-')} is missing" in capsys.readouterr().err
