"""Jobs on a Ray cluster: real nodes, some of which are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etl_server.errors import ConfigError
from etl_server.jobs.engines.ray import check_address
from etl_server.storage.object_paths import INCOMING

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import SECRET_KEY, RcloneServer, s3_client, set_credentials
from .conftest import UPPER, Bench

pytest.importorskip("ray", reason="Ray has no wheel for this Python")

__all__ = ["bucket", "s3", "s3_server"]

OBJECT_STORE = 80 * 1024 * 1024
FAST_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,  # nodes that are only slow, on a machine with much to do, live on
    "health_check_failure_threshold": 5,
}
pytestmark = pytest.mark.timeout(300)

MORE_WAYS_TO_FAIL = """
        if data.startswith(b"kill the actor"):
            os.kill(os.getppid(), 9)
            time.sleep(1000)
"""


class Nodes:
    """A Ray cluster on this machine: a head without CPUs, and two nodes that have one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self._cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={**head, "object_store_memory": OBJECT_STORE, "_system_config": FAST_DETECTION},
        )
        self.address: str = self._cluster.address
        self._nodes = [self._add() for _ in range(2)]
        self._cluster.wait_for_nodes()

    def _add(self) -> Any:
        return self._cluster.add_node(
            num_cpus=1, object_store_memory=OBJECT_STORE, include_log_monitor=False, wait=False
        )

    def workers(self, number: int) -> list[int]:
        """The process ids of the actors on a node."""
        found = []
        for child in children(self._raylet(number)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::Worker"):
                    found.append(child)
        return found

    def _raylet(self, number: int) -> int:
        pid: int = self._nodes[number].all_processes["raylet"][0].process.pid
        return pid

    def kill(self, number: int) -> None:
        """kill -9 of all that a node consists of."""
        raylet = self._raylet(number)
        for process in [raylet, *children(raylet)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def replace(self, number: int) -> None:
        """Another node in place of one that was killed."""
        self._cluster.remove_node(self._nodes[number])
        self._nodes[number] = self._add()
        self._cluster.wait_for_nodes()

    def close(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cleared = [name for name in os.environ if name.startswith(("AWS_", "ETL_", "RAY_"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in cleared:
            patch.delenv(name)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Nodes()
    yield cluster
    cluster.close()


@pytest.fixture
def ray(nodes: Nodes) -> list[str]:
    """The options for a run on the cluster."""
    return ["--engine", "ray", "--ray-address", nodes.address]


def children(process: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def whole(bench: Bench) -> dict[str, str]:
    """The outputs that are not being written."""
    return (
        {name: content for name, content in bench.outputs.items() if INCOMING not in name}
        if bench.sink.is_dir()
        else {}
    )


def statuses(bench: Bench) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(bench.ledger)) as db:
        return db.execute("SELECT source, status FROM objects ORDER BY source").fetchall()


def test_a_lost_worker_and_a_lost_node_lose_no_object(bench: Bench, nodes: Nodes, ray: list[str]) -> None:
    bench.spec.write_text(UPPER.replace("time.sleep(0.5)", "time.sleep(0.02)"))
    objects = {f"dir{number % 3}/{number:03}": f"slow object {number} " * 20 for number in range(300)}
    bench.fill(**objects)
    process = subprocess.Popen(bench.command(*ray), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(whole(bench)) > 40, process)
    (worker,) = nodes.workers(1)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(whole(bench)) > 120, process)
    nodes.kill(0)
    out, err = process.communicate(timeout=90)
    nodes.replace(0)
    assert process.returncode == 0, out + err
    assert out.startswith("300 done, 0 skipped, 0 failed")
    assert err.count("a Ray worker was lost, and others do its work: ") == 2
    assert bench.outputs == {name: content.upper() for name, content in objects.items()}
    assert statuses(bench) == [(name, "done") for name in sorted(objects)]
    assert bench.events(*ray)["skipped"] == 300
    assert bench.events()["skipped"] == 300


def test_each_engine_goes_on_where_the_other_has_stopped(bench: Bench, ray: list[str]) -> None:
    bench.fill(a="one", b="bad", c="three")
    assert bench.events("--match", "a")["done"] == 1
    end = bench.events(*ray, code=1)
    assert (end["done"], end["skipped"], end["failed"]) == (1, 1, 1)
    bench.fill(b="good", d="four")
    assert bench.events("--only-failed")["done"] == 1
    end = bench.events(*ray)
    assert (end["done"], end["skipped"]) == (1, 3)
    assert bench.events()["skipped"] == 4
    assert bench.outputs == {"a": "ONE", "b": "GOOD", "c": "THREE", "d": "FOUR"}


def test_whatever_a_transform_does_fails_its_object_alone(bench: Bench, ray: list[str]) -> None:
    bench.spec.write_text(UPPER.replace("        return", MORE_WAYS_TO_FAIL + "        return"))
    objects = {f"ok{number}": f"fine {number}" for number in range(20)}
    bench.fill(**objects, a="bad", hung="hang", killer="segfault", murderer="kill the actor")
    done = bench.run(*ray, "--object-timeout", "1")
    assert done.returncode == 1
    assert done.stdout.startswith("20 done, 0 skipped, 4 failed")
    assert "  a: Processing error: this one is bad (" in done.stdout
    assert "  hung: no result within --object-timeout=1" in done.stdout
    assert "  killer: its process was killed by SIGSEGV, twice" in done.stdout
    assert "  murderer: its Ray worker was lost 3 times: " in done.stdout
    assert bench.outputs == {name: content.upper() for name, content in objects.items()}
    assert [source for source, status in statuses(bench) if status == "failed"] == ["a", "hung", "killer", "murderer"]


def test_ctrl_c_finishes_what_is_begun_and_a_second_one_stops_at_once(bench: Bench, ray: list[str]) -> None:
    bench.fill(**{f"{number:03}": f"slow {number}" for number in range(250)})
    process = subprocess.Popen(bench.command(*ray), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: whole(bench), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped (interrupted)" in out.splitlines()[-1]
    made = len(bench.outputs)
    assert 0 < made < 250
    bench.fill(**{f"{number:03}": bench.hang for number in range(250) if f"{number:03}" not in bench.outputs})
    process = subprocess.Popen(bench.command(*ray), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: bench.hanging, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # another number: two of the same might be taken for one
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in bench.hanging)
    assert out.startswith(f"0 done, {made} skipped, 0 failed")


INTERRUPTED_AT_ITS_END = """
import os, signal, sys, threading, time
import ray
from etl_server.cli import main

def interrupt(twice):
    while not ray.is_initialized():
        time.sleep(0.001)
    if twice:
        os.kill(os.getpid(), signal.SIGINT)
    while ray.is_initialized():
        time.sleep(0.001)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, args=(sys.argv.pop(1) == "twice",), daemon=True).start()
main()
"""


def interrupted_at_its_end(command: list[str], times: str) -> subprocess.CompletedProcess[str]:
    """A command that gets SIGINT while it leaves the cluster; `twice`: once it has joined that, too."""
    own = [sys.executable, "-c", INTERRUPTED_AT_ITS_END, times]
    return subprocess.run([*own, *command[3:]], capture_output=True, text=True, timeout=60)


def test_ctrl_c_while_a_job_leaves_the_cluster_keeps_its_end(bench: Bench, ray: list[str], tmp_path: Path) -> None:
    bench.fill(a="one", b="two")
    report = tmp_path / "report.jsonl"
    done = interrupted_at_its_end(bench.command(*ray, "--report", str(report)), "once")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("2 done, 0 skipped, 0 failed")
    assert "stopped (interrupted), 0 to go" in done.stdout
    assert report.read_text().count("\n") == 2
    assert bench.outputs == {"a": "ONE", "b": "TWO"}


def test_a_second_ctrl_c_at_a_jobs_beginning_ends_it_in_peace(bench: Bench, ray: list[str]) -> None:
    bench.fill(a="one")
    done = interrupted_at_its_end(bench.command(*ray), "twice")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped (interrupted)" in done.stdout


def test_the_workers_of_a_command_that_is_killed_end(bench: Bench, nodes: Nodes, ray: list[str]) -> None:
    bench.fill(**{f"{number:03}": f"slow {number}" for number in range(60)})
    process = subprocess.Popen(bench.command(*ray), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: whole(bench), process)
    running = [child for node in (0, 1) for worker in nodes.workers(node) for child in children(worker)]
    assert running
    process.kill()
    process.communicate()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in running))
    with contextlib.closing(sqlite3.connect(bench.ledger)) as db:
        assert db.execute("SELECT littered FROM about").fetchone() == (2,)


def test_credentials_and_notes_of_uploads_travel(
    bench: Bench, ray: list[str], s3_server: RcloneServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    bench.spec.write_text(
        "import os\nfrom etl_server import ETLServer\n\nclass Parts(ETLServer):\n"
        "    def transform_stream(self, reader, path, etl_args):\n"
        "        for _ in range(8):\n            yield bytes(8_000_000)\n"
        "        if path == 'broken':\n            os._exit(7)\n"
    )
    bench.fill(broken="x", whole="x")
    command = bench.command(*ray)
    command[command.index(str(bench.sink))] = f"s3://{bucket}/out?endpoint_url={s3_server.url}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 done, 0 skipped, 1 failed")
    assert SECRET_KEY not in done.stdout + done.stderr
    client = s3_client(s3_server.url)
    assert client.head_object(Bucket=bucket, Key="out/whole")["ContentLength"] == 64_000_000
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    client.close()


def test_without_an_address_ray_runs_on_this_machine(bench: Bench) -> None:
    bench.spec.write_text(UPPER.replace("return data", "print('seen', path)\n        return data"))
    bench.fill(a="one", b="two")
    end = bench.run("--engine", "ray", "--json")
    assert end.returncode == 0, end.stderr
    assert all(line.startswith("{") for line in end.stdout.splitlines())
    assert "seen a" in end.stderr
    assert bench.outputs == {"a": "ONE", "b": "TWO"}


def test_a_missing_ray_is_told_in_one_line(bench: Bench) -> None:
    bench.fill(a="one")
    code = "import sys; sys.modules['ray'] = None; sys.argv[0] = 'etl-server'; from etl_server.cli import main; main()"
    command = [sys.executable, "-c", code, *bench.command("--engine", "ray")[3:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "etl-server: --engine ray: Ray is not installed: expected pip install 'etl-server[ray]'\n"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "somewhere", "127.0.0.1:port", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"^--ray-address {address}: expected host:port or auto$"):
        check_address(address)


def test_ray_client_is_refused_in_favour_of_a_submitted_job() -> None:
    with pytest.raises(ConfigError, match="ray job submit -- etl-server transform"):
        check_address("ray://127.0.0.1:10001")


def test_a_cluster_that_is_not_there_is_told_in_one_line(bench: Bench) -> None:
    bench.fill(a="one")
    done = bench.run("--engine", "ray", "--ray-address", "127.0.0.1:9")
    assert done.returncode == 2
    begin = "etl-server: --ray-address 127.0.0.1:9: expected a Ray cluster that can be reached: "
    assert done.stderr.startswith(begin)
    assert done.stderr.count("\n") == 1


def test_an_address_without_ray_is_refused(bench: Bench) -> None:
    done = bench.run("--ray-address", "auto")
    assert done.returncode == 2
    assert done.stderr == "etl-server: --ray-address auto: expected --engine ray with it\n"
