"""Settings: each variable, what it may be, and what is said when it may not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from etl_server import Settings
from etl_server.config import _cgroup_cpu_quota, available_cpus
from etl_server.errors import ConfigError

TARGET = "http://target:51081/v1/etl/_object/name/s3cr3t"


def plain(value: object) -> object:
    reveal = getattr(value, "get_secret_value", None)
    return reveal() if reveal is not None else value


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("AIS_TARGET_URL", TARGET, "host_target", TARGET),
        ("AIS_TARGET_URL", TARGET + "/", "host_target", TARGET),
        (
            "AIS_TARGET_URL",
            "https://[::1]:51081/v1/etl/_object/name/s",
            "host_target",
            "https://[::1]:51081/v1/etl/_object/name/s",
        ),
        ("DIRECT_PUT", "true", "direct_put", True),
        ("DIRECT_PUT", "false", "direct_put", False),
        ("ETL_DIRECT_FQN", "true", "direct_fqn", True),
        ("ETL_DIRECT_FQN", "True", "direct_fqn", True),
        ("AIS_DIRECT_PUT_RETRIES", "0", "direct_put_retries", 0),
        ("AIS_DIRECT_PUT_CHUNK_SIZE", "65536", "direct_put_chunk_size", 65536),
        ("AIS_AUTHN_TOKEN", "t0ken", "authn_token", "t0ken"),
        ("AIS_SKIP_VERIFY_CRT", "true", "skip_verify", True),
        ("AIS_SKIP_VERIFY", "true", "skip_verify", True),
        ("AIS_CLIENT_CA", __file__, "client_ca", Path(__file__)),
        ("AIS_CRT", __file__, "client_crt", Path(__file__)),
        ("AIS_CRT_KEY", __file__, "client_key", Path(__file__)),
        ("MAX_CONN", "7", "max_connections", 7),
        ("MAX_KEEPALIVE_CONN", "0", "max_keepalive_connections", 0),
        ("KEEPALIVE_EXPIRY", "1.5", "keepalive_expiry", 1.5),
        ("NUM_WORKERS", "3", "workers", 3),
        ("ETL_WORKERS", "3", "workers", 3),
        ("ETL_HOST", "::1", "host", "::1"),
        ("ETL_PORT", "0", "port", 0),
        ("ETL_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("ETL_SOURCE", "s3://photos", "source", "s3://photos"),
        ("ETL_SINK", "file:///results", "sink", "file:///results"),
        ("ETL_MAX_BODY", "1024", "max_body", 1024),
        ("ETL_FQN_ROOTS", "/mnt/a:/mnt/b", "fqn_roots", (Path("/mnt/a"), Path("/mnt/b"))),
        ("ETL_FQN_ROOTS", "/mnt/a:", "fqn_roots", (Path("/mnt/a"),)),
        ("ETL_CHECKSUM", "xxhash2", "checksum", "xxhash2"),
        ("ETL_CHECKSUM", "none", "checksum", None),
        ("ETL_WS_ERROR", "text", "ws_error", "text"),
        ("AIS_ENDPOINT", "http://proxy:51080/", "ais_endpoint", "http://proxy:51080"),
        ("AIS_ENDPOINT", "https://[::1]", "ais_endpoint", "https://[::1]"),
        ("RAY_ADDRESS", "head:6379", "ray_address", "head:6379"),
        ("ETL_IMAGE", "registry/etl:2", "image", "registry/etl:2"),
        ("ETL_IO_TIMEOUT", "12", "io_timeout", 12.0),
        ("ETL_OBJECT_TIMEOUT", "0.5", "object_timeout", 0.5),
        ("ETL_DRAIN_TIMEOUT", "0", "drain_timeout", 0.0),
        ("ETL_IMAGE", "registry/image:1", "image", "registry/image:1"),
        ("ETL_CLASS_PAYLOAD", "gASV", "class_payload", "gASV"),
        ("ETL_CLASS_PAYLOAD_FILE", __file__, "class_payload_file", Path(__file__)),
        ("ETL_CLASS_META", "{}", "class_meta", "{}"),
        ("ETL_CLASS_META_FILE", __file__, "class_meta_file", Path(__file__)),
        ("ETL_PAYLOAD_KEY", "k3y", "payload_key", "k3y"),
        ("PACKAGES", "numpy[a,b]>=1.26, <3,pillow ,", "packages", ("numpy[a,b]>=1.26, <3", "pillow")),
        ("OS_PACKAGES", "ffmpeg,sox", "os_packages", ("ffmpeg", "sox")),
    ],
)
def test_each_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: object
) -> None:
    assert plain(getattr(load(monkeypatch, **{variable: text}), field)) == value


def test_without_any_variable_the_defaults_are_those_of_the_protocol() -> None:
    settings = Settings.load()
    expected: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": 8000,
        "workers": available_cpus(),
        "log_level": "info",
        "host_target": "",
        "direct_put": False,
        "direct_fqn": False,
        "direct_put_retries": 3,
        "direct_put_chunk_size": 1024 * 1024,
        "authn_token": "",
        "skip_verify": False,
        "client_ca": None,
        "max_connections": 256,
        "max_keepalive_connections": 128,
        "keepalive_expiry": 30.0,
        "checksum": None,
        "ws_error": "close",
        "max_body": None,
        "fqn_roots": (),
        "object_timeout": None,
    }
    assert {name: plain(getattr(settings, name)) for name in expected} == expected


@pytest.mark.parametrize(
    "url", ["proxy:51080", "ftp://proxy", "http://", "http://p:0", "http://u:p@proxy", "http://proxy/v1", "http://p?a"]
)
def test_a_proxy_is_named_by_its_url_alone(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^AIS_ENDPOINT=.*: expected the URL of the cluster's proxy, such as"):
        load(monkeypatch, AIS_ENDPOINT=url)


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("AIS_ENDPOINT", "http://me:hunter2@proxy", "http://***@proxy"),
        ("PACKAGES", "--index-url=https://me:hunter2@index", "--index-url=https://***@index"),
        ("ETL_PORT", "http://host?token=hunter2", "http://host?token=***"),
    ],
)
def test_what_is_shown_of_a_bad_value_has_no_credentials(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shown: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(monkeypatch, **{variable: value})
    assert raised.value.detail.startswith(f"{variable}={shown}: expected ")


def test_every_setting_has_a_variable_of_its_own() -> None:
    """So that no field answers to an environment variable that happens to have its name."""
    for name, field in Settings.model_fields.items():
        assert field.alias or field.validation_alias, name


def test_no_variable_counts_by_the_name_of_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, host="1.2.3.4", HOST="1.2.3.4", port="1", workers="99", checksum="md5")
    assert (settings.host, settings.port, settings.checksum) == ("0.0.0.0", 8000, None)
    assert settings.workers == available_cpus()


@pytest.mark.parametrize("variable", ["ETL_PORT", "NUM_WORKERS", "AIS_TARGET_URL", "ETL_MAX_BODY", "ETL_CHECKSUM"])
def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert load(monkeypatch, **{variable: ""}) == Settings.load()


def test_of_two_names_the_newer_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, ETL_WORKERS="2", NUM_WORKERS="5", AIS_SKIP_VERIFY_CRT="false", AIS_SKIP_VERIFY="true")
    assert (settings.workers, settings.skip_verify) == (2, False)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETL_PORT", "1")
    monkeypatch.setenv("ETL_HOST", "1.2.3.4")
    settings = Settings.load(port=2, host=None)
    assert (settings.port, settings.host) == (2, "1.2.3.4")


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("ETL_PORT", "eighty", "a whole number"),
        ("ETL_PORT", "-1", "greater than or equal to 0"),
        ("ETL_PORT", "65536", "less than or equal to 65535"),
        ("ETL_PORT", "80.5", "a whole number"),
        ("ETL_WORKERS", "0", "greater than or equal to 1"),
        ("NUM_WORKERS", "many", "a whole number"),
        ("ETL_LOG_LEVEL", "loud", "'debug', 'info', 'warning', 'error' or 'critical'"),
        ("ETL_LOG_LEVEL", "none", "'debug', 'info', 'warning', 'error' or 'critical'"),
        ("DIRECT_PUT", "perhaps", "true or false"),
        ("ETL_DIRECT_FQN", "2", "true or false"),
        ("AIS_DIRECT_PUT_RETRIES", "-1", "greater than or equal to 0"),
        ("AIS_DIRECT_PUT_CHUNK_SIZE", "0", "greater than or equal to 1"),
        ("AIS_DIRECT_PUT_CHUNK_SIZE", "1MiB", "a whole number"),
        ("AIS_SKIP_VERIFY", "maybe", "true or false"),
        ("AIS_SKIP_VERIFY_CRT", "maybe", "true or false"),
        ("AIS_CLIENT_CA", "/no/such/file", "a PEM file"),
        ("AIS_CRT", "/no/such/file", "a PEM file"),
        ("AIS_CRT", "/", "a PEM file"),
        ("AIS_CRT_KEY", "/no/such/file", "a PEM file"),
        ("MAX_CONN", "0", "greater than or equal to 1"),
        ("MAX_KEEPALIVE_CONN", "-1", "greater than or equal to 0"),
        ("KEEPALIVE_EXPIRY", "soon", "a number"),
        ("KEEPALIVE_EXPIRY", "inf", "number"),
        ("ETL_IO_TIMEOUT", "0", "greater than 0"),
        ("ETL_IO_TIMEOUT", "nan", ""),
        ("ETL_IO_TIMEOUT", "inf", "number"),
        ("ETL_OBJECT_TIMEOUT", "inf", "number"),
        ("ETL_DRAIN_TIMEOUT", "inf", "number"),
        ("ETL_MAX_BODY", "-1", "greater than or equal to 0"),
        ("ETL_FQN_ROOTS", "relative/dir", "absolute directories"),
        ("ETL_FQN_ROOTS", "/good:bad", "absolute directories"),
        ("ETL_CHECKSUM", "crc32", "'xxhash2', 'md5', 'crc32c', 'sha256' or 'sha512'"),
        ("ETL_WS_ERROR", "binary", "'close' or 'text'"),
        ("ETL_CLASS_PAYLOAD_FILE", "/no/such/file", "a file that can be read"),
        ("ETL_CLASS_META_FILE", "/", "a file that can be read"),
        ("PACKAGES", "-r file", "names of packages"),
        ("OS_PACKAGES", "a,--force", "names of packages"),
        ("ETL_PAYLOAD_KEY", "", "a key"),
    ],
)
def test_a_bad_value_is_told_in_one_line_with_its_variable_and_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(monkeypatch, **{variable: text})
    message = str(raised.value)
    assert "\n" not in message
    assert message.lower().startswith(f"{variable}={text}: expected ".lower())
    assert expected in message


@pytest.mark.parametrize(
    "url", ["s3cr3t", "ftp://target/s3cr3t", "http:///s3cr3t", "http://target:99999/s3cr3t", "http://[bad/s3cr3t"]
)
def test_a_bad_target_is_told_without_its_secret(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^AIS_TARGET_URL=\*\*\*: expected http\(s\)://") as raised:
        load(monkeypatch, AIS_TARGET_URL=url)
    error: BaseException | None = raised.value
    while error is not None:
        assert "s3cr3t" not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("delay", ["5", "7"])
def test_a_drain_that_would_be_over_before_it_begins_is_refused(monkeypatch: pytest.MonkeyPatch, delay: str) -> None:
    with pytest.raises(ConfigError, match=rf"^ETL_DRAIN_DELAY={delay}: expected less than ETL_DRAIN_TIMEOUT=5,"):
        load(monkeypatch, ETL_DRAIN_TIMEOUT="5", ETL_DRAIN_DELAY=delay)


def test_a_bad_argument_is_told_by_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"^ETL_PORT=x: expected a whole number"):
        Settings.load(port="x")


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, AIS_TARGET_URL=TARGET, AIS_AUTHN_TOKEN="t0ken", ETL_PAYLOAD_KEY="k3y")
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    for secret in ("s3cr3t", "t0ken", "k3y"):
        assert secret not in shown
    assert set(settings.secrets()) == {"s3cr3t", "t0ken", "k3y"}
    assert settings.redact(f"GET {TARGET}/uname with t0ken") == f"GET {TARGET.replace('s3cr3t', '***')}/uname with ***"


def test_without_secrets_nothing_is_redacted() -> None:
    assert Settings.load().redact("as it is") == "as it is"


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().port = 1


# The CPUs that there are


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "20000 100000\n"}, 0.2),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "\n"}, None),
    ],
)
def test_a_cgroup_may_limit_the_cpus(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert _cgroup_cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "cpus"), [(None, 3), (8.0, 3), (2.0, 2), (1.5, 1), (0.2, 1)])
def test_cpus_are_those_of_the_affinity_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    monkeypatch.setattr("etl_server.config._cgroup_cpu_quota", lambda _: quota)
    assert available_cpus() == cpus
