"""Classes that want the path of a file: `ETL_DIRECT_FQN`."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from etl_server.storage import open_store

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer
from .conftest import Bench
from .test_stores import _credentials

__all__ = ["_credentials", "bucket", "s3", "s3_server"]

WORKERS = 1

SYNC = """
import json, os, pathlib, time
from etl_server import ETLServer

class ByPath(ETLServer):
    def transform(self, data, path, etl_args):
        content = pathlib.Path(data).read_text()
        while content == "hang":
            time.sleep(1)
        self.folder = pathlib.Path(data).parent
        return json.dumps([data, path, content]).encode()

    def teardown(self):
        if "COPIES_LEFT" in os.environ:
            pathlib.Path(os.environ["COPIES_LEFT"]).write_text(str(os.listdir(self.folder)))
"""
ASYNC = SYNC.replace("    def transform", "    async def transform")
STREAM = """
from etl_server import ETLServer

class Upper(ETLServer):
    def transform_stream(self, reader, path, etl_args):
        yield reader.read().upper()
"""
INLINE = SYNC.replace("    def transform", '    execution = "inline"\n\n    def transform')


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies come to be."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("ETL_DIRECT_FQN", "true")
    return folder


@pytest.mark.parametrize("body", [SYNC, ASYNC, INLINE], ids=["sync", "async", "inline"])
def test_of_a_file_the_transform_gets_its_own_path(bench: Bench, body: str, temporary: Path) -> None:
    bench.spec.write_text(body)
    bench.put("dir/a.txt", "one")
    bench.fill(b="two")
    (bench.source / "link").symlink_to(bench.source / "b")
    end = bench.events()
    assert (end["done"], end["bytes_in"]) == (3, 9)
    assert {name: json.loads(output) for name, output in bench.outputs.items()} == {
        "dir/a.txt": [str(bench.source / "dir" / "a.txt"), "dir/a.txt", "one"],
        "b": [str(bench.source / "b"), "b", "two"],
        "link": [str(bench.source / "b"), "link", "two"],
    }
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("body", [SYNC, ASYNC], ids=["sync", "async"])
def test_of_another_object_it_gets_that_of_a_copy_which_does_not_stay(
    bench: Bench, body: str, s3_server: RcloneServer, bucket: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.spec.write_text(body)
    left = bench.spec.with_name("left")
    monkeypatch.setenv("COPIES_LEFT", str(left))
    source = f"s3://{bucket}/raw?endpoint_url={s3_server.url}"
    names = ["dir/a.txt", "b", ".hidden", "odd.na me"]
    with open_store(source) as store:
        for name in names:
            store.put_object(name, name.encode())
    subprocess.run(from_store(bench, source), check=True, timeout=60)
    given = {name: json.loads(output) for name, output in bench.outputs.items()}
    assert {name: output[1:] for name, output in given.items()} == {name: [name, name] for name in names}
    copies = [Path(output[0]) for output in given.values()]
    assert len(set(copies)) == 4
    assert left.read_text() == "[]"
    assert all(temporary in copy.parents for copy in copies)
    assert sorted(copy.suffix for copy in copies) == ["", "", "", ".txt"]
    assert not list(temporary.iterdir())


def test_a_stream_gets_a_reader(bench: Bench) -> None:
    bench.spec.write_text(STREAM)
    bench.fill(a="one")
    assert bench.events()["done"] == 1
    assert bench.outputs == {"a": "ONE"}


def test_an_object_that_is_gone_fails_alone(bench: Bench) -> None:
    bench.spec.write_text(SYNC)
    bench.fill(a="one")
    done = bench.run("--list", "-", stdin="a\ngone\n")
    assert done.returncode == 1
    assert "  gone: FileNotFoundError" in done.stdout
    assert list(bench.outputs) == ["a"]


def test_the_next_run_removes_the_copies_of_a_killed_one(
    bench: Bench, s3_server: RcloneServer, bucket: str, temporary: Path
) -> None:
    bench.spec.write_text(SYNC)
    source = f"s3://{bucket}/raw?endpoint_url={s3_server.url}"
    with open_store(source) as store:
        store.put_object("a", b"hang")
        process = subprocess.Popen(from_store(bench, source))
        deadline = time.monotonic() + 60
        while not list(temporary.glob("*/*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(temporary.iterdir())) == 1
        other = temporary / f"etl-server-{'0' * 16}-x"
        other.mkdir()
        store.put_object("a", b"fine")
    subprocess.run(from_store(bench, source), check=True, timeout=60)
    assert list(temporary.iterdir()) == [other]
    assert list(bench.outputs) == ["a"]


def from_store(bench: Bench, source: str) -> list[str]:
    command = bench.command()
    command[command.index(str(bench.source))] = source
    return command
