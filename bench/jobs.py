"""Jobs: `etl-server transform`, from the start of the command to its end, beside what a user would do instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from etl_server.loading import load_class

from . import images, processes
from .cases import ALONE, OURS, SYNCING, XARGS, Case, Way
from .environment import BENCH, ROOT
from .results import Run

SAMPLE = 500
"""Objects that xargs is given: a process each takes too long for all of them."""
CHECKED = 64
"""Outputs that are compared with what the transform makes in this process."""
PROCESSES = 2
LOOK = 0.01
"""Seconds between two looks at a command."""
PATIENCE = 600
"""Seconds for which a run may last."""


class Bench:
    """The objects of a case, and runs over them. A context manager, which leaves the objects for the next time."""

    def __init__(self, case: Case, cache: Path) -> None:
        self._case = case
        self._served = cache / "jobs"
        """Folders, which are buckets where they are served as S3."""
        count = case.count or 0
        thumbnails = case.transform == "Thumbnail"
        kind = "photographs" if case.photographs else "images" if thumbnails else f"random-{case.size}"
        self._source = self._served / f"{kind}-{count}"
        if thumbnails:
            images.make(self._source, count, photographs=case.photographs)
        else:
            _make_random(self._source, count, case.size)
        home = ROOT / "examples" / "thumbnail.py" if thumbnails else BENCH / "transforms.py"
        self._spec = f"{home}:{case.transform}"

    def __enter__(self) -> Bench:
        self._folder = tempfile.TemporaryDirectory(dir=self._served, prefix="run-")
        self._work = Path(self._folder.name)
        # All of them stay till the end: for minutes ext4 is slow to make files where many were removed.
        self._sinks: list[tempfile.TemporaryDirectory[str]] = []
        return self

    def __exit__(self, *error: object) -> None:
        for folder in (*self._sinks, self._folder):
            folder.cleanup()

    def run(self, key: str, number: int) -> Run:
        """One run of ours, or of a peer."""
        run = Run(server=key, round=number)
        if key == ALONE:
            self._alone(run)
        elif self._case.again:
            self._again(run)
        else:
            self._whole(key, run)
        run.rate = run.objects / run.seconds
        run.mb_per_s = run.rate * sum(file.stat().st_size for file in self._source.iterdir()) / self._count / 1e6
        run.p50_ms = run.seconds * 1000
        return run

    @property
    def _count(self) -> int:
        return self._case.count or 0

    def _whole(self, key: str, run: Run) -> None:
        with ExitStack() as stack:
            self._sinks.append(tempfile.TemporaryDirectory(dir=self._served, prefix="sink-"))
            sink = Path(self._sinks[-1].name)
            source_uri, sink_uri, served_by = str(self._source), str(sink), []
            if self._case.way is Way.S3:
                from tests.storage.s3_servers import ACCESS_KEY, SECRET_KEY, RcloneServer

                os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
                # Else it would hash all that it sends, on the cores of the job; an S3 elsewhere does not.
                server = stack.enter_context(RcloneServer(self._served, 0, "--no-checksum")).wait_until_listening()
                source_uri, sink_uri = (f"s3://{each.name}?endpoint_url={server.url}" for each in (self._source, sink))
                served_by = [server.pid]
            before = processes.cpu_seconds(served_by)
            if key == XARGS:
                self._xargs(sink, run)
            elif key == OURS:
                ledger = self._work / f"{run.round}-{time.monotonic_ns()}.sqlite"
                _command([*_transform(self._spec, source_uri, sink_uri), "--ledger", str(ledger)], run)
            else:
                loop = [sys.executable, str(BENCH / "object_loop.py"), source_uri, sink_uri]
                _command([*loop, *(["--sync"] if key == SYNCING else [])], run)
            run.load_cpu = (processes.cpu_seconds(served_by) - before) / run.seconds
            run.objects = SAMPLE if key == XARGS else self._count
            self._check(sink, run)

    def _xargs(self, sink: Path, run: Run) -> None:
        names = sorted(file.name for file in self._source.iterdir())[:SAMPLE]
        script = [sys.executable, str(BENCH / "object_script.py"), str(self._source), str(sink)]
        _command(["xargs", f"-P{PROCESSES}", "-n1", *script], run, "\n".join(names))

    def _alone(self, run: Run) -> None:
        """The CPU time of the transforms, as if all cores had spent all of their time on them."""
        alone = [sys.executable, str(BENCH / "transforms_alone.py"), self._spec, str(self._source)]
        together = [
            subprocess.Popen([*alone, str(first), str(PROCESSES)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for first in range(PROCESSES)
        ]
        run.seconds = sum(float(process.communicate(timeout=PATIENCE)[0]) for process in together) / PROCESSES
        run.objects = run.checked = self._count

    def _again(self, run: Run) -> None:
        """A second run, which finds everything done. The first one is made when it is first asked for."""
        sink, ledger = self._work / "sink", self._work / "ledger.sqlite"
        command = [*_transform(self._spec, str(self._source), str(sink)), "--ledger", str(ledger)]
        if not sink.exists():
            _command(command, Run(server="", round=0))
        told = _command(command, run)
        run.objects = run.checked = self._count
        if not told.startswith(f"0 done, {self._count:,} skipped, 0 failed"):
            run.errors.append(f"expected everything to be skipped: {told.strip()}")

    def _check(self, sink: Path, run: Run) -> None:
        outputs = sorted(file.name for file in sink.iterdir() if not file.name.startswith("."))
        if len(outputs) != run.objects:
            run.errors.append(f"{len(outputs)} outputs of {run.objects} objects")
            return
        server = load_class(self._spec)()
        server.setup()
        for name in outputs[:: max(1, len(outputs) // CHECKED)]:
            run.checked += 1
            if (sink / name).read_bytes() != server.transform((self._source / name).read_bytes(), name, ""):
                run.errors.append(f"{name}: another output than expected")


def _transform(spec: str, source: str, sink: str) -> list[str]:
    command = [sys.executable, "-m", "etl_server", "transform", spec, source, sink]
    return [*command, "--workers", str(PROCESSES)]


def _command(command: Sequence[str], run: Run, stdin: str = "") -> str:
    """What a command printed. Its time, its CPU, and its own memory at the peak, are in the run."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as told:
        given.write(stdin)
        given.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=given, stdout=told, stderr=subprocess.STDOUT, cwd=ROOT, env=processes.clean_environment({})
        )
        ended = 0
        while not ended:
            run.peak_bytes = max(run.peak_bytes, processes.peak_memory([process.pid]))
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if not ended:
                time.sleep(LOOK)
        run.seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read()
    run.server_cpu = (used.ru_utime + used.ru_stime) / run.seconds
    if process.returncode:
        run.errors.append(f"exit code {process.returncode}: {text[-500:].strip()}")
    return text


def _make_random(folder: Path, count: int, size: int) -> None:
    if folder.exists():
        return
    half = folder.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for number in range(count):
        (half / f"{number:06}.bin").write_bytes(os.urandom(size))
    half.rename(folder)
