"""Outputs that are called after their content, when the run is killed, and when they are large."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer, s3_client
from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials", "bucket", "s3", "s3_server"]

NEVER_THE_SAME = """
import os, pathlib, signal
from etl_server import ETLServer

class NeverTheSame(ETLServer):
    def transform(self, data, path, etl_args):
        if not os.path.exists(etl_args):
            os.kill(os.getppid(), signal.SIGSTOP)
        return data if data.startswith(b"fixed") else os.urandom(20)
"""

LARGE = """
import os, re
from etl_server import ETLServer

class Large(ETLServer):
    def transform_stream(self, reader, path, etl_args):
        for number in range(200):
            yield bytes([number]) * (1 << 20)

    def teardown(self):
        with open("/proc/self/status") as status:
            peak = re.search("VmHWM: *([0-9]+) kB", status.read().replace("\\t", " ")).group(1)
        with open(os.environ["PEAK_FILE"], "w") as file:
            file.write(peak)
"""


def kill_before_it_is_known(command: list[str], stored: int, folder: Path) -> list[Path]:
    """Kill a job that its transform has stopped, when its worker has stored so many outputs; these are returned."""
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    try:
        while len(found := outputs(folder)) < stored:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return found


def outputs(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]


def test_an_output_that_a_killed_run_stored_and_no_ledger_knows_is_removed(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(NEVER_THE_SAME)
    bench.fill(**{"a.bin": "one", "b.bin": "two"})
    go_on = tmp_path / "go on"
    options = ("--router", "content-hash", "--etl-args", str(go_on), "--workers", "1")
    orphans = kill_before_it_is_known(bench.command(*options), 2, bench.sink)
    go_on.touch()
    assert bench.events(*options)["done"] == 2
    assert len(outputs(bench.sink)) == 2
    assert set(outputs(bench.sink)).isdisjoint(orphans)
    assert not Path(f"{bench.ledger}.uploads").exists()
    assert bench.events(*options)["skipped"] == 2


def test_what_had_that_name_before_the_killed_run_stays(bench: Bench, tmp_path: Path) -> None:
    bench.spec.write_text(NEVER_THE_SAME)
    name = hashlib.sha256(b"fixed").hexdigest() + ".bin"
    bench.sink.mkdir()
    (bench.sink / name).write_text("fixed")
    bench.fill(**{"a.bin": "fixed", "b.bin": "two"})
    go_on = tmp_path / "go on"
    options = ("--router", "content-hash", "--etl-args", str(go_on), "--workers", "1")
    kill_before_it_is_known(bench.command(*options), 2, bench.sink)
    (bench.source / "a.bin").unlink()
    go_on.touch()
    assert bench.events(*options)["done"] == 1
    assert len(outputs(bench.sink)) == 2
    assert (bench.sink / name).read_text() == "fixed"


def test_in_s3_too(bench: Bench, s3_server: RcloneServer, bucket: str, tmp_path: Path) -> None:
    bench.spec.write_text(NEVER_THE_SAME)
    bench.fill(**{"a.bin": "one", "b.bin": "two"})
    go_on = tmp_path / "go on"
    command = bench.command("--router", "content-hash", "--etl-args", str(go_on), "--workers", "1")
    command[command.index(str(bench.sink))] = f"s3://{bucket}/out?endpoint_url={s3_server.url}"
    folder = s3_server.folder / bucket / "out"
    orphans = {file.name for file in kill_before_it_is_known(command, 2, folder)}
    go_on.touch()
    subprocess.run(command, check=True, timeout=60)
    client = s3_client(s3_server.url)
    left = {each["Key"].removeprefix("out/") for each in client.list_objects_v2(Bucket=bucket)["Contents"]}
    client.close()
    assert len(left) == 2
    assert left.isdisjoint(orphans)


def test_a_large_stream_waits_for_its_name_on_disk(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.spec.write_text(LARGE)
    bench.fill(**{"a.bin": "one"})
    peak = tmp_path / "peak"
    monkeypatch.setenv("PEAK_FILE", str(peak))
    assert bench.events("--router", "content-hash")["done"] == 1
    content = b"".join(bytes([number]) * (1 << 20) for number in range(200))
    (output,) = bench.sink.iterdir()
    assert output.name == hashlib.sha256(content).hexdigest() + ".bin"
    assert output.read_bytes() == content
    assert int(peak.read_text()) < 150 * 1024
