"""What runs that were killed have left half-written, and what happens to it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl_server.jobs.run import LOST_STORE
from etl_server.storage.object_paths import INCOMING

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer, s3_client
from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials", "bucket", "s3", "s3_server"]

WORKERS = 1

ENDLESS = """
import os, time
from etl_server import ETLServer

class Endless(ETLServer):
    def transform_stream(self, reader, path, etl_args):
        yield reader.read() * 1000
        while not os.path.exists(etl_args):
            yield bytes(100_000)
            time.sleep(0.005)
"""

STEADY = """
import time
from etl_server import ETLServer

class Steady(ETLServer):
    def transform(self, data, path, etl_args):
        time.sleep(0.01)
        return data
"""


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], object]) -> None:
    """kill -9 as soon as the condition holds."""
    deadline = time.monotonic() + 60
    try:
        while not condition():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def incoming(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{INCOMING}*"))


def test_the_next_run_removes_the_files_that_a_killed_one_left(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(ENDLESS)
    bench.put("dir/a", "object")
    done = tmp_path / "done"
    process = subprocess.Popen(bench.command("--etl-args", str(done)))
    kill_when(process, lambda: incoming(bench.sink))
    assert len(incoming(bench.sink)) == 1
    other = bench.sink / "dir" / f"{INCOMING}-{'0' * 16}-1"
    other.write_text("of another job that is running")
    done.touch()
    assert bench.events("--etl-args", str(done))["done"] == 1
    assert incoming(bench.sink) == [other]
    assert bench.outputs["dir/a"] == "object" * 1000


def test_a_worker_that_dies_leaves_no_file(bench: Bench) -> None:
    bench.spec.write_text(ENDLESS.replace("time.sleep(0.005)", "os._exit(7)"))
    bench.put("dir/a", "object")
    assert bench.events("--etl-args", "/nowhere", code=1)["failed"] == 1
    assert bench.outputs == {}


def test_the_next_run_aborts_the_uploads_that_a_killed_one_left(
    bench: Bench, s3_server: RcloneServer, bucket: str, tmp_path: Path
) -> None:
    bench.spec.write_text(ENDLESS)
    bench.put("a", "object")
    done = tmp_path / "done"
    client = s3_client(s3_server.url)
    foreign = client.create_multipart_upload(Bucket=bucket, Key="out/a")["UploadId"]

    def uploads() -> set[str]:
        return {each["UploadId"] for each in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())}

    command = bench.command("--etl-args", str(done))
    command[command.index(str(bench.sink))] = f"s3://{bucket}/out?endpoint_url={s3_server.url}"
    journal = Path(f"{bench.ledger}.uploads")
    process = subprocess.Popen(command)
    kill_when(process, lambda: len(uploads()) > 1 and journal.exists())
    assert len(uploads()) == 2
    done.touch()
    subprocess.run(command, check=True, timeout=60)
    assert uploads() == {foreign}
    assert not journal.exists()
    assert client.get_object(Bucket=bucket, Key="out/a")["Body"].read() == b"object" * 1000
    client.close()


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[None]:
    """The sink is a disk of 1 MiB."""
    bench.sink.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(bench.sink)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root, in a container that may")
    yield
    subprocess.run(["umount", str(bench.sink)], check=True)


def enlarge(bench: Bench) -> None:
    subprocess.run(["mount", "-o", "remount,size=50m", str(bench.sink)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_stops_nothing_but_what_does_not_fit(bench: Bench) -> None:
    expected = {f"{number:02}": f"{number:02}" * 50_000 for number in range(20)}
    bench.fill(**expected)
    end = bench.events(code=1)
    assert 0 < end["failed"] < 20
    assert "No space left" in bench.run().stdout
    assert bench.outputs.items() <= expected.items()
    enlarge(bench)
    again = bench.events()
    assert again["done"] + again["skipped"] == 20
    assert bench.outputs == expected


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_stays_full_counts_as_lost_and_stops_the_job(bench: Bench) -> None:
    bench.spec.write_text(STEADY)
    expected = {f"{number:03}": f"{number:03}" * 20_000 for number in range(8 * LOST_STORE)}
    bench.fill(**expected)
    end = bench.events(code=1)
    assert end["stopped"].startswith("a store is lost: ")
    assert "No space left" in end["stopped"]
    assert end["failed"] >= LOST_STORE
    assert end["done"] > 0
    assert end["pending"] > 0
    assert bench.outputs.items() <= expected.items()
    enlarge(bench)
    again = bench.events()
    assert again["done"] + again["skipped"] == len(expected)
    assert bench.outputs == expected
