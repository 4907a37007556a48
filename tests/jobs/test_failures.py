"""Objects that fail, in every way that a transform can, and jobs that go on."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl_server.config import Settings
from etl_server.errors import JobError
from etl_server.jobs.progress import PlainLines
from etl_server.jobs.run import Job, JobOptions

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer
from .conftest import UPPER, Bench
from .test_stores import _credentials

__all__ = ["_credentials", "bucket", "s3", "s3_server"]


FORKING = """
import os, time
from etl_server import ETLServer

class Forking(ETLServer):
    def transform(self, data, path, etl_args):
        if data == b"fork":
            child = os.fork()
            if child == 0:
                time.sleep(1000)
            with open(etl_args, "a") as file:
                print(child, file=file)
            os._exit(7)
        return data
"""


def lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_bad_object_fails_alone_and_the_last_lines_say_how_to_go_on(bench: Bench) -> None:
    bench.fill(a="one", b="bad", c="three")
    done = bench.run()
    assert done.returncode == 1
    assert bench.outputs == {"a": "ONE", "c": "THREE"}
    total, failure, again = done.stdout.splitlines()[-3:]
    assert total.startswith("2 done, 0 skipped, 1 failed")
    assert failure == "  b: Processing error: this one is bad (upper.py:8)"
    assert again.startswith("to try them again: etl-server transform")
    assert again.endswith("--only-failed")


@pytest.mark.parametrize(("content", "reason"), [("segfault", "was killed by SIGSEGV"), ("exit", "exit code 7")])
def test_an_object_that_kills_its_process_fails_alone_after_a_second_try(
    bench: Bench, content: str, reason: str
) -> None:
    bench.fill(**{f"ok{number}": f"fine {number}" for number in range(40)}, killer=content)
    done = bench.run("--json")
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert [event["source"] for event in failed] == ["killer"]
    assert reason in failed[0]["error"]
    assert failed[0]["error"].endswith("twice")
    assert bench.outputs == {f"ok{number}": f"FINE {number}" for number in range(40)}


def test_an_object_that_its_process_died_of_once_succeeds_alone(bench: Bench, tmp_path: Path) -> None:
    bench.fill(**{f"ok{number}": "fine" for number in range(10)}, unlucky=f"once {tmp_path / 'marker'}")
    assert bench.events()["done"] == 11
    assert len(bench.outputs) == 11


def test_a_worker_is_missed_whose_child_lives_on_and_the_child_ends(bench: Bench, tmp_path: Path) -> None:
    child = tmp_path / "child"
    bench.spec.write_text(FORKING)
    bench.fill(killer="fork", **{f"ok{number}": "fine" for number in range(10)})
    done = bench.run("--etl-args", str(child))
    assert done.returncode == 1
    assert "  killer: its process ended with exit code 7, twice" in done.stdout
    assert len(bench.outputs) == 10
    pids = [int(pid) for pid in child.read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_transform_that_hangs_is_ended(bench: Bench) -> None:
    bench.fill(**{f"ok{number}": "fine" for number in range(10)}, stuck="hang")
    done = bench.run("--object-timeout", "0.5")
    assert done.returncode == 1
    assert "  stuck: no result within --object-timeout=0.5" in done.stdout
    assert len(bench.outputs) == 10


@pytest.mark.parametrize(
    "body",
    [
        "async def transform(self, data, path, etl_args):\n        await asyncio.sleep(0.4)\n        return data",
        "execution = 'inline'\n    def transform(self, data, path, etl_args):\n        return time.sleep(0.4) or data",
        "def transform_stream(self, reader, path, etl_args):\n        time.sleep(0.4)\n        yield reader.read()",
    ],
    ids=["async", "inline", "stream"],
)
def test_waiting_for_its_turn_is_no_part_of_a_transforms_time(bench: Bench, body: str) -> None:
    bench.fill(**{f"{number:02}": "x" for number in range(12)})
    head = (
        "import asyncio, time\nfrom etl_server import ETLServer\n\nclass One(ETLServer):\n    max_concurrency = 1\n    "
    )
    bench.spec.write_text(head + body + "\n")
    assert bench.events("--object-timeout", "1.5", "--workers", "1")["done"] == 12


def test_a_class_that_is_edited_while_the_job_is_planned_stops_it(bench: Bench) -> None:
    bench.fill(a="one")

    def edited_before_the_first() -> Iterator[str]:
        bench.spec.write_text(bench.spec.read_text().replace("upper", "lower"))
        yield "a"

    places = (str(bench.spec), str(bench.source), str(bench.sink))
    job = Job(JobOptions(*places, names=edited_before_the_first(), ledger=bench.ledger), Settings.load(workers=1))
    with pytest.raises(JobError, match=r"upper\.py was changed while the job was running"):
        job.run(PlainLines(lambda _: ""), lambda ledger: None)
    assert not bench.sink.exists()


def test_a_ledger_that_fails_under_a_job_is_told_in_one_line(bench: Bench) -> None:
    bench.fill(a="one")

    def broken_before_the_first() -> Iterator[str]:
        with contextlib.closing(sqlite3.connect(bench.ledger)) as other:
            other.execute("DROP TABLE objects")
        yield "a"

    places = (str(bench.spec), str(bench.source), str(bench.sink))
    job = Job(JobOptions(*places, names=broken_before_the_first(), ledger=bench.ledger), Settings.load(workers=1))
    with pytest.raises(JobError, match="the job cannot use its ledger: no such table: objects"):
        job.run(PlainLines(lambda _: ""), lambda ledger: None)


def test_a_ledger_that_cannot_be_made_is_told_in_one_line(bench: Bench) -> None:
    bench.fill(a="one")
    bench.ledger = bench.spec / "ledger.sqlite"
    done = bench.run()
    assert done.returncode == 2
    assert done.stderr.startswith(f"etl-server: --ledger {bench.ledger}: expected a file that can be written")
    assert len(done.stderr.splitlines()) == 1


def test_a_disk_that_is_full_at_the_end_is_told_in_one_line(bench: Bench, tmp_path: Path) -> None:
    bench.fill(a="one")
    report = tmp_path / "report.csv"
    (tmp_path / ".report.csv.incoming").symlink_to("/dev/full")
    done = bench.run("--report", str(report))
    assert done.returncode == 2
    assert done.stderr == "etl-server: the job cannot go on: [Errno 28] No space left on device\n"


def test_a_bucket_for_outputs_that_is_not_there_stops_the_job_before_it_starts(
    bench: Bench, s3_server: RcloneServer
) -> None:
    bench.fill(a="one")
    command = bench.command()
    command[command.index(str(bench.sink))] = f"s3://not-there/out?endpoint_url={s3_server.url}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("etl-server: s3://not-there/out/: there is no such place for outputs: ")
    assert len(done.stderr.splitlines()) == 1


def test_max_failures_stops_the_job(bench: Bench) -> None:
    bench.spec.write_text(UPPER.replace("raise", "time.sleep(0.02)\n            raise"))  # few are under way at once
    bench.fill(**{f"{number:03}": "bad" for number in range(300)})
    end = bench.events("--max-failures", "3", code=1)
    assert end["stopped"] == "--max-failures=3 are reached"
    assert end["pending"] > 0
    assert bench.events("--fail-fast", code=1)["stopped"] == "a failure, and --fail-fast"


def test_a_setup_that_fails_ends_the_job(bench: Bench) -> None:
    bench.fill(a="one")
    bench.spec.write_text(
        "from etl_server import ETLServer\n\nclass Broken(ETLServer):\n"
        "    def setup(self):\n        raise RuntimeError('no model')\n"
        "    def transform(self, data, path, etl_args):\n        return data\n"
    )
    done = bench.run()
    assert done.returncode == 2
    assert "etl-server: the transform cannot be set up: RuntimeError: no model" in done.stderr


def test_the_report_has_a_row_an_object(bench: Bench, tmp_path: Path) -> None:
    bench.fill(a="one")
    bench.run()
    bench.fill(b="bad", c="three")
    bench.run("--report", str(tmp_path / "report.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(row["source"], row["output"], row["status"]) for row in rows] == [
        ("a", "a", "skipped"),
        ("b", "b", "failed"),
        ("c", "c", "done"),
    ]
    assert (rows[2]["bytes_in"], rows[2]["bytes_out"]) == (5, 5)
    bench.run("--report", str(tmp_path / "report.csv"))
    with (tmp_path / "report.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["skipped", "failed", "skipped"]


def test_ctrl_c_finishes_what_is_begun_and_says_how_to_go_on(bench: Bench) -> None:
    bench.fill(**{f"{number:03}": f"slow {number}" for number in range(250)})
    process = subprocess.Popen(bench.command(), stdout=subprocess.PIPE, text=True)
    _wait_until(lambda: bench.sink.is_dir() and bench.outputs)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped (interrupted)" in out.splitlines()[-1]
    made = len(bench.outputs)
    assert 0 < made < 250
    assert bench.events()["skipped"] == made
    assert bench.outputs == {f"{number:03}": f"SLOW {number}" for number in range(250)}


def test_a_second_ctrl_c_stops_at_once(bench: Bench) -> None:
    bench.fill(a="one", z=bench.hang)
    process = subprocess.Popen(bench.command(), stdout=subprocess.PIPE, text=True)
    _wait_until(lambda: bench.hanging)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # another number: two of the same might be taken for one
    process.communicate(timeout=30)
    assert process.returncode == 130


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
