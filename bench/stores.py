"""Object stores: each transfer in a process of its own, over S3 that rclone serves out of memory."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .cases import MIB, Case
from .environment import ROOT
from .processes import Process, clean_environment, pinned
from .results import Run
from .servers import ServerProblemError, free_port
from .transfers import BIG, BUCKET, UP

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_DEFAULT_REGION": "us-east-1"}
_MEMORY = Path("/dev/shm")
_PATIENCE = 600
_START_SECONDS = 30


class Bucket(NamedTuple):
    """A bucket, and the folder that it is, with room for files beside it."""

    url: str
    folder: Path
    beside: Path


@contextmanager
def bucket_of(case: Case, cores: tuple[int, ...], logs: Path) -> Iterator[Bucket]:
    """A bucket with what the case reads: an object of its size, or `count` empty ones."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        folder = Path(name) / "s3" / BUCKET
        folder.mkdir(parents=True)
        if case.count is None:
            with (folder / BIG).open("wb") as file:
                for start in range(0, case.size, MIB):
                    file.write(os.urandom(min(MIB, case.size - start)))
        else:
            for number in range(case.count):
                (folder / f"object-{number:06}").touch()
        port = free_port()
        key = ",".join(list(CREDENTIALS.values())[:2])
        rclone = str(Path(sys.executable).with_name("rclone"))
        command = [rclone, "serve", "s3", str(folder.parent), f"--addr=127.0.0.1:{port}", f"--auth-key={key}"]
        with Process(
            [*command, "--config="], cores=cores, log=logs / f"{case.name}-rclone.log", environment={}, cwd=ROOT
        ) as server:
            _wait_until_listening(server)
            yield Bucket(f"http://127.0.0.1:{port}", folder, Path(name))


def transfer(case: Case, key: str, bucket: Bucket, cores: tuple[int, ...], number: int) -> Run:
    """One run of the case's action, ours or boto3's; what has come is compared with what was sent."""
    file = bucket.folder / BIG if case.store == "upload" else bucket.beside / "down"
    done = subprocess.run(
        pinned([sys.executable, "-m", "bench.transfers", case.store, key, bucket.url, str(file)], cores),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        cwd=ROOT,
        env=clean_environment(CREDENTIALS),
    )
    if done.returncode:
        return Run(server=key, round=number, errors=[done.stderr.strip() or f"exit code {done.returncode}"])
    seen = json.loads(done.stdout)
    run = Run(server=key, round=number, objects=seen["objects"], seconds=seen["seconds"], peak_bytes=seen["peak_bytes"])
    run.p50_ms = run.seconds * 1000
    run.rate = run.objects / run.seconds
    run.mb_per_s = run.rate * case.size / 1e6 if case.count is None else 0
    expected = case.count or 1
    if run.objects != expected:
        run.errors.append(f"{run.objects} objects, expected {expected}")
    if seen["bytes"] not in (None, case.size):
        run.errors.append(f"{seen['bytes']} bytes, expected {case.size}")
    copy = bucket.folder / UP if case.store == "upload" else file
    if case.store in ("upload", "download"):
        if not filecmp.cmp(bucket.folder / BIG, copy, shallow=False):
            run.errors.append("what has come is not what was sent")
        copy.unlink()
    run.checked = 1
    return run


def _wait_until_listening(server: Process) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while "Starting s3 server" not in server.tail():
        if not server.alive or time.monotonic() > deadline:
            raise ServerProblemError(f"rclone does not serve:\n{server.tail()}")
        time.sleep(0.01)
