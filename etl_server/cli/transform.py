"""`etl-server transform`: run a class over all objects of a store."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .serve import ClassArgument

if TYPE_CHECKING:
    from ..jobs.ledger import Task
    from ..jobs.run import Summary

OBJECTS_FAILED = 1
INTERRUPTED = 130
_STORE = "s3://bucket/prefix, ais://bucket, file:///folder, or a folder"


def transform(
    spec: ClassArgument,
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"Where the objects are: {_STORE}.")],
    sink: Annotated[
        str | None, typer.Argument(metavar="DST", help="Where the outputs go; not needed to --inspect.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Take objects whose names begin with this.")] = "",
    match: Annotated[list[str] | None, typer.Option(help="Take names that match a glob; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave out names that match a glob; repeatable.")] = None,
    list_: Annotated[
        str | None, typer.Option("--list", metavar="FILE", help="Take the names in a file, one a line; -: stdin.")
    ] = None,
    ext: Annotated[list[str] | None, typer.Option(help="Map an extension: old:new; repeatable.")] = None,
    prepend: Annotated[str, typer.Option(help="Put in front of outputs' names, as it is.")] = "",
    router: Annotated[str, typer.Option(help="Call outputs by their source's `name` or by `content-hash`.")] = "name",
    etl_args: Annotated[str, typer.Option(help="Arguments for the transform.")] = "",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.  [ETL_WORKERS, the CPUs there are]")] = None,
    engine: Annotated[str, typer.Option(help="Work in processes of this machine, `local`, or on `ray`.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster that this machine is a node of: host:port or auto.  [RAY_ADDRESS, one of its own]",
        ),
    ] = None,
    object_timeout: Annotated[
        float | None, typer.Option(help="Seconds a transform may take for an object.  [ETL_OBJECT_TIMEOUT, any]")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="File that knows what is done.  [in ~/.cache/etl-server/jobs]", dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do everything again.")] = False,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Do only what failed before.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Delete the outputs whose source is gone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="Transform and throw away, to check the objects.")] = False,
    max_failures: Annotated[int | None, typer.Option(min=1, help="Stop when so many objects have failed.")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop when one object has failed.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a row an object to a .jsonl or .csv file.", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON event a line on standard output.")] = False,
) -> None:
    """Run a class over all objects of a store.

    A second run does what is new, changed, failed or missing, and everything when the class or its arguments changed.
    Exit status: 0 done, 1 some objects failed or the job stopped, 2 wrong usage, 130 interrupted.

    Example: etl-server transform examples/thumbnail.py examples/data/images /tmp/thumbnails --ext jpg:jpeg
    """
    from ..config import Settings
    from ..jobs.naming import Naming, Selection, parse_extensions
    from ..jobs.progress import observer
    from ..jobs.report import check_report, write_report
    from ..jobs.run import Job, JobOptions

    if sink is None and not inspect:
        raise ConfigError("DST: expected one, unless --inspect")
    if sync and (list_ is not None or inspect):
        raise ConfigError("--sync: expected all objects of the source, so neither --list nor --inspect")
    if inspect and only_failed:
        raise ConfigError("--inspect: expected it without --only-failed, for it keeps no ledger")
    if router != "name" and router != "content-hash":
        raise ConfigError(f"--router {router}: expected name or content-hash")
    if engine != "local" and engine != "ray":
        raise ConfigError(f"--engine {engine}: expected local or ray")
    if ray_address is not None and engine != "ray":
        raise ConfigError(f"--ray-address {ray_address}: expected --engine ray with it")
    if report is not None:
        check_report(report)
    settings = Settings.load(workers=workers, object_timeout=object_timeout, ray_address=ray_address)
    options = JobOptions(
        spec=spec,
        source=_absolute(source),
        sink=None if sink is None else _absolute(sink),
        selection=Selection(prefix, match or (), exclude or ()),
        names=None if list_ is None else _names(list_),
        naming=Naming(parse_extensions(ext or ()), prepend, router),  # type: ignore[arg-type]  # checked above
        etl_args=etl_args,
        ledger=ledger,
        force=force,
        only_failed=only_failed,
        sync=sync,
        inspect=inspect,
        dry_run=dry_run,
        max_failures=1 if fail_fast else max_failures,
        workers=settings.workers,
        object_timeout=settings.object_timeout,
        engine=engine,
        ray_address=settings.ray_address,
    )
    job = Job(options, settings)

    def interrupt(*_: object) -> None:
        if not job.interrupt():
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    summary = job.summary
    try:
        with observer(as_json, job.name_of) as display:
            job.run(display, lambda led: write_report(report, led.rows()) if report is not None else None)
    except KeyboardInterrupt:
        summary.stopped = "interrupted"
    note = " (with the list on standard input again)" if list_ == "-" else ""
    if force and summary.stopped:
        note += "\nwith --force it does not go on, but begins again; without, what is done and valid is skipped"
    _tell(summary, job.first, job.orphans, as_json, dry_run, inspect, note)
    stopped = INTERRUPTED if summary.stopped == "interrupted" else OBJECTS_FAILED
    code = stopped if summary.failed or summary.stopped else 0
    sys.stdout.flush()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))  # whatever else ends with the process may take long
    raise typer.Exit(code)


def _absolute(uri: str) -> str:
    """A ledger knows a place by its URI, wherever the command is run."""
    return uri if "://" in uri or not uri else str(Path(uri).absolute())


def _names(file: str) -> list[str]:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--list {file}: expected a file with a name a line: {error.strerror}") from None
    if b"\0" in text:
        raise ConfigError(f"--list {file}: expected a name a line, not one with a NUL character in it")
    return [line.removesuffix("\r") for line in text.decode(errors="surrogateescape").split("\n")]


def _tell(
    summary: Summary, first: list[Task], orphans: list[str], as_json: bool, dry_run: bool, inspect: bool, note: str
) -> None:
    """The last words. `note`: what there is to say of the command that is to be run next."""
    from rich.filesize import decimal

    from ..jobs.progress import emit
    from ..wire.names import printable

    if as_json:
        emit(
            "end",
            done=summary.done,
            skipped=summary.skipped,
            not_chosen=summary.not_chosen,
            failed=summary.failed,
            pending=summary.pending,
            deleted=summary.deleted,
            bytes_in=summary.bytes_read,
            bytes_out=summary.bytes_written,
            seconds=round(summary.seconds, 3),
            stopped=summary.stopped,
        )
        return
    if dry_run and not summary.stopped:
        print(f"{summary.due.objects:,} objects, {decimal(summary.due.bytes)}, would be transformed:")
        for task in first:
            print(f"  {printable(task.source)} -> {printable(task.output)}")
        if summary.due.objects > len(first):
            print(f"  ... and {summary.due.objects - len(first):,} more")
        print(f"{summary.skipped:,} are done already")
        if summary.not_chosen:
            print(f"{summary.not_chosen:,} are not, but did not fail: not chosen by --only-failed")
        for name in orphans:
            print(f"  {printable(name)} would be deleted")
        return
    rate = (summary.done + summary.failed) / summary.seconds if summary.seconds else 0.0
    print(
        f"{summary.done:,} done, {summary.skipped:,} skipped, {summary.failed:,} failed"
        + (f", {summary.not_chosen:,} not chosen" if summary.not_chosen else "")
        + (f", {summary.deleted:,} deleted" if summary.deleted else "")
        + f"; {decimal(summary.bytes_read)} in, {decimal(summary.bytes_written)} out"
        + f" in {summary.seconds:.1f} s ({rate:,.1f}/s)"
    )
    for name, error in summary.failures:
        print(f"  {printable(name)}: {error}")
    if summary.failed > len(summary.failures):
        print(f"  ... and {summary.failed - len(summary.failures):,} more; --report names them all")
    command = shlex.join(["etl-server", *sys.argv[1:]])
    if summary.stopped:
        pending = f", {summary.pending:,} to go" if summary.due.objects else ""
        print(f"stopped ({summary.stopped}){pending}; to go on: {command}{note}")
    elif summary.failed:
        again = command if inspect or "--only-failed" in sys.argv else f"{command} --only-failed"
        print(f"to try them again: {again}{note}")
