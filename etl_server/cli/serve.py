"""`etl-server serve`: serve a class."""

from __future__ import annotations

import functools
import os
import signal
from typing import Annotated

import typer

ClassArgument = Annotated[
    str, typer.Argument(metavar="FILE_OR_MODULE[:Class]", help="Where the class is; :Class if there are several.")
]


def serve(
    spec: ClassArgument,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [ETL_HOST, 0.0.0.0]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any.  [ETL_PORT, 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.  [ETL_WORKERS, the CPUs there are]")] = None,
    direct_fqn: Annotated[
        bool | None,
        typer.Option("--direct-fqn/--no-direct-fqn", help="Give transform() file paths.  [ETL_DIRECT_FQN, no]"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Object store that GET reads from: s3://…, ais://…, file:///….  [ETL_SOURCE]"),
    ] = None,
    sink: Annotated[
        str | None, typer.Option(metavar="URI", help="Object store that the results of PUT go to.  [ETL_SINK]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error or critical.  [ETL_LOG_LEVEL, info]")
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option("--access-log/--no-access-log", help="Log each object that is done, too.  [ETL_ACCESS_LOG, no]"),
    ] = None,
) -> None:
    """Serve a class until SIGTERM or Ctrl-C.

    Settings that have no option come from the environment, as README's table lists them.

    Example: etl-server serve examples/upper.py --port 8080
    """
    # The first process of a container has no default action for a signal, so all of the start needs a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    options = {
        "ETL_HOST": host,
        "ETL_PORT": port,
        "ETL_WORKERS": workers,
        "ETL_DIRECT_FQN": direct_fqn,
        "ETL_SOURCE": source,
        "ETL_SINK": sink,
        "ETL_LOG_LEVEL": log_level,
        "ETL_ACCESS_LOG": access_log,
    }
    # Worker processes and the user's own __init__ read the environment, so that is where options go.
    os.environ.update({name: str(value) for name, value in options.items() if value is not None})

    from ..config import Settings
    from ..loading import load_class, make_server
    from ..runtime.serve import run

    settings = Settings.load()
    cls = load_class(spec)
    if settings.workers == 1:
        raise typer.Exit(run(cls, settings))
    raise typer.Exit(run(functools.partial(make_server, spec), settings))
