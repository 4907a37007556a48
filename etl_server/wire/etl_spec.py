"""The message by which AIStore is asked to start an ETL: a class, the image it runs in, and how targets talk to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from .names import check_etl_name

Communication = Literal["hpush", "hpull", "ws"]
COMMUNICATIONS: tuple[Communication, ...] = get_args(Communication)

CLASS_PAYLOAD = "ETL_CLASS_PAYLOAD"
CLASS_META = "ETL_CLASS_META"
BOOTSTRAP_COMMAND = ("python", "-m", "etl_server.bootstrap")
INIT_TIMEOUT = "5m"
OBJECT_TIMEOUT = "45s"
ENVIRONMENT_LIMIT = 128 * 1024
"""Bytes that one environment variable may take up: its name, `=`, its value, and a zero. Linux starts nothing else."""

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|ms|s|m|h))+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PACKAGE = re.compile(r"""(?:\[[^\]]*\]|'[^']*'|"[^"]*"|,\s*(?=[<>=!~])|[^,])+""")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_duration(text: str) -> float:
    """Seconds of a duration as AIStore writes it: `45s`, `5m`, `1h30m`.

    Raises:
        ValueError: it is none, or zero. The text is one line with the value and what was expected.
    """
    seconds = 0.0
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9.]+)([a-z]+)", text))
    if not seconds:
        raise ValueError(f"{text!r}: expected a duration such as 45s, 5m or 1h30m")
    return seconds


def parse_communication(text: str) -> Communication:
    """A way of communication by its name.

    Raises:
        ValueError: there is no such way. The text is one line with the value and what was expected.
    """
    for known in COMMUNICATIONS:
        if text == known:
            return known
    raise ValueError(f"{text!r}: expected one of {', '.join(COMMUNICATIONS)}")


def class_environment(
    payload: str,
    meta: str = "",
    *,
    packages: Sequence[str] = (),
    os_packages: Sequence[str] = (),
    workers: int | None = None,
    direct_fqn: bool = False,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of a container that serves a class which was shipped as text.

    Args:
        payload: the class, as `serialize_class` gives it.
        meta: what the payload was made with, as JSON; empty: that is not told.
        packages: what pip installs first, one requirement each.
        os_packages: what apt or apk installs first.
        workers: worker processes; None: as many as the container has CPUs.
        direct_fqn: give the transform the path of the object's local file.
        extra: variables of the user's own.

    Raises:
        ValueError: a package or a variable cannot be passed on. The text is one line with the value and what was
            expected.
    """
    environment = {CLASS_PAYLOAD: payload, CLASS_META: meta}
    environment |= {"PACKAGES": _joined("package", packages), "OS_PACKAGES": _joined("OS package", os_packages)}
    environment["NUM_WORKERS"] = "" if workers is None else str(workers)
    environment["ETL_DIRECT_FQN"] = "true" if direct_fqn else ""
    environment = {name: value for name, value in environment.items() if value}
    for name, value in (extra or {}).items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ValueError(f"environment variable {name!r}: expected NAME=VALUE, NAME of letters, digits and '_'")
        if name in environment:
            raise ValueError(f"environment variable {name}: it is set already, by the class or by another option")
        environment[name] = value
    return environment


def build_etl_spec(
    name: str,
    image: str,
    environment: Mapping[str, str],
    *,
    command: Sequence[str] = BOOTSTRAP_COMMAND,
    communication: Communication = "hpush",
    direct_put: bool = False,
    init_timeout: str = INIT_TIMEOUT,
    object_timeout: str = OBJECT_TIMEOUT,
) -> dict[str, Any]:
    """The message that starts an ETL, ready to be written as JSON or YAML.

    Args:
        name: what the ETL is called.
        image: the container image.
        environment: the container's variables, such as `class_environment` gives.
        command: what the container runs.
        communication: how targets pass objects: in a request's body, for the server to ask for, or on a WebSocket.
        direct_put: let the server deliver to the destination itself.
        init_timeout: how long the cluster waits for the server to be ready, as in `parse_duration`.
        object_timeout: how long a target waits for one object.

    Raises:
        ValueError: AIStore would refuse the message, or Linux the environment. The text is one line with the value and
            what was expected.
    """
    check_etl_name(name)
    if not image or any(character.isspace() for character in image):
        raise ValueError(f"image {image!r}: expected a container image")
    if communication == "ws" and not direct_put:
        raise ValueError("communication 'ws': AIStore knows it with direct put only")
    for what, duration in (("init timeout", init_timeout), ("object timeout", object_timeout)):
        try:
            parse_duration(duration)
        except ValueError as error:
            raise ValueError(f"{what} {error}") from None
    check_environment(environment)
    return {
        "name": name,
        "communication": f"{communication}://",
        "init_timeout": init_timeout,
        "obj_timeout": object_timeout,
        "support_direct_put": direct_put,
        "runtime": {
            "image": image,
            "command": list(command),
            "env": [{"name": variable, "value": value} for variable, value in environment.items()],
        },
    }


def check_environment(environment: Mapping[str, str]) -> None:
    """Check that a process can be started with these variables.

    Raises:
        ValueError: one is too large. The text is one line with its name and size, and what to do.
    """
    for variable, value in environment.items():
        size = len(f"{variable}={value}".encode("utf-8", "surrogateescape")) + 1
        if size > ENVIRONMENT_LIMIT:
            raise ValueError(
                f"environment variable {variable} takes {size:,} bytes, expected at most {ENVIRONMENT_LIMIT:,}, which "
                "is what Linux lets one take: etl-server ship --format configmap passes a larger class as a file, and "
                "python -m etl_server.bootstrap FILE serves one that is in the image"
            )


def split_packages(text: str) -> list[str]:
    """The names or requirements of `PACKAGES`, which commas separate.

    A comma within brackets or quotes separates nothing, nor does one after which a further version follows.
    """
    return [part.strip() for part in _PACKAGE.findall(text) if part.strip()]


def _joined(what: str, packages: Sequence[str]) -> str:
    for package in packages:
        if package.startswith("-") or split_packages(package) != [package]:
            raise ValueError(f"{what} {package!r}: expected one name or requirement")
    return ",".join(packages)
