"""`etl-server ais list`, `show`, `logs`, `errors`, `stop`, `start`, `rm`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ClusterError
from .common import JsonOption, NameArgument, UrlOption, check_name, checked, connect, show_json, show_rows, tell

if TYPE_CHECKING:
    from ...control import ETLInfo


def list_(url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the cluster's ETLs.

    Example: etl-server ais list --url http://proxy:51080
    """
    with connect(url) as client:
        etls = client.etls()
    if as_json:
        for etl in etls:
            show_json(etl)
        return
    rows = [(etl.name, etl.stage, etl.job, etl.objects, etl.bytes_in, etl.bytes_out) for etl in etls]
    show_rows(("name", "stage", "job", "objects read", "bytes in", "bytes out"), rows)


def show(name: NameArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show how an ETL was started, and how its pods are.

    Of the container's environment only the names are shown: values may be secrets.

    Example: etl-server ais show my-thumbnails
    """
    check_name(name)
    with connect(url) as client:
        etl = client.info(name)
        shown: dict[str, Any] = asdict(etl)
        # The cluster knows these of running ETLs only.
        for part, ask in (("details", client.details), ("health", client.health), ("metrics", client.metrics)):
            try:
                answer: Any = ask(name)
            except ClusterError as error:
                shown[part] = None
                shown.setdefault("problems", []).append(f"{part}: {error.detail}")
            else:
                shown[part] = [asdict(each) for each in answer] if isinstance(answer, list) else asdict(answer)
    if as_json:
        show_json(shown)
        return
    show_rows(("", etl.name), _described(shown))


def logs(
    name: NameArgument,
    url: UrlOption = None,
    target: Annotated[str, typer.Option(help="One target's pod only.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print what an ETL's pods have written.

    Example: etl-server ais logs my-thumbnails
    """
    check_name(name)
    with connect(url) as client:
        pods = client.logs(name, target)
    for pod in pods:
        if as_json:
            show_json(pod)
            continue
        if len(pods) > 1:
            print(f"==> {pod.target} <==")
        print(pod.text, end="" if pod.text.endswith("\n") else "\n")


def errors(
    name: NameArgument,
    url: UrlOption = None,
    job: Annotated[str, typer.Option(help="A job that transformed a bucket. Default: objects as they are read.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the objects that an ETL failed for.

    Example: etl-server ais errors my-thumbnails --job tNhE7mI9k
    """
    check_name(name)
    with connect(url) as client:
        failed = client.details(name, job).errors
    if as_json:
        for error in failed:
            show_json(error)
        return
    show_rows(("object", "status", "message"), [(error.object, error.status, error.message) for error in failed])


def stop(name: NameArgument, url: UrlOption = None) -> None:
    """Stop an ETL, and what it is transforming. It stays listed and can be started again.

    Example: etl-server ais stop my-thumbnails
    """
    check_name(name)
    with connect(url) as client:
        client.stop(name)
    tell(f"{name}: stopped")


def start(
    name: NameArgument,
    url: UrlOption = None,
    init_timeout: Annotated[
        str, typer.Option(help="How long the cluster waits for it to be ready, as `ais init` was told.")
    ] = "5m",
    as_json: JsonOption = False,
) -> None:
    """Start an ETL that was stopped, and wait until it runs.

    Example: etl-server ais start my-thumbnails --init-timeout 20m
    """
    from ...wire.etl_spec import parse_duration

    check_name(name)
    checked("--init-timeout", init_timeout, parse_duration)
    with connect(url) as client:
        etl = client.start(name, lambda stage: tell(f"{name}: {stage}"), init_timeout)
    started(etl, as_json)


def rm(name: NameArgument, url: UrlOption = None) -> None:
    """Stop an ETL and remove it.

    Example: etl-server ais rm my-thumbnails
    """
    check_name(name)
    with connect(url) as client:
        client.remove(name)
    tell(f"{name}: removed")


def started(etl: ETLInfo, as_json: bool) -> None:
    """Say that an ETL runs."""
    if as_json:
        show_json(etl)
    else:
        print(f"{etl.name} is running, as job {etl.job}")


def _described(shown: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("stage", shown["stage"]), ("job", shown["job"])]
    details = shown["details"]
    if details is not None:
        rows += [(title, details[title]) for title in ("communication", "image")]
        rows += [("command", " ".join(details["command"])), ("variables", " ".join(details["variables"]))]
        rows += [("init timeout", details["init_timeout"]), ("object timeout", details["object_timeout"])]
        rows += [("direct put", "yes" if details["direct_put"] else "no"), ("failed objects", len(details["errors"]))]
    rows += [("objects read", shown["objects"]), ("bytes in", shown["bytes_in"]), ("bytes out", shown["bytes_out"])]
    rows += [(f"pod on {pod['target']}", pod["status"]) for pod in shown["health"] or ()]
    rows += [
        (f"used on {pod['target']}", f"{pod['cpu']:.2f} cores, {pod['memory'] / 2**20:,.1f} MiB")
        for pod in shown["metrics"] or ()
    ]
    return [*rows, *(("not known", problem) for problem in shown.get("problems", ()))]
