"""`etl-server ais init`: start an ETL of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import ClusterError, ETLNotRunningError
from ..serve import ClassArgument
from ..ship import pack
from .common import FAILED, JsonOption, NameArgument, UrlOption, check_name, checked, connect, tell, usage_errors
from .etls import started

if TYPE_CHECKING:
    from ...control import AIStoreClient

_LOG_LINES = 20
"""Of each pod, when an ETL does not get to run."""


def init(
    name: NameArgument,
    spec: ClassArgument,
    url: UrlOption = None,
    comm: Annotated[
        str, typer.Option(help="How targets pass objects: hpush, hpull or ws; the last with --direct-put only.")
    ] = "hpush",
    image: Annotated[str | None, typer.Option(help="The container image that serves it.  [ETL_IMAGE]")] = None,
    package: Annotated[
        list[str] | None, typer.Option(help="What pip installs there first; may be given several times.")
    ] = None,
    os_package: Annotated[
        list[str] | None, typer.Option(help="What apt or apk installs there first; may be given several times.")
    ] = None,
    direct_put: Annotated[
        bool, typer.Option("--direct-put", help="Let the ETL deliver to the destination itself.")
    ] = False,
    direct_fqn: Annotated[
        bool, typer.Option("--direct-fqn", help="Give transform() the paths of objects' files.")
    ] = False,
    init_timeout: Annotated[str, typer.Option(help="How long the cluster waits for it to be ready.")] = "5m",
    object_timeout: Annotated[str, typer.Option(help="How long a target waits for one object.")] = "45s",
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable for it; may be given several times.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes a pod. Default: the CPUs that it may use.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start an ETL of a class on every target of a cluster, and wait until it runs.

    The class travels as text, together with the local modules that it uses.

    Example: etl-server ais init my-thumbnails examples/thumbnail.py --url http://proxy:51080 --package pillow
    """
    from ...config import Settings
    from ...wire.etl_spec import build_etl_spec, class_environment, parse_communication, parse_duration

    check_name(name)
    communication = checked("--comm", comm, parse_communication)
    checked("--init-timeout", init_timeout, parse_duration)
    checked("--object-timeout", object_timeout, parse_duration)
    extra = dict(checked("--env", text, _variable) for text in env or ())
    settings = Settings.load()
    with connect(url) as client:
        packed = pack(spec, settings)
        with usage_errors():
            environment = class_environment(
                packed.text,
                packed.meta.text(),
                packages=package or (),
                os_packages=os_package or (),
                workers=workers,
                direct_fqn=direct_fqn,
                extra=extra,
            )
            message = build_etl_spec(
                name,
                image or settings.image,
                environment,
                communication=communication,
                direct_put=direct_put,
                init_timeout=init_timeout,
                object_timeout=object_timeout,
            )
        try:
            etl = client.init(message, lambda stage: tell(f"{name}: {stage}"))
        except ETLNotRunningError:
            _explain(client, name)
            raise
        except KeyboardInterrupt:
            tell(
                f"\n{name}: the cluster goes on starting it. "
                f"See it: etl-server ais show {name}; remove it: etl-server ais rm {name}"
            )
            raise typer.Exit(FAILED) from None
    started(etl, as_json)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _explain(client: AIStoreClient, name: str) -> None:
    """What the pods of an ETL that does not run say, as far as there are any."""
    try:
        for pod in client.health(name):
            tell(f"pod on {pod.target}: {pod.status}")
        for log in client.logs(name):
            for line in log.text.splitlines()[-_LOG_LINES:]:
                tell(f"{log.target}: {line}")
    except ClusterError as error:
        tell(f"its pods say nothing more: {error.detail}")
    tell(f"It stays listed. Before it is started anew, remove it: etl-server ais rm {name}")
