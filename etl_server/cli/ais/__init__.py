"""`etl-server ais`: ETLs of an AIStore cluster."""

from __future__ import annotations

import typer

from . import etls, init, objects, transform

app = typer.Typer(
    name="ais",
    help="Start ETLs on an AIStore cluster, look at them, and run buckets and objects through them.",
    no_args_is_help=True,
)
app.command("init")(init.init)
app.command("list")(etls.list_)
app.command("show")(etls.show)
app.command("logs")(etls.logs)
app.command("errors")(etls.errors)
app.command("stop")(etls.stop)
app.command("start")(etls.start)
app.command("rm")(etls.rm)
app.command("transform")(transform.transform)
app.command("job")(transform.job)
app.command("get")(objects.get)
