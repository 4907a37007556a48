"""`etl-server ship`: a class as text, in what runs it elsewhere."""

from __future__ import annotations

import json
import re
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from .serve import ClassArgument

if TYPE_CHECKING:
    from ..config import Settings
    from ..payload import PackedClass


class Format(str, Enum):
    """What is printed."""

    ENV = "env"
    AISTORE = "aistore"
    K8S = "k8s"
    CONFIGMAP = "configmap"


class Comm(str, Enum):
    """How an AIStore target and the server talk."""

    HPUSH = "hpush"
    HPULL = "hpull"
    WS = "ws"


def ship(
    spec: ClassArgument,
    to: Annotated[
        Format,
        typer.Option(
            "--format",
            help="env: lines for a shell; aistore: a runtime spec; k8s: Deployment and Service; configmap: these, for "
            "payloads above 128 KiB.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of what is made.  [made of the class's name]")] = "",
    package: Annotated[list[str] | None, typer.Option(help="What pip is to install first; repeatable.")] = None,
    os_package: Annotated[
        list[str] | None, typer.Option(help="What apt-get or apk is to install first; repeatable.")
    ] = None,
    comm: Annotated[Comm, typer.Option(help="With aistore: how targets talk to it.")] = Comm.HPUSH,
    image: Annotated[str, typer.Option(help="The image to run in.  [ETL_IMAGE, etl-server of this version]")] = "",
    key: Annotated[str | None, typer.Option(help="Sign the payload with this key.  [ETL_PAYLOAD_KEY]")] = None,
) -> None:
    """Print a class as text, in what runs it elsewhere.

    The class travels with the local modules that it uses; what is installed has to be there, or named by --package.

    Example: etl-server ship examples/upper.py --format aistore > upper.json; ais etl init --spec upper.json
    """
    from ..config import Settings
    from ..errors import ConfigError
    from ..shipping import configmap, env_file, kubernetes
    from ..wire.etl_spec import build_etl_spec, class_environment
    from ..wire.names import check_etl_name

    if key == "":  # a variable of the shell that is not set must not turn signing off
        raise ConfigError("--key '': expected a key, or no such option")
    settings = Settings.load(payload_key=key, packages=package, os_packages=os_package)
    packed = pack(spec, settings)
    image = image or settings.image
    signed = bool(packed.meta.hmac)
    try:
        if name or to is not Format.ENV:
            name = name or _default_name(packed.meta.name)
            check_etl_name(name)
        environment = class_environment(
            packed.text, packed.meta.text(), packages=settings.packages, os_packages=settings.os_packages
        )
        if to is Format.ENV:
            output = env_file(environment)
        elif to is Format.AISTORE:
            made = build_etl_spec(name, image, environment, communication=comm.value, direct_put=True)
            output = json.dumps(made, indent=2) + "\n"
        else:
            make = kubernetes if to is Format.K8S else configmap
            output = json.dumps(make(name, image, environment, signed), indent=2) + "\n"
    except ValueError as error:
        raise ConfigError(str(error)) from None
    sys.stdout.write(output)
    _tell(packed, settings.packages)


def pack(spec: str, settings: Settings) -> PackedClass:
    """The class that `spec` names as text, signed if there is a key.

    Raises:
        ClassLoadError: the class cannot be loaded, or has no transform.
        PayloadError: something that it uses cannot be pickled.
    """
    from ..errors import ClassLoadError
    from ..loading import load_class
    from ..payload import pack_class

    try:
        return pack_class(load_class(spec), settings.payload_key.get_secret_value())
    except TypeError as error:
        raise ClassLoadError(f"{spec}: {error}") from None


def _default_name(cls: str) -> str:
    """`TarResize` as `tar-resize`; a short name gets an ending, a long one is cut."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls).lower()
    name = re.sub("[^a-z0-9]+", "-", words).lstrip("-0123456789").rstrip("-")
    named = (f"{name}{ending}".lstrip("-") for ending in ("", "-etl", "-transform"))
    return next(made for made in named if len(made) >= 6)[:32].rstrip("-")


def _tell(packed: PackedClass, packages: tuple[str, ...]) -> None:
    """Say on stderr what is in the output, and what it needs."""
    from ..packages import distribution, own_requirements

    meta = packed.meta
    lines = [
        f"{meta.name}: {len(packed.text):,} bytes, for Python {'.'.join(meta.python.split('.')[:2])}, "
        + ("signed: it needs the same ETL_PAYLOAD_KEY there" if meta.hmac else "not signed"),
        f"by value: {', '.join(packed.modules)}",
    ]
    there = {distribution(requirement) for requirement in (*own_requirements(), *packages)}
    missing = {package for package in meta.packages.values() if distribution(package) not in there}
    if missing:
        lines.append(f"needs to be in the image, or named by --package: {', '.join(sorted(missing))}")
    print("\n".join(lines), file=sys.stderr)
