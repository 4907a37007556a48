"""The message that starts an ETL."""

from __future__ import annotations

from typing import Any

import pytest

from etl_server.wire.etl_spec import (
    ENVIRONMENT_LIMIT,
    build_etl_spec,
    class_environment,
    parse_communication,
    parse_duration,
    split_packages,
)


def test_it_is_what_the_protocol_says() -> None:
    environment = class_environment("cGF5bG9hZA==", '{"python": "3.11"}')
    assert build_etl_spec("thumbnails", "etl-server:1", environment) == {
        "name": "thumbnails",
        "communication": "hpush://",
        "init_timeout": "5m",
        "obj_timeout": "45s",
        "support_direct_put": False,
        "runtime": {
            "image": "etl-server:1",
            "command": ["python", "-m", "etl_server.bootstrap"],
            "env": [
                {"name": "ETL_CLASS_PAYLOAD", "value": "cGF5bG9hZA=="},
                {"name": "ETL_CLASS_META", "value": '{"python": "3.11"}'},
            ],
        },
    }


def test_what_is_asked_for_becomes_the_environment() -> None:
    environment = class_environment(
        "x",
        packages=["numpy>=1.26,<3", "pillow"],
        os_packages=["ffmpeg"],
        workers=3,
        direct_fqn=True,
        extra={"MODEL": "a=b c", "EMPTY": ""},
    )
    assert environment == {
        "ETL_CLASS_PAYLOAD": "x",
        "PACKAGES": "numpy>=1.26,<3,pillow",
        "OS_PACKAGES": "ffmpeg",
        "NUM_WORKERS": "3",
        "ETL_DIRECT_FQN": "true",
        "MODEL": "a=b c",
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    "packages",
    [
        ["numpy"],
        ["numpy>=1, <2", "pillow"],
        ["a[b,c]", "d"],
        ["a; python_version in '3.10,3.11'", "d"],
        ["a==1", "b==2"],
    ],
)
def test_packages_are_told_apart_again(packages: list[str]) -> None:
    assert split_packages(class_environment("x", packages=packages)["PACKAGES"]) == packages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packages": ["numpy,scipy"]}, "package 'numpy,scipy': expected one name or requirement$"),
        ({"packages": ["--index-url=x"]}, "package '--index-url=x': expected one name or requirement$"),
        ({"packages": [""]}, "package '': expected one"),
        ({"os_packages": [" "]}, "OS package ' ': expected"),
        ({"extra": {"A-B": "1"}}, "environment variable 'A-B': expected NAME=VALUE"),
        ({"extra": {"": "1"}}, "environment variable '': expected NAME=VALUE"),
        ({"extra": {"A": "\0"}}, "environment variable 'A': expected NAME=VALUE"),
        ({"extra": {"ETL_CLASS_PAYLOAD": "1"}}, "environment variable ETL_CLASS_PAYLOAD: it is set already"),
        ({"extra": {"NUM_WORKERS": "1"}, "workers": 2}, "environment variable NUM_WORKERS: it is set already"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        class_environment("x", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "short"}, "ETL name 'short': expected 6 to 32"),
        ({"image": ""}, "image '': expected a container image"),
        ({"image": "a b"}, "image 'a b': expected a container image"),
        ({"communication": "ws"}, "communication 'ws': AIStore knows it with direct put only"),
        ({"init_timeout": "5"}, "init timeout '5': expected a duration"),
        ({"object_timeout": "soon"}, "object timeout 'soon': expected a duration"),
    ],
)
def test_what_aistore_would_refuse_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build_etl_spec(**{"name": "thumbnails", "image": "i", "environment": {}, **arguments})


def test_a_websocket_is_taken_with_direct_put() -> None:
    spec = build_etl_spec("thumbnails", "i", {}, communication="ws", direct_put=True)
    assert (spec["communication"], spec["support_direct_put"]) == ("ws://", True)


def test_a_variable_may_be_as_large_as_linux_takes_and_no_larger() -> None:
    fits = "x" * (ENVIRONMENT_LIMIT - len("ETL_CLASS_PAYLOAD=") - 1)
    build_etl_spec("thumbnails", "i", class_environment(fits))
    with pytest.raises(ValueError, match=r"^environment variable ETL_CLASS_PAYLOAD takes 131,073 bytes, expected"):
        build_etl_spec("thumbnails", "i", class_environment(fits + "x"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "m", "5d", "0s", "1.s", "5m\n", "\u0665m"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 45s"):
        parse_duration(text)


def test_communications() -> None:
    assert [parse_communication(name) for name in ("hpush", "hpull", "ws")] == ["hpush", "hpull", "ws"]
    with pytest.raises(ValueError, match="'hpush://': expected one of hpush, hpull, ws"):
        parse_communication("hpush://")
