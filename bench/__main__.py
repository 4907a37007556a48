"""`python -m bench`"""

from __future__ import annotations

import signal
import tempfile
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from . import report as reporting
from .cases import GO, OURS, Case, Measure, select
from .environment import (
    Environment,
    EnvironmentProblemError,
    default_cache,
    machine,
    prepare,
    versions,
    without_servers,
)
from .measures import Stage
from .results import Report
from .runner import run_case, shortened
from .servers import LABELS, cores_of

ROUNDS, SECONDS = 5, 3.0
QUICK_ROUNDS, QUICK_SECONDS = 2, 1.0
INTERRUPTED = 130

HELP = """
Measure etl_server beside the servers that users would pick instead.

Each server is pinned to one core and loaded from another; ours and each peer take turns, and the table shows the
ratio ours/peer as the median of the rounds, with its range. Where an answer was not right there is no ratio.

Exit status: 0 done, 1 an answer of ours was not right, 2 wrong usage, 130 interrupted.

Example: python -m bench --only push --only websocket --json results.json
"""


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Cases whose name or title contains this; may be repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds of one second: to see that it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help=f"Rounds of each case. Default {ROUNDS}.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help=f"Seconds of each run. Default {SECONDS:g}.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every run, the machine and the ratios to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table to this file, between its result marks where it has them.")
    ] = None,
    read: Annotated[
        Path | None, typer.Option("--from", help="Show the results in this JSON file; measure nothing.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the cases, and end.")] = False,
    server_core: Annotated[int | None, typer.Option(help="Core of the servers. Default: the last one.")] = None,
    load_core: Annotated[int | None, typer.Option(help="Core of the load. Default: the first one.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where peers and programs are kept.")] = None,
) -> None:
    console = Console()
    cases = select(only or [])
    if not cases:
        raise typer.BadParameter("no case is called that; --list names them", param_hint="--only")
    if list_:
        for case in cases:
            console.print(f"{case.name:20} {case.title}", highlight=False)
        return
    if read:
        report = Report.model_validate_json(read.read_text())
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
        seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
        report = _measure(cases, quick, rounds, seconds, server_core, load_core, cache or default_cache(), json)
    reporting.show(report, console)
    if markdown:
        reporting.write_markdown(report, markdown)
    if len(report.cases) < len(cases) and not read:
        raise typer.Exit(INTERRUPTED)
    if any(run.errors for case in report.cases for run in case.of(OURS)):
        raise typer.Exit(1)


def _measure(
    cases: list[Case],
    quick: bool,
    rounds: int,
    seconds: float,
    server_core: int | None,
    load_core: int | None,
    cache: Path,
    json: Path | None,
) -> Report:
    progress = Console(stderr=True)
    try:
        alone = all(case.measure is Measure.JOB for case in cases)
        environment = without_servers(cache) if alone else prepare(cache, progress.print)
    except EnvironmentProblemError as error:
        progress.print(str(error), markup=False)
        raise typer.Exit(1) from None
    report = _new_report(environment, quick, rounds, seconds)
    with tempfile.TemporaryDirectory(prefix="etl-server-bench-") as logs, progress.status("") as status:
        stage = Stage(environment, cores_of(server_core, load_core), Path(logs), seconds)
        try:
            for number, case in enumerate(cases, 1):
                say = partial(_tell, status, f"{number} of {len(cases)}")
                result = run_case(stage, shortened(case) if quick else case, rounds, say)
                report.cases.append(result)
                if not progress.is_terminal:
                    progress.print(f"{number} of {len(cases)}: {case.title}", markup=False, highlight=False)
                if json:
                    json.parent.mkdir(parents=True, exist_ok=True)
                    json.write_text(report.model_dump_json(indent=1) + "\n")
        except KeyboardInterrupt:
            progress.print("interrupted: these are the cases that were done")
    return report


def _tell(status: Status, prefix: str, text: str) -> None:
    status.update(escape(f"{prefix}: {text}"))


def _new_report(environment: Environment, quick: bool, rounds: int, seconds: float) -> Report:
    return Report(
        started=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        quick=quick,
        rounds=rounds,
        seconds=seconds,
        machine=machine(),
        versions=versions(environment),
        labels={**LABELS, GO: _short_label(environment.go_label)},
    )


def _short_label(go_label: str) -> str:
    return "Go net/http" if go_label.startswith("net/http") else "Go, AIStore's framework"


if __name__ == "__main__":
    main.__doc__ = HELP
    typer.run(main)
