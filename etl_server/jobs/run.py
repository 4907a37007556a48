"""A job from its plan to its end."""

from __future__ import annotations

import functools
import itertools
import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..config import Settings
from ..errors import JobError, ObjectStoreError
from ..loading import load_class
from ..payload import local_modules, serialize_class
from ..payload import make_server as make_shipped_server
from ..server import ETLServer
from ..storage import ObjectStore, open_store
from .claims import claimed
from .copies import remove_copies
from .engines import LEASE, Busy, Engine
from .engines.local import LocalEngine, Processes
from .fingerprint import fingerprint
from .ledger import Ledger, Litter, Outcome, Task, Totals, default_path
from .naming import Naming, Selection
from .plan import check_apart, note_outputs, plan_objects
from .worker import WorkerConfig, file_identity

SAVE_INTERVAL = 0.5
"""Seconds for which outcomes wait to be saved."""
SAVE_COUNT = 5000
"""Outcomes that are saved at once without waiting."""
POLL = 0.1
"""Seconds between two looks at what the user wants."""
LOST_STORE = 50
"""Objects in a row for which a store has to fail in order to count as lost."""
FAILURES_KEPT = 10
"""Failures that are told at the end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOptions:
    """What a job is to do. The options of `etl-server transform`, by the same names."""

    spec: str
    source: str
    sink: str | None
    selection: Selection = field(default_factory=Selection)
    names: Iterable[str] | None = None
    """The objects, in place of all that the source lists."""
    naming: Naming = field(default_factory=Naming)
    etl_args: str = ""
    ledger: Path | None = None
    force: bool = False
    only_failed: bool = False
    sync: bool = False
    inspect: bool = False
    dry_run: bool = False
    max_failures: int | None = None
    workers: int = 1
    object_timeout: float | None = None
    engine: str = "local"
    """`local` or `ray`."""
    ray_address: str = ""
    """Of a Ray cluster; empty: one of its own, on this machine."""


@dataclass
class Summary:
    """What a job has done so far."""

    listed: Totals = field(default_factory=Totals)
    selected: Totals = field(default_factory=Totals)
    due: Totals = field(default_factory=Totals)
    not_chosen: int = 0
    """Objects that are not done, or not valid, but did not fail, where only what failed was asked for."""
    deleted: int = 0
    done: int = 0
    failed: int = 0
    bytes_read: int = 0
    """Bytes of the sources that are through."""
    bytes_written: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """The first objects that failed, and why."""
    stopped: str = ""
    """Why it ended before its end; empty: it did not."""

    @property
    def skipped(self) -> int:
        """Objects that were done already and are still valid."""
        return self.selected.objects - self.due.objects - self.not_chosen

    @property
    def pending(self) -> int:
        """Objects that the job did not come to."""
        return self.due.objects - self.done - self.failed


class Observer(Protocol):
    """Who is told how a job goes."""

    def planned(self, summary: Summary, first: list[Task], orphans: list[str]) -> None:
        """It is known what is to be done; nothing is done yet."""

    def progress(self, summary: Summary, busy: Callable[[], list[Busy]]) -> None:
        """Some time has passed."""

    def failed(self, name: str, error: str) -> None:
        """An object has failed."""


class Job:
    """One run of a job."""

    def __init__(self, options: JobOptions, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._interrupts = 0
        self._attentive = False
        """It looks at `_interrupts` all the time."""
        self._names: dict[int, str] = {}
        self.summary = Summary()
        self.first: list[Task] = []
        """The first tasks of the plan."""
        self.orphans: list[str] = []
        """Outputs whose source is gone, as far as they are to be deleted."""

    def name_of(self, task_id: int) -> str:
        """The name of an object that is being worked on."""
        return self._names.get(task_id, "")

    def interrupt(self) -> bool:
        """Stop: the first time, finish what is begun; the second time, do not.

        Returns whether the job will see to it. It does not while it plans, or is about to end, nor the third time.
        """
        self._interrupts += 1
        return self._attentive and self._interrupts <= 2

    def run(self, observer: Observer, report: Callable[[Ledger], None]) -> Summary:
        """Do the job. `report` is called with the ledger when all is over, whatever happened.

        Raises:
            ConfigError, ClassLoadError, JobError, PayloadError: it cannot start, or not go on.
        """
        try:
            return self._run(observer, report)
        except sqlite3.Error as error:
            raise JobError(f"the job cannot use its ledger: {error}") from error
        except (OSError, ObjectStoreError) as error:
            raise JobError(f"the job cannot go on: {error}") from error

    def _run(self, observer: Observer, report: Callable[[Ledger], None]) -> Summary:
        options = self._options
        cls = load_class(options.spec)
        files = _files(cls)
        code = fingerprint(cls, self._settings, options.etl_args, *_naming_context(options.naming))
        sink_uri = options.sink or ""
        path = options.ledger or default_path(options.source, sink_uri)
        forgotten = options.inspect or (options.dry_run and not path.exists())
        with ExitStack() as stack:
            source = stack.enter_context(open_store(options.source))
            led = stack.enter_context(Ledger(None if forgotten else path, options.source, sink_uri))
            early = options.workers if options.engine == "local" and not options.dry_run else 0
            processes = stack.enter_context(Processes(early, led.lock))
            self._plan(led, source, code)
            orphans = led.orphans(options.selection.prefix) if options.sync else []
            self.first = list(itertools.islice(led.due(), FAILURES_KEPT))
            self.orphans = [stored for _, stored in orphans if stored]
            observer.planned(self.summary, self.first, self.orphans)
            if options.dry_run:
                return self.summary
            try:
                if led.littered is not Litter.ELSEWHERE or self._is_alone(bool(self.summary.due.objects or orphans)):
                    if led.littered:
                        self._clean(led)
                    if orphans:
                        self._delete(led, orphans)
                    if self.summary.due.objects:
                        self._work(cls, files, led, code, observer, processes)
            finally:
                report(led)
        return self.summary

    def _plan(self, ledger: Ledger, source: ObjectStore, code: str) -> None:
        options = self._options
        try:
            plan_objects(ledger, source, options.selection, options.naming, options.names)
            if options.sink is not None and not options.inspect:
                with open_store(options.sink) as sink:
                    check_apart(source, sink, ledger, options.selection, options.naming)
                    note_outputs(ledger, sink, options.naming)
        except (OSError, ObjectStoreError) as error:
            raise JobError(f"{options.source} cannot be planned: {error}") from error
        self.summary.listed = ledger.listed()
        self.summary.selected = ledger.selected()
        if options.sync and not self.summary.listed.objects:
            raise JobError(f"--sync: {options.source} has no object at all; expected one that is there")
        force = options.force or options.inspect
        self.summary.due = ledger.choose(code, force=force, only_failed=options.only_failed)
        self.summary.not_chosen = ledger.passed_over().objects

    def _delete(self, ledger: Ledger, orphans: list[tuple[str, str]]) -> None:
        """Remove the outputs whose source is gone."""
        with open_store(self._options.sink or "") as sink:
            for output, stored in orphans:
                if stored and not ledger.is_needed(stored, output):
                    sink.delete_object(stored)
                    self.summary.deleted += 1
                ledger.forget(output)

    def _work(
        self,
        cls: type[ETLServer],
        files: dict[str, str],
        ledger: Ledger,
        code: str,
        observer: Observer,
        processes: Processes,
    ) -> None:
        started = time.monotonic()
        engine = self._engine(cls, files, ledger, processes)
        ledger.littered = Litter.HERE if self._options.engine == "local" else Litter.ELSEWHERE
        try:
            self._attentive = True
            for outcomes in self._outcomes(engine, ledger.due(), observer):
                ledger.record(outcomes, code)
                self.summary.seconds = time.monotonic() - started
        finally:
            self._attentive = False
            engine.close()
            self.summary.seconds = time.monotonic() - started
            if engine.unclean or ledger.owner.journal.exists():
                self._clean(ledger, forget=not engine.abandoned)
            else:
                ledger.littered = Litter.NONE
            if engine.abandoned:
                ledger.littered = Litter.ELSEWHERE

    def _is_alone(self, busy: bool) -> bool:
        """Wait for workers on other machines, whose run was killed or lost them, to end by themselves.

        Where there is nothing to do, or the user does not want to wait, they are left alone.
        """
        if not busy:
            return False
        logger.warning("waiting %.0f s for workers of the last run that may still be there", LEASE)
        deadline = time.monotonic() + LEASE
        self._attentive = True
        try:
            while time.monotonic() < deadline:
                if self._interrupts:
                    self.summary.stopped = "interrupted"
                    return False
                time.sleep(POLL)
        finally:
            self._attentive = False
        return True

    def _clean(self, ledger: Ledger, *, forget: bool = True) -> None:
        """Remove what was left half-written, by workers that have ended. It does no harm where that fails.

        `forget`: all of them have; else the journal stays, so that the next run finds what is written still.
        """
        remove_copies(ledger.owner)
        if self._options.sink is not None and not self._options.inspect:
            try:
                with open_store(self._options.sink) as sink:
                    for name in ledger.unnamed(claimed(ledger.owner.journal)):
                        sink.delete_object(name)
                    sink.clean(ledger.owner)
                if forget:
                    ledger.owner.journal.unlink(missing_ok=True)
            except (OSError, ObjectStoreError) as error:
                logger.warning("what is half-written stays until the next run: %s", error)
                return
        ledger.littered = Litter.NONE

    def _engine(self, cls: type[ETLServer], files: dict[str, str], ledger: Ledger, processes: Processes) -> Engine:
        options = self._options
        workers = max(1, min(options.workers, self.summary.due.objects))
        config = WorkerConfig(
            functools.partial(make_server, options.spec),
            options.source,
            None if options.inspect else options.sink,
            options.naming,
            options.etl_args,
            self._settings.max_memory // workers,
            files,
            ledger.owner,
        )
        if options.engine == "ray":
            from .engines.ray import RayEngine

            config = config._replace(make=functools.partial(make_shipped_server, serialize_class(cls)), files={})
            return RayEngine(config, self._settings, self.summary.due.objects, options.ray_address)
        return LocalEngine(config, self._settings, workers, options.object_timeout, processes)

    def _outcomes(self, engine: Engine, tasks: Iterator[Task], observer: Observer) -> Iterator[list[Outcome]]:
        """What comes of the tasks, in portions that are worth saving."""
        names = self._names
        unsaved: list[Outcome] = []
        saved = time.monotonic()
        in_a_row = 0
        stopping = exhausted = False
        while True:
            if not stopping and not exhausted and (room := engine.room()):
                batch = list(itertools.islice(tasks, room))
                exhausted = len(batch) < room
                names.update((task.id, task.source) for task in batch)
                engine.submit(batch)
            for outcome in engine.poll(POLL):
                unsaved.append(outcome)
                self._count(outcome, names.pop(outcome.id), observer)
                in_a_row = in_a_row + 1 if outcome.store_failed else 0
            observer.progress(self.summary, engine.busy)
            if not stopping and (reason := self._reason_to_stop(in_a_row)):
                self.summary.stopped = reason
                stopping = True
                engine.stop()
            over = (stopping or exhausted) and not engine.in_flight
            if over or self._interrupts > 1 or len(unsaved) >= SAVE_COUNT or time.monotonic() - saved > SAVE_INTERVAL:
                yield unsaved
                unsaved = []
                saved = time.monotonic()
            if over or self._interrupts > 1:
                return

    def _count(self, outcome: Outcome, name: str, observer: Observer) -> None:
        summary = self.summary
        summary.bytes_read += outcome.bytes_in
        summary.bytes_written += outcome.bytes_out
        if not outcome.error:
            summary.done += 1
            return
        summary.failed += 1
        if len(summary.failures) < FAILURES_KEPT:
            summary.failures.append((name, outcome.error))
        observer.failed(name, outcome.error)

    def _reason_to_stop(self, in_a_row: int) -> str:
        most = self._options.max_failures
        if self._interrupts:
            return "interrupted"
        if most is not None and self.summary.failed >= most:
            return "a failure, and --fail-fast" if most == 1 else f"--max-failures={most} are reached"
        if in_a_row >= LOST_STORE:
            return f"a store is lost: {self.summary.failures[-1][1] if self.summary.failures else ''}"
        return ""


def _files(cls: type[ETLServer]) -> dict[str, str]:
    """The local files that the class's code is in, and what they are now."""
    modules = (sys.modules.get(name) for name in local_modules(cls))
    files = [file for module in modules if (file := getattr(module, "__file__", None))]
    return {file: file_identity(file) for file in files}


def _naming_context(naming: Naming) -> tuple[str, ...]:
    """What outputs' names depend on besides their sources' names, by which the ledger knows them."""
    if naming.router == "name":
        return (naming.router, "")
    return (naming.router, naming.prepend, *(f"{old}:{new}" for old, new in sorted(naming.extensions.items())))


def make_server(spec: str) -> ETLServer:
    """An instance of the class that `spec` names, in a worker process."""
    return load_class(spec)()
