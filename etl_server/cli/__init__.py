"""The `etl-server` command: one module a subcommand."""

from __future__ import annotations

import sys

import typer

from ..errors import (
    ClassLoadError,
    ClusterError,
    ConfigError,
    JobError,
    PayloadError,
    UpstreamUnreachableError,
    one_line,
)
from . import ais, dev, serve, ship, transform

FAILED = 1
USAGE_ERROR = 2

app = typer.Typer(
    name="etl-server",
    help="Write a transform of objects as one Python class; serve it next to the data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("serve")(serve.serve)
app.command("dev")(dev.dev)
app.command("ship")(ship.ship)
app.add_typer(ais.app)
app.command("transform")(transform.transform)


@app.callback()
def _main() -> None:
    """Write a transform of objects as one Python class; serve it next to the data."""


def main() -> None:
    """Run the command. Exits with 0 done, 1 some objects failed, 2 wrong usage."""
    try:
        app()
    except (ClassLoadError, ConfigError, JobError, PayloadError, ClusterError, UpstreamUnreachableError) as error:
        from ..config import tell

        tell(one_line(error))
        sys.exit(FAILED if isinstance(error, (ClusterError, UpstreamUnreachableError)) else USAGE_ERROR)
