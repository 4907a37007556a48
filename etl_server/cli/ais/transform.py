"""`etl-server ais transform` and `job`: a bucket through an ETL."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import ClusterError, JobFailedError
from .common import (
    FAILED,
    JsonOption,
    NameArgument,
    UrlOption,
    check_name,
    checked,
    connect,
    show_json,
    tell,
    usage_errors,
)

if TYPE_CHECKING:
    from ...control import AIStoreClient, Job, JobProgress, ObjectError

_LINE_EVERY = 5.0
"""Seconds from one line to the next, where there is no terminal."""
_ERRORS_SHOWN = 20


def transform(
    name: NameArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Bucket, such as ais://photos.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="Bucket, such as ais://thumbnails.")],
    url: UrlOption = None,
    ext: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD:NEW", help="What an extension becomes, as jpg:png; may be given several times."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Transform objects whose names begin with this.")] = "",
    prepend: Annotated[str, typer.Option(help="What the results' names begin with.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and transform, and store nothing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Objects at once on a target; 0: one a disk.")] = 0,
    continue_on_error: Annotated[bool, typer.Option("--continue-on-error", help="Go on when an object fails.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 1 if an object failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Transform a bucket into another one, within the cluster.

    The job goes on by itself; --wait shows its progress until its end.

    Example: etl-server ais transform my-thumbnails ais://photos ais://thumbnails --ext jpg:png --wait
    """
    from ...wire.buckets import parse_bucket

    check_name(name)
    with usage_errors():
        buckets = parse_bucket(source), parse_bucket(destination)
    extensions = dict(checked("--ext", text, _extension) for text in ext or ())
    with connect(url) as client:
        job = client.transform_bucket(
            name,
            *buckets,
            extensions=extensions,
            prefix=prefix,
            prepend=prepend,
            dry_run=dry_run,
            workers=workers,
            continue_on_error=continue_on_error,
        )
        if wait:
            raise typer.Exit(FAILED if _wait(client, job, url, as_json) else 0)
    if as_json:
        show_json({"job": job.id, "etl": job.etl})
    else:
        print(job.id)
        tell(_aftermath(job, url))


def job(
    name: NameArgument,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as transform prints it.")],
    url: UrlOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 1 if an object failed.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Abort it. What it has stored stays.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far a job is that transforms a bucket, wait for it, or abort it.

    Example: etl-server ais job my-thumbnails tNhE7mI9k --wait
    """
    from ...control import Job

    this = Job(job_id, check_name(name))
    with connect(url) as client:
        if stop:
            client.stop_job(this)
        if wait:
            raise typer.Exit(FAILED if _wait(client, this, url, as_json) else 0)
        status, progress = client.job_status(this), client.job_progress(this)
    if as_json:
        show_json({"job": this.id, "etl": this.etl} | asdict(status) | asdict(progress))
        return
    state = "aborted" if status.aborted else "finished" if status.finished else "running"
    print(f"{_line(this, progress)}; {state}" + (f": {status.error}" if status.error else ""))


def _wait(client: AIStoreClient, job: Job, url: str | None, as_json: bool) -> bool:
    """Show a job until it ends; returns whether something failed."""
    last: JobProgress | None = None
    failure = ""
    failed: tuple[ObjectError, ...] = ()
    try:
        with _progress(job) as report:

            def note(progress: JobProgress) -> None:
                nonlocal last
                last = progress
                report(progress)

            client.wait_for_job(job, note)
    except JobFailedError as error:
        failure = error.detail
        with contextlib.suppress(ClusterError):
            failed = client.details(job.etl, job.id).errors
    except KeyboardInterrupt:
        tell(f"\nJob {job.id} goes on in the cluster. {_aftermath(job, url)}")
        raise typer.Exit(FAILED) from None
    except ClusterError:
        tell(f"What became of job {job.id} is not known; it may go on in the cluster. {_aftermath(job, url)}")
        raise
    _show(job, last, failure, failed, as_json)
    return bool(failure)


@contextlib.contextmanager
def _progress(job: Job) -> Iterator[Callable[[JobProgress], None]]:
    """A function that shows how far the job is: in place on a terminal, else by a line now and then; on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"job {job.id}") as status:
            yield lambda progress: status.update(_line(job, progress))
        return
    shown = time.monotonic()

    def line(progress: JobProgress) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _LINE_EVERY:
            shown = time.monotonic()
            tell(_line(job, progress))

    yield line


def _line(job: Job, progress: JobProgress) -> str:
    return f"job {job.id}: {progress.objects:,} objects, {progress.bytes:,} bytes"


def _show(job: Job, progress: JobProgress | None, failure: str, failed: tuple[ObjectError, ...], as_json: bool) -> None:
    objects, size = (progress.objects, progress.bytes) if progress else (0, 0)
    if as_json:
        fields = {"job": job.id, "etl": job.etl, "ok": not failure, "objects": objects, "bytes": size}
        show_json(fields | {"error": failure, "errors": [asdict(error) for error in failed]})
        return
    for error in failed[:_ERRORS_SHOWN]:
        print(f"FAILED\t{error.object}\t{error.status}\t{' '.join(error.message.split())}")
    if len(failed) > _ERRORS_SHOWN:
        print(f"… and {len(failed) - _ERRORS_SHOWN:,} more: etl-server ais errors {job.etl} --job {job.id}")
    print(f"{failure or f'job {job.id} is done'}: {objects:,} objects, {size:,} bytes")


def _aftermath(job: Job, url: str | None) -> str:
    """How to go on with a job that nobody waits for."""
    command = f"etl-server ais job {job.etl} {job.id}" + (f" --url {url}" if url else "")
    return f"See it: {command}; wait for it: {command} --wait; stop it: {command} --stop"


def _extension(text: str) -> tuple[str, str]:
    old, _, new = text.partition(":")
    old, new = old.removeprefix("."), new.removeprefix(".")
    if not old or not new or ":" in new or "/" in old + new:
        raise ValueError(f"{text!r}: expected OLD:NEW, such as jpg:png")
    return old, new
