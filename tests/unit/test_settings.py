from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.support.harness import ROOT
from tests.support.properties import on_any_machine
from tusd_py import TusServer, create_app
from tusd_py.backends.redis.config import RedisConfig
from tusd_py.backends.s3.config import S3Config
from tusd_py.cli import main
from tusd_py.core.option_types import parse_duration, parse_size, split_list
from tusd_py.core.redaction import without_password, without_secrets, without_secrets_within
from tusd_py.settings import (
    ENV_PREFIX,
    FIELDS,
    InvalidSettings,
    Settings,
    flag_name,
    from_arguments,
    load,
    value_of,
)
from tusd_py.settings.help import readable_default

KIBI, MEBI, GIBI = 1 << 10, 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


# Values.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1KB", 1000),
        ("1k", 1000),
        ("1KiB", KIBI),
        ("1Ki", KIBI),
        ("10MB", 10_000_000),
        ("10MiB", 10 * MEBI),
        ("5GiB", 5 * GIBI),
        ("5gib", 5 * GIBI),
        ("5 GiB", 5 * GIBI),
        (" 2TB ", 2 * 10**12),
        ("1.5KiB", 1536),
        ("0.5GiB", GIBI // 2),
        ("1TiB", 1 << 40),
    ],
)
def test_size_is_parsed(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@on_any_machine
@given(st.integers(0, (1 << 63) - 1))
def test_sizes_are_exact(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_size(f"{size >> 10}KiB") == size >> 10 << 10


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "+1", "1PiB", "1KK", "1e6", "1,5KB", "1 2", "KB", ".5KB", "1.KB", "0x10", "٣"]
)
def test_malformed_size_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="5GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("30", 30),
        ("30s", 30),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("15m", 900),
        ("1.5m", 90),
        ("24h", 86400),
        ("7d", 604800),
        (" 7 d ", 604800),
    ],
)
def test_duration_is_parsed(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "+1s", "1y", "1M", "1h30m", "1e3", "1:30", "s", "inf", "nan"])
def test_malformed_duration_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="24h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), (" , ", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), ("*", ("*",))],
)
def test_lists(text: str, expected: tuple[str, ...]) -> None:
    assert split_list(text) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "0", 0),
        ("max_size", "5GiB", 5 * GIBI),
        ("max_size", 5, 5),
        ("expires_after", "24h", 86400),
        ("expires_after", 1.5, 1.5),
        ("date_folders", "true", True),
        ("date_folders", "no", False),
        ("upload_dir", "/srv/uploads", Path("/srv/uploads")),
        ("base_path", "uploads", "/uploads"),
        ("base_path", "/a/b/", "/a/b"),
        ("public_url", "https://example.org/", "https://example.org"),
        ("public_url", "https://example.org:8443/up", "https://example.org:8443/up"),
        ("trusted_proxies", "127.0.0.1, 10.0.0.0/8", ("127.0.0.1", "10.0.0.0/8")),
        ("trusted_proxies", "*", ("*",)),
        ("trusted_proxies", "", ()),
        ("trusted_proxies", ["::1"], ("::1",)),
        ("cors_origins", "https://*.example.org", ("https://*.example.org",)),
        ("cors_origins", "", ()),
        ("cors_origins", "http://localhost:*,null", ("http://localhost:*", "null")),
        ("cors_origins", "capacitor://localhost,https://[::1]:8080/", ("capacitor://localhost", "https://[::1]:8080/")),
        ("host", "::1", "::1"),
        ("host", "[::1]", "::1"),
        ("redis_url", "redis://:p%2Fw@localhost:6379/0?password=a@b", "redis://:p%2Fw@localhost:6379/0?password=a@b"),
        ("redis_url", "redis+cluster://[::1]:1,b:2", "redis+cluster://[::1]:1,b:2"),
        ("s3_tags", "project=press + radio,Größe=", ("project=press + radio", "Größe=")),
        ("s3_tags", "kind=a:b/c@d_e-f.g,equal===", ("kind=a:b/c@d_e-f.g", "equal===")),
        ("durability", "always", "always"),
        ("log_level", "debug", "debug"),
    ],
)
def test_accepted_values(name: str, value: Any, expected: object) -> None:
    needed = {"s3_bucket": "uploads", "redis_url": "redis://localhost"}
    assert value_of(load(needed | {name: value}).settings, name) == expected


# Refused values: one line, which names the option and says what is accepted.

WRONG = [
    ("port", "abc", "must be a whole number, not 'abc'"),
    ("port", "65536", "65535"),
    ("port", "-1", "greater than or equal to 0"),
    ("s3_key_template", "{prefix}", "must be a key that contains {id} exactly once"),
    ("s3_key_template", "{id}{other}", "must be a key made of text, {prefix}, {id} and {metadata.NAME}"),
    ("s3_tags", "press", "pairs"),
    ("s3_tags", "=press", "pairs"),
    ("s3_tags", "project=press & more", "digits, spaces"),
    ("s3_tags", "project=" + "x" * 257, "pairs"),
    ("s3_tags", ",".join(f"t{number}=x" for number in range(11)), "at most 10"),
    ("workers", "0", "must be greater than or equal to 1, not '0'"),
    ("base_path", "/", "a path such as /files"),
    ("base_path", "/a b", "a path such as /files"),
    ("base_path", "/metrics/", "another path"),
    ("base_path", "/a?b", "a path such as /files"),
    ("public_url", "example.org", "https://uploads.example.org"),
    ("public_url", "ftp://example.org", "https://uploads.example.org"),
    ("public_url", "https://", "https://uploads.example.org"),
    ("public_url", "https://a,b", "https://uploads.example.org"),
    ("public_url", "https://example.org?x", "https://uploads.example.org"),
    ("public_url", "https://[example.org", "https://uploads.example.org"),
    ("public_url", "https://exa mple.org", "https://uploads.example.org"),
    ("trusted_proxies", "example.org", "addresses or networks"),
    ("trusted_proxies", "127.0.0.1,10.0.0.0/99", "addresses or networks"),
    ("max_size", "5 apples", "a size in bytes such as"),
    ("max_size", "-5", "a size in bytes such as"),
    ("max_size", "", "a size in bytes such as"),
    ("max_size", "9" * 400, "a size in bytes such as"),
    ("buffer_size", "1KiB", "1048576"),
    ("expires_after", "soon", "a time such as"),
    ("expires_after", "9" * 400, "a time such as"),
    ("lock_timeout", "0", "greater than 0"),
    ("durability", "sometimes", "'complete', 'always' or 'never'"),
    ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
    ("metadata_pairs", "-1", "greater than or equal to 0"),
    ("host", "", "0.0.0.0 for every address"),
    ("host", " ", "0.0.0.0 for every address"),
    ("host", "http://127.0.0.1", "an address or the name of a host"),
    ("cors_origins", "example.org", "https://app.example.org, without a path"),
    ("cors_origins", "https://example.org,app.example.org", "https://app.example.org, without a path"),
    ("cors_origins", "https://example.org/app", "https://app.example.org, without a path"),
    ("cors_origins", "https://", "https://app.example.org, without a path"),
    ("redis_url", "redis://:pass/word@localhost:6379/0", "%2F"),
    ("redis_url", "redis://:pass@word@local/host", "%40"),
    ("redis_url", "redis://:pass?word@localhost", "%3F"),
    ("redis_url", "redis://:pass#word@localhost", "%23"),
    ("redis_url", "redis+sentinel://:pass/word@localhost:6379,b/0", "%2F"),
    ("redis_url", "redis://localhost:port", "a URL"),
]


def assert_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tusd-py: ")
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n")
    for part in parts:
        assert part in printed.err


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_flag(capsys: pytest.CaptureFixture[str], name: str, value: str, accepted: str) -> None:
    assert main(["config", f"{flag_name(name)}={value}"]) == 2
    assert_one_line(capsys, flag_name(name), accepted)


@pytest.mark.parametrize("command", ["serve", "sweep", "config"])
def test_a_wrong_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("TUSD_PY_DISABLE_METRICS", "perhaps")
    assert main([command]) == 2
    assert_one_line(capsys, "--disable-metrics", "TUSD_PY_DISABLE_METRICS", "must be true or false, not 'perhaps'")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ('port = "abc"', "--port"),
        ("port = 70000", "--port"),
        ("port = [1]", "--port"),
        ("port = true", "--port"),
        ("max_size = 1.5", "--max-size"),
        ("max_size = true", "--max-size"),
        ("max_size = -1", "--max-size"),
        ("idle_timeout = -1", "--idle-timeout"),
        ("idle_timeout = nan", "--idle-timeout"),
        ("expires_after = inf", "--expires-after"),
        ("idle_timeout = 2026-01-31", "--idle-timeout"),
        ("durability = 1", "--durability"),
        ('cors_origins = { a = "b" }', "--cors-origins"),
        ("host = 1", "--host"),
        ('"base-path" = "/"', "--base-path"),
    ],
)
def test_a_wrong_line_in_the_file(capsys: pytest.CaptureFixture[str], config: Path, line: str, option: str) -> None:
    config.write_text(line)
    assert main(["config", "--config", str(config)]) == 2
    assert_one_line(capsys, option, str(config))


def test_several_wrong_values_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--port", "x", "--max-size", "y\nz"]) == 2
    assert_one_line(capsys, "--port", "--max-size")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no_such_setting = 1", "there is no setting 'no_such_setting'"),
        (b"[server]\nport = 1", "there is no setting 'server'"),
        (b"Port = 1", "there is no setting 'Port'"),
        (b"port 8080", "is not TOML"),
        (b"port = 1\nport = 2", "is not TOML"),
        (b"host = '\xff'", "is not TOML"),
    ],
)
def test_a_file_that_is_not_understood(
    capsys: pytest.CaptureFixture[str], config: Path, content: bytes, reason: str
) -> None:
    config.write_bytes(content)
    assert main(["config", "--config", str(config)]) == 2
    assert_one_line(capsys, str(config), reason)


@pytest.mark.parametrize(("place", "reason"), [("missing.toml", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str, reason: str
) -> None:
    path = str(tmp_path / place)
    assert main(["config", "--config", path]) == 2
    assert_one_line(capsys, "--config", path, reason)


def test_a_mistake_in_code_is_an_error_too() -> None:
    with pytest.raises(InvalidSettings, match="--port"):
        load({"port": "abc"})
    with pytest.raises(ValueError, match="no_such_setting"):
        Settings(no_such_setting=1)  # type: ignore[call-arg]


# Where values come from.


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[str, str]]:
    """Return the output of `tusd-py config`: for every setting its value and the source of it."""
    assert main(["config", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    settings = {}
    for line in printed.out.splitlines():
        match = re.fullmatch(r"(\w+) = (.*?)  # (.+)", line)
        assert match, line
        settings[match[1]] = (match[2], match[3])
    return settings


def test_every_setting_is_printed_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    settings = printed_config(capsys)
    assert list(settings) == list(FIELDS)
    assert {origin for _, origin in settings.values()} == {"default"}
    assert settings["port"] == ("8080", "default")
    assert settings["cors_origins"] == ("*", "default")
    assert settings["max_size"] == ("", "default")
    assert settings["date_folders"] == ("False", "default")


def test_flags_win_over_variables_over_the_file_over_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    config.write_text("port = 1\nmax_size = '1KiB'\nbase-path = '/one'\n")
    monkeypatch.setenv("TUSD_PY_PORT", "2")
    monkeypatch.setenv("TUSD_PY_MAX_SIZE", "2KiB")
    settings = printed_config(capsys, "--config", str(config), "--port", "3", "--date-folders")
    assert settings["port"] == ("3", "--port")
    assert settings["max_size"] == ("2048", "TUSD_PY_MAX_SIZE")
    assert settings["base_path"] == ("/one", str(config))
    assert settings["date_folders"] == ("True", "--date-folders")
    assert settings["workers"] == ("1", "default")


def test_a_flag_switches_off_what_a_variable_switched_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUSD_PY_DISABLE_DOWNLOAD", "true")
    assert printed_config(capsys)["disable_download"] == ("True", "TUSD_PY_DISABLE_DOWNLOAD")
    settings = printed_config(capsys, "--no-disable-download")
    assert settings["disable_download"][0] == "False"


def test_an_empty_list_is_a_value(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_PY_CORS_ORIGINS", "")
    assert printed_config(capsys)["cors_origins"] == ("", "TUSD_PY_CORS_ORIGINS")
    assert printed_config(capsys, "--cors-origins", "https://a.example")["cors_origins"] == (
        "https://a.example",
        "--cors-origins",
    )


@pytest.mark.parametrize("name", ["host", "max_size", "redis_url", "expires_after", "workers", "durability"])
def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, config: Path, name: str) -> None:
    """Compose files set variables to nothing where the machine has none."""
    monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", "")
    loaded = load()
    assert value_of(loaded.settings, name) == FIELDS[name].default
    assert loaded.origins[name] == "default"
    config.write_text("host = '127.0.0.2'")
    assert load(config=config).settings.host == "127.0.0.2"


def test_an_empty_variable_for_the_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, uploads would go where nobody expects them."""
    monkeypatch.setenv("TUSD_PY_UPLOAD_DIR", "")
    with pytest.raises(InvalidSettings, match="a directory"):
        load()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:secret@host", "redis://:***@host"),
        ("redis://:sec@ret@host/0", "redis://:***@host/0"),
        ("redis://:sec/ret@host/0", "redis://:***@host/0"),
        ("redis://:sec:ret@host/0", "redis://:***@host/0"),
        ("redis://:sec?ret@host/0", "redis://:***@host/0"),
        ("redis://:sec#ret@host/0", "redis://:***@host/0"),
        ("redis://host/0?password=secret", "redis://host/0?password=***"),
        ("redis://host/0?db=1&Password=sec@ret&x=1", "redis://host/0?db=1&Password=***&x=1"),
        ("redis+sentinel://:s@a:1,b:2/m?sentinel_password=t", "redis+sentinel://:***@a:1,b:2/m?sentinel_password=***"),
        ("unix://user:secret@/run/redis.sock?db=1", "unix://user:***@/run/redis.sock?db=1"),
        ("redis://host/0?client_name=a@b", "redis://host/0?client_name=a@b"),
        ("project=a:b@c", "project=a:b@c"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url", ["redis://:se/cret@host/0", "redis://:se@cret@host/0", ":se/cret@host", "redis://host/0 0?password=se/cret"]
)
def test_a_refused_url_does_not_show_its_password(capsys: pytest.CaptureFixture[str], url: str) -> None:
    main(["config", "--redis-url", url])
    assert "cret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/hooks", "https://host/hooks"),
        ("https://[::1]:8080/hooks", "https://[::1]:8080/hooks"),
        ("https://host/hooks?token=secret", "https://host/hooks?***"),
        ("https://host/hooks?mail=a@b&token=secret", "https://***"),
        ("https://host/hooks#secret", "https://host/hooks#***"),
        ("https://user:secret@host/hooks?token=secret", "https://***@host/hooks?***"),
        ("https://user:sec?ret@host", "https://***"),
        ("https://user:sec/ret@host", "https://***@host"),
        ("https://user:secret", "https://***"),
        ("nats://secret@host/subject", "nats://***@host/subject"),
        ("amqps://user:sec@ret@host/exchange?vhost=a", "amqps://***@host/exchange?***"),
        ("redis://user:secret@host/0?stream=a", "redis://user:***@host/0?stream=a"),
        ("project=a:b@c", "project=a:b@c"),
    ],
)
def test_tokens_are_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_tokens_are_not_shown_within_a_text() -> None:
    text = without_secrets_within("no answer of 'https://u:secret@host/a?t=secret', nor of nats://secret@b: timeout")
    assert text == "no answer of 'https://***@host/a?***', nor of nats://***@b: timeout"


@pytest.mark.parametrize("name", ["--hooks-http", "--events-to"])
@pytest.mark.parametrize(
    "value",
    [
        "https://u:se,cret@host/",
        "https://host/?token=se,cret",
        "https://host/?token=secret#secret",
        "https://secret@host/,https://secret@host/",
        "ftp://secret@host/?secret",
        "secret@host/hooks",
        "host/hooks?secret",
        "https://host/a b?token=secret",
        "https://host:secret/",
    ],
)
def test_a_refused_list_of_urls_does_not_show_its_tokens(
    capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    assert main(["config", name, value]) == 2
    assert "cret" not in "".join(capsys.readouterr())


def test_an_accepted_url_is_shown_without_its_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--hooks-http", "https://u:hunter2@host/?hunter2", "--events-to", "nats://hunter2@b/a"]) == 0
    printed = "".join(capsys.readouterr())
    assert "hooks_http = https://***@host/?***" in printed
    assert "hunter2" not in printed


def test_settings_do_not_show_their_password_in_a_debugger() -> None:
    assert "hunter2" not in repr(load({"redis_url": "redis://:hunter2@localhost"}).settings)


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "https://*",
        "http://*:*",
        "https://a.example,*",
        "null",
        "https://*.*",
        "https://*.com",
        "https://*.com:8443",
        "https://*example.org",
        "https://app.example.*",
        "https://app.example.org*",
        "https://*.example.org.*",
        "https://a.example,https://*.org",
    ],
)
def test_credentials_for_every_origin_are_refused(capsys: pytest.CaptureFixture[str], origins: str) -> None:
    assert main(["config", "--cors-credentials", "--cors-origins", origins]) == 2
    assert_one_line(capsys, "--cors-credentials needs --cors-origins that names the origins", origins)
    with pytest.raises(InvalidSettings, match="cors_credentials needs cors_origins"):
        from_arguments({"cors_credentials": True, "cors_origins": origins})


@pytest.mark.parametrize(
    "origins",
    [
        "https://a.example",
        "https://*.a.example,http://localhost:*",
        "",
        "https://pr-*.a.example:8443",
        "https://*.*.a.example/",
        "http://*.localhost:*",
        "http://127.0.0.1:*,http://[::1]:*",
        "capacitor://localhost",
    ],
)
def test_credentials_for_named_origins_are_accepted(origins: str) -> None:
    assert load({"cors_credentials": True, "cors_origins": origins}).settings.cors_credentials


@pytest.mark.parametrize("name", FIELDS)
def test_the_documented_default_is_the_one_in_the_help(name: str) -> None:
    table = (ROOT / "docs" / "configuration.md").read_text()
    match = re.search(rf"^\| `{flag_name(name)}` \| *`?([^|`]*?)`? *\|", table, re.MULTILINE)
    assert match
    assert match[1] == {"False": "off", "True": "on"}.get(readable_default(name), readable_default(name))


# Arguments in code.


@pytest.mark.parametrize("build", [TusServer, create_app])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"redis_ulr": "redis://localhost"}, r"^there is no setting 'redis_ulr'; did you mean redis_url\?$"),
        ({"max_size": "much"}, r"^max_size must be a size in bytes such as 1048576, 10MB or 5GiB, not 'much'$"),
        ({"s3_region": "eu-central-1"}, r"^s3_region needs s3_bucket$"),
        ({"redis_prefix": "other:"}, r"^redis_prefix needs redis_url$"),
        ({"settings": Settings(s3_region="eu-central-1")}, r"^s3_region needs s3_bucket$"),
        ({"settings": Settings(cors_credentials=True)}, r"^cors_credentials needs cors_origins"),
        (
            {"download_offload": "x-sendfile", "s3_bucket": "b"},
            r"^download_offload needs the bytes on a disk: with s3_bucket, s3_download=redirect sends clients to S3$",
        ),
        (
            {"download_offload": "x-sendfile", "download_offload_prefix": "/internal"},
            r"^download_offload_prefix needs download_offload=x-accel-redirect$",
        ),
        ({"download_offload_prefix": "/in ternal"}, r"^download_offload_prefix must be a path such as /tusd-py-files"),
    ],
)
def test_arguments_that_contradict_each_other_are_one_sentence(
    tmp_path: Path, build: Callable[..., object], arguments: dict[str, Any], sentence: str
) -> None:
    if "settings" not in arguments:
        arguments = {"upload_dir": tmp_path, **arguments}
    with pytest.raises(InvalidSettings, match=sentence) as raised:
        build(**arguments)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert isinstance(raised.value, ValueError)


def test_arguments_are_checked_together_with_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_PY_S3_REGION", "eu-central-1")
    with pytest.raises(InvalidSettings, match=r"^s3_region \(from TUSD_PY_S3_REGION\) needs s3_bucket$"):
        TusServer()


def test_variable_in_lower_case_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are named in capitals, whatever else is in the environment."""
    monkeypatch.setenv("tusd_py_port", "9")
    loaded = load()
    assert (loaded.settings.port, loaded.origins["port"]) == (8080, "default")


def test_the_file_may_hold_every_setting(config: Path) -> None:
    defaults = load().settings
    lines = []
    for name in FIELDS:
        value = value_of(defaults, name)
        if value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, tuple):
            value = list(value)
        elif not isinstance(value, int | float):
            value = f"'{value}'"
        lines.append(f"{name} = {value}")
    config.write_text("\n".join(lines))
    loaded = load(config=config)
    assert loaded.settings == defaults
    assert set(loaded.origins.values()) == {str(config), "default"}


def test_every_setting_is_documented() -> None:
    table = (ROOT / "docs" / "configuration.md").read_text()
    assert re.findall(r"^\| `--([a-z0-9-]+)`", table, re.MULTILINE) == [name.replace("_", "-") for name in FIELDS]
    assert all(field.description for field in FIELDS.values())


def test_settings_of_a_backend_are_its_configuration() -> None:
    settings = Settings(s3_bucket="uploads", s3_part_size="16MiB", redis_prefix="a:", lock_ttl="9s")
    assert settings.s3 == S3Config(bucket="uploads", part_size=16 << 20)
    assert settings.redis == RedisConfig(prefix="a:", lock_ttl=9)


def test_file_may_group_settings_of_a_backend_in_a_table(config: Path) -> None:
    config.write_text("[s3]\nbucket = 'uploads'\npart-size = '16MiB'\n[redis]\nurl = 'redis://a'\nlock_ttl = 9\n")
    loaded = load(config=config)
    assert loaded.settings.s3 == S3Config(bucket="uploads", part_size=16 << 20)
    assert loaded.settings.redis == RedisConfig(url="redis://a", lock_ttl=9)
    assert loaded.origins["s3_part_size"] == loaded.origins["lock_ttl"] == str(config)
    config.write_text("[s3]\nbuket = 'uploads'\n")
    with pytest.raises(InvalidSettings, match=r"there is no setting 's3_buket'; did you mean s3_bucket\?$"):
        load(config=config)


def test_field_of_a_backend_that_is_no_setting_is_not_accepted(config: Path) -> None:
    config.write_text("[s3]\nbucket = 'uploads'\nattempts = 2\n")
    with pytest.raises(InvalidSettings, match="there is no setting 's3_attempts'"):
        load(config=config)


def test_keys_that_get_too_long_together_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--s3-bucket", "uploads", "--s3-prefix", "p" * 1000]) == 2
    assert_one_line(capsys, "prefix and template of the keys in S3 are too long")
