"""Jobs from every kind of store to every other, over a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl_server.storage import open_store

from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer, set_credentials
from .conftest import Bench

__all__ = ["bucket", "s3", "s3_server"]

OBJECTS = {"a.txt": b"one", "sub dir/b #1?.txt": b"two", "ünï.txt": b"", "large.txt": b"x" * 9_000_000}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)


def transform(spec: Path, source: str, sink: str, ledger: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "etl_server",
            "transform",
            str(spec),
            source,
            sink,
            "--ledger",
            str(ledger),
            "--ext",
            "txt:up",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("kinds", [("file", "file"), ("file", "s3"), ("s3", "file"), ("s3", "s3")])
def test_objects_get_from_any_store_to_any_other(
    bench: Bench, kinds: tuple[str, str], s3_server: RcloneServer, bucket: str, tmp_path: Path
) -> None:
    places = {
        ("file", 0): str(tmp_path / "source"),
        ("file", 1): str(tmp_path / "sink"),
        ("s3", 0): f"s3://{bucket}/raw?endpoint_url={s3_server.url}",
        ("s3", 1): f"s3://{bucket}/out?endpoint_url={s3_server.url}",
    }
    source, sink = places[kinds[0], 0], places[kinds[1], 1]
    with open_store(source) as store:
        for name, content in OBJECTS.items():
            store.put_object(name, content)
    done = transform(bench.spec, source, sink, bench.ledger)
    assert done.returncode == 0, done.stdout + done.stderr
    with open_store(sink) as store:
        outputs = {info.name: store.open_object(info.name).read() for info in store.list_objects()}
    assert outputs == {name.replace(".txt", ".up"): content.upper() for name, content in OBJECTS.items()}
    again = transform(bench.spec, source, sink, bench.ledger)
    assert again.stdout.startswith("0 done, 4 skipped, 0 failed")


def test_a_name_that_a_store_cannot_have_fails_alone(bench: Bench, s3_server: RcloneServer, bucket: str) -> None:
    bench.fill(a="one")
    (bench.source / os.fsdecode(b"caf\xe9")).write_text("two")
    done = transform(bench.spec, str(bench.source), f"s3://{bucket}/out?endpoint_url={s3_server.url}", bench.ledger)
    assert done.returncode == 1
    assert "1 done, 0 skipped, 1 failed" in done.stdout
    assert "  caf\\udce9: " in done.stdout
