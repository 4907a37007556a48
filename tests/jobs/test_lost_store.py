"""A store that goes away in the middle of a job."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ..storage.s3_servers import RcloneServer
from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials"]

OBJECTS = 60


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder of buckets."""
    folder = tmp_path / "buckets"
    (folder / "sink").mkdir(parents=True)
    return folder


@pytest.fixture
def expected(bench: Bench) -> dict[str, str]:
    bench.fill(**{f"{number:02}": f"slow {number}" for number in range(OBJECTS)})
    return {f"{number:02}": f"SLOW {number}" for number in range(OBJECTS)}


def begin(bench: Bench, served: Path, server: RcloneServer, *options: str) -> subprocess.Popen[str]:
    """A job that has stored its first output."""
    process = subprocess.Popen(
        command(bench, served, server, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: any((served / "sink").iterdir()))
    return process


def command(bench: Bench, served: Path, server: RcloneServer, *options: str) -> list[str]:
    bench.sink = served / "sink"
    words = bench.command(*options)
    words[words.index(str(bench.sink))] = f"s3://sink?endpoint_url={server.url}"
    return words


def again(served: Path, server: RcloneServer) -> RcloneServer:
    """The server once more, at the same address."""
    return RcloneServer(served, urlsplit(server.url).port or 0)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_waits_for_a_store_that_comes_back(bench: Bench, served: Path, expected: dict[str, str]) -> None:
    with RcloneServer(served) as server:
        process = begin(bench, served, server.wait_until_listening())
    time.sleep(1)
    with again(served, server).wait_until_listening():
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert bench.outputs == expected


def test_a_job_that_lost_its_store_is_finished_by_the_next_run(
    bench: Bench, served: Path, expected: dict[str, str]
) -> None:
    with RcloneServer(served) as server:
        process = begin(bench, served, server.wait_until_listening(), "--fail-fast")
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "stopped (a failure, and --fail-fast)" in out
    assert bench.outputs.items() < expected.items()
    with again(served, server).wait_until_listening():
        done = subprocess.run(command(bench, served, server), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bench.outputs == expected
