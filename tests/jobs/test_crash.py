"""kill -9 at random moments of random processes, then a run that finishes the job."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from ..storage.conftest import s3_server
from ..storage.s3_servers import RcloneServer
from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials", "s3_server"]

OBJECTS = 400
KILLS = int(os.environ.get("JOBS_TEST_KILLS", "12"))
"""How often a run is killed; more of them for a long test."""

SLOWER = """
import time
from etl_server import ETLServer

class Slower(ETLServer):
    def transform(self, data, path, etl_args):
        time.sleep(0.002)
        return data[::-1] * 40
"""


@pytest.mark.parametrize("served", [False, True], ids=["files", "s3"])
def test_whatever_is_killed_the_next_run_finishes_the_job(
    bench: Bench, s3_server: RcloneServer, tmp_path: Path, served: bool
) -> None:
    bench.spec.write_text(SLOWER)
    command = bench.command()
    if served:
        # Folders of what is served are buckets.
        bench.source, bench.sink = (s3_server.folder / f"{name}-{uuid.uuid4().hex}" for name in ("source", "sink"))
        for place in (bench.source, bench.sink):
            place.mkdir()
            command[command.index(str(tmp_path / place.name.partition("-")[0]))] = (
                f"s3://{place.name}?endpoint_url={s3_server.url}"
            )
    bench.fill(**{f"folder{number % 7}/{number:04}.txt": f"object {number} " * 50 for number in range(OBJECTS)})
    expected = {
        str(file.relative_to(bench.source)): file.read_text()[::-1] * 40
        for file in bench.source.rglob("*")
        if file.is_file()
    }
    chance = random.Random(time.time_ns())
    for number in range(KILLS):
        # Everything is to be done again in some of the runs, so that there is always something to interrupt.
        process = subprocess.Popen(
            [*command, *(["--force"] if number % 3 == 2 else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.3, 1.6))
        children = _children(process.pid)
        if children and chance.random() < 0.5:
            _kill(chance.choice(children))
            time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        process.wait()
    end = last_event(command)
    assert end["failed"] == 0
    assert end["done"] + end["skipped"] == OBJECTS
    assert bench.outputs == expected
    assert last_event(command)["skipped"] == OBJECTS


def last_event(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=100, check=True)
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_a_second_run_on_one_ledger_is_refused(bench: Bench) -> None:
    bench.fill(a="slow", b="hang")
    process = subprocess.Popen(bench.command(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not bench.sink.is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = bench.run()
        assert refused.returncode == 2
        assert f"another run uses it (process {process.pid})" in refused.stderr
    finally:
        process.kill()
        process.wait()


def _children(process: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
