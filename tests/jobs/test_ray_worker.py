"""What runs on the nodes of a Ray cluster, without a cluster."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl_server.config import Settings
from etl_server.jobs.engines.ray_worker import Order, Worker, versions
from etl_server.jobs.naming import Naming
from etl_server.jobs.worker import WorkerConfig
from etl_server.loading import make_server
from etl_server.storage import Owner

from .conftest import Bench


def order(bench: Bench, source: Path | None = None, token: Path | None = None) -> bytes:
    make = functools.partial(make_server, str(bench.spec))
    owner = Owner("0" * 16, Path("/nowhere/journal"))
    config = WorkerConfig(make, str(bench.source), str(bench.sink), Naming(), "", 0, {}, owner)
    return pickle.dumps(Order(config, Settings.load(), None, source, token))


@pytest.mark.parametrize("what", ["Python", "etl_server", "cloudpickle"])
def test_a_node_with_another_version_refuses(bench: Bench, what: str) -> None:
    refused = Worker().begin(versions() | {what: "0.0"}, {}, b"what another version has written")
    assert refused.startswith("the Ray node ")
    assert refused.endswith(f" has {what} {versions()[what]}, expected 0.0 as here")


def test_a_node_that_does_not_see_the_sources_refuses(bench: Bench, tmp_path: Path) -> None:
    refused = Worker().begin(versions(), {}, order(bench, source=tmp_path / "elsewhere"))
    assert refused.startswith(f"{tmp_path / 'elsewhere'}: the Ray node ")
    assert refused.endswith("expected one that all nodes share")


def test_a_node_that_does_not_see_where_the_outputs_go_refuses(bench: Bench, tmp_path: Path) -> None:
    """Else they would be on the nodes' own disks."""
    refused = Worker().begin(versions(), {}, order(bench, source=bench.source, token=tmp_path / "token"))
    assert refused.startswith(f"{tmp_path}: the Ray node ")


FORGOTTEN = """
import sys, time
from pathlib import Path
from etl_server.jobs.engines import ray_worker
from etl_server.jobs.ledger import Task

ray_worker.LEASE = ray_worker.LEASE_GRACE + 2
worker = ray_worker.Worker()
worker.begin(ray_worker.versions(), {}, Path(sys.argv[1]).read_bytes())
while not Path(sys.argv[2]).exists():
    worker.exchange([Task(1, "a", "a", 4)] if not worker._engine.in_flight else [], False)
time.sleep(1000)
"""


def test_a_worker_that_is_forgotten_ends_and_so_does_its_transform(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(
        "import os, time\nfrom etl_server import ETLServer\n\nclass Hang(ETLServer):\n"
        "    def transform(self, data, path, etl_args):\n"
        "        with open(data.decode(), 'w') as file:\n            file.write(str(os.getpid()))\n"
        "        time.sleep(1000)\n"
    )
    started = tmp_path / "started"
    bench.fill(a=str(started))
    (tmp_path / "order").write_bytes(order(bench))
    process = subprocess.Popen([sys.executable, "-c", FORGOTTEN, str(tmp_path / "order"), str(started)])
    try:
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{started.read_text()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
