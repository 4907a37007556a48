"""A run after one whose workers, on other machines, may not know yet that it is over."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from etl_server.config import Settings
from etl_server.jobs import run
from etl_server.jobs.engines.local import LocalEngine
from etl_server.jobs.ledger import Ledger, Litter
from etl_server.jobs.naming import Naming
from etl_server.jobs.progress import PlainLines
from etl_server.jobs.run import Job, JobOptions, Summary
from etl_server.storage.object_paths import INCOMING

from .conftest import Bench


def job(bench: Bench) -> Job:
    places = (str(bench.spec), str(bench.source), str(bench.sink))
    return Job(JobOptions(*places, ledger=bench.ledger), Settings.load(workers=1))


def do(job: Job) -> Summary:
    return job.run(PlainLines(lambda _: ""), lambda ledger: None)


def littered(bench: Bench) -> int:
    with contextlib.closing(sqlite3.connect(bench.ledger)) as db:
        return int(db.execute("SELECT littered FROM about").fetchone()[0])


@pytest.fixture
def haunted(bench: Bench) -> Bench:
    """Something is to be done, and somebody may still be at work on it."""
    bench.fill(a="one")
    bench.sink.mkdir()
    with Ledger(bench.ledger, str(bench.source), str(bench.sink)) as ledger:
        ledger.littered = Litter.ELSEWHERE
        (bench.sink / f"{INCOMING}-{ledger.owner.id}-1").write_text("half")
    return bench


def test_it_waits_and_then_cleans_up_and_works(haunted: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LEASE", 0.2)
    assert do(job(haunted)).done == 1
    assert haunted.outputs == {"a": "ONE"}
    assert littered(haunted) == Litter.NONE


def test_an_interrupt_ends_the_waiting_and_the_next_run_waits_again(haunted: Bench) -> None:
    interrupted = job(haunted)
    interrupted.interrupt()
    summary = do(interrupted)
    assert (summary.stopped, summary.done, summary.pending) == ("interrupted", 0, 1)
    assert littered(haunted) == Litter.ELSEWHERE
    assert not interrupted.interrupt()


def test_a_run_with_nothing_to_do_does_not_wait(haunted: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LEASE", 0.0)
    do(job(haunted))
    monkeypatch.setattr(run, "LEASE", 1000.0)
    with Ledger(haunted.ledger, str(haunted.source), str(haunted.sink)) as ledger:
        ledger.littered = Litter.ELSEWHERE
    summary = do(job(haunted))
    assert (summary.stopped, summary.skipped) == ("", 1)
    assert littered(haunted) == Litter.ELSEWHERE


def test_what_was_written_stays_noted_while_a_lost_worker_may_still_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fill(a="one")
    monkeypatch.setattr(LocalEngine, "abandoned", True)
    places = (str(bench.spec), str(bench.source), str(bench.sink))
    options = JobOptions(*places, ledger=bench.ledger, naming=Naming(router="content-hash"))
    assert do(Job(options, Settings.load(workers=1))).done == 1
    assert littered(bench) == Litter.ELSEWHERE
    assert Path(f"{bench.ledger}.uploads").exists()
