"""The `etl-server` command: one module a subcommand."""

from __future__ import annotations

import sys

import typer

from ..errors import (
    ClassLoadError,
    ClusterError,
    ConfigError,
    ETLError,
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
    except (ClassLoadError, ConfigError, JobError, PayloadError) as error:
        _tell(error)
        sys.exit(USAGE_ERROR)
    except (ClusterError, UpstreamUnreachableError) as error:
        _tell(error)
        sys.exit(FAILED)


def _tell(error: ETLError) -> None:
    from ..config import redact

    print(f"etl-server: {redact(one_line(error))}", file=sys.stderr)
