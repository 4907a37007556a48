"""One server under load once: a function for each way of measuring."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from . import processes
from .cases import CEILING, FASTAPI, LOOP, MIB, OURS, PYTHON, Case, Generator, Way
from .environment import ROOT, Environment
from .load import Generators, Job, Seen, WrkSeen, job_for, plain_loops, spent
from .results import Run
from .servers import Cores, Server, ServerProblemError, Target

SAMPLES_PER_SECOND = 20
"""Answers of which the content is looked at while wrk, which looks at none, makes the load."""
PROBES_PER_SECOND = 20
PROBE_PATIENCE = 20
IMPORTS = 5
"""Interpreters that are started for one number of the import case."""


@dataclass
class Stage:
    """What the cases are run on."""

    environment: Environment
    cores: Cores
    logs: Path
    seconds: float
    """Of one run."""

    def generators(self, cores: tuple[int, ...] | None = None) -> Generators:
        """The load generators, on the load's core where no other is named."""
        return Generators(self.environment, cores or self.cores.load)

    @property
    def both(self) -> tuple[int, ...]:
        """The server's and the load's core."""
        return self.cores.load + self.cores.server


class Meter:
    """Takes the memory and the CPU time of a server, and of what loads it, between its start and `fill`.

    `cores` are the server's; with `shared` the load is on them too.
    """

    def __init__(
        self, server: Server | None, target: Target | None, cores: tuple[int, ...], *, shared: bool = False
    ) -> None:
        self._server, self._target, self._cores, self._shared = server, target, cores, shared
        processes.reset_peak(self._pids())
        self._before = self._now()

    def _pids(self) -> list[int]:
        return self._server.pids() if self._server else []

    def _now(self) -> tuple[float, float, float, float]:
        target = processes.cpu_seconds(self._target.pids()) if self._target else 0
        server = processes.cpu_seconds(self._pids())
        busy = sum(processes.core_seconds(core) for core in self._cores)
        return time.monotonic(), server, spent() + target, busy

    def fill(self, run: Run) -> None:
        """Write down what was used since the start."""
        elapsed, server, load, busy = (after - before for after, before in zip(self._now(), self._before, strict=True))
        run.peak_bytes = processes.peak_memory(self._pids())
        run.server_cpu = server / elapsed
        run.load_cpu = load / elapsed
        run.other_cpu = max(0.0, (busy - server - (load if self._shared else 0)) / elapsed)


def throughput(stage: Stage, case: Case, server: Server, target: Target | None, number: int, seconds: float) -> Run:
    """As many objects as the server takes, over the case's connections. Right answers before, during and after."""
    run = Run(server=server.key, round=number)
    job = job_for(stage.environment, case, server, target)
    generators = stage.generators()
    real_target = target if server.key != CEILING else None
    _check(generators, case, job, run)
    before = real_target.stats() if real_target else {}
    meter = Meter(server, real_target, stage.cores.server)
    if case.generator is Generator.WRK:
        with ThreadPoolExecutor(1) as sampling:
            samples = sampling.submit(generators.httpload, job, connections=1, seconds=seconds, rate=SAMPLES_PER_SECOND)
            seen = generators.wrk(job, case, seconds)
            meter.fill(run)
            sampled = samples.result()
        _take_wrk(case, run, seen, sampled)
        completed = seen.requests + sampled.objects
    else:
        if case.generator is Generator.WSLOAD:
            answered = generators.wsload(job, connections=case.connections, inflight=case.inflight, seconds=seconds)
        else:
            answered = generators.httpload(job, connections=case.connections, seconds=seconds, count=case.count)
        meter.fill(run)
        _take(case, run, answered)
        completed = answered.objects
    if real_target:
        _check_target(case, run, dict(before), dict(real_target.stats()), completed)
    _check(generators, case, job, run)
    _check_alive(server, run)
    return run


def health(stage: Stage, case: Case, server: Server, target: Target | None, number: int, seconds: float) -> Run:
    """The wait for /health while every connection has a slow transform under way."""
    run = Run(server=server.key, round=number)
    job = job_for(stage.environment, case, server, target)
    generators = stage.generators()
    _check(generators, case, job, run)
    meter = Meter(server, None, stage.cores.server)
    with ThreadPoolExecutor(1) as loading:
        load = loading.submit(generators.httpload, job, connections=case.connections, seconds=seconds + 1)
        time.sleep(0.5)  # until the transforms run
        probed = generators.probe(
            f"http://127.0.0.1:{server.port}/health", rate=PROBES_PER_SECOND, seconds=seconds, patience=PROBE_PATIENCE
        )
        answered = load.result()
    meter.fill(run)
    _take(case, run, answered)
    run.p50_ms, run.p99_ms = probed.p50_ms, probed.p99_ms
    if server.key == OURS:  # a peer whose /health is not answered in time counts with the time that it was given
        run.errors += probed.problems()
    _check_alive(server, run)
    return run


def cpu(stage: Stage, case: Case, server: Server | None, target: Target | None, number: int, seconds: float) -> Run:
    """A transform that is all computing, on every core; without a server, the same work in a loop on each."""
    source, result = _compressible(stage.environment, case.size)
    if server is None:
        run = Run(server=LOOP, round=number, seconds=seconds)
        meter = Meter(None, None, stage.both, shared=True)
        run.rate = plain_loops(source, stage.both, seconds, sys.executable)
        meter.fill(run)
        run.mb_per_s = run.rate * case.size / 1e6
        return run
    run = Run(server=server.key, round=number)
    job = replace(job_for(stage.environment, case, server, target), objects=source, answer=str(result))
    generators = stage.generators(stage.both)
    _check(generators, case, job, run)
    meter = Meter(server, None, stage.both, shared=True)
    seen = generators.httpload(job, connections=case.connections, seconds=seconds)
    meter.fill(run)
    _take(case, run, seen)
    _check(generators, case, job, run)
    _check_alive(server, run)
    return run


def flood(stage: Stage, case: Case, server: Server, target: Target | None, number: int, seconds: float) -> Run:
    """All of the case's objects at once. A server that takes a third of the machine's free memory is ended."""
    run = Run(server=server.key, round=number)
    job = job_for(stage.environment, case, server, target)
    limit = _available_memory() // 3
    ended = threading.Event()
    highest = 0

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.02):
            highest = max(highest, processes.resident_memory(server.pids()))
            if highest > limit:
                run.errors.append(f"ended at {highest / MIB:,.0f} MiB, to spare the machine")
                server.kill()
                return

    meter = Meter(server, None, stage.cores.server)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen = stage.generators().httpload(job, connections=case.connections, count=case.count, full=True)
        meter.fill(run)
    finally:
        ended.set()
        watcher.join()
    run.peak_bytes = max(run.peak_bytes, highest)
    _take(case, run, seen)
    _check_alive(server, run)
    return run


def startup(stage: Stage, case: Case, key: str, number: int) -> Run:
    """From the start of a process to its first 200."""
    started = time.perf_counter()
    with Server(stage.environment, case, key, stage.cores.server, stage.logs, None) as server:
        elapsed = (time.perf_counter() - started) * 1000
        return Run(
            server=key,
            round=number,
            p50_ms=elapsed,
            peak_bytes=processes.peak_memory(server.pids()),
        )


IMPORTED = {
    OURS: "import etl_server",
    FASTAPI: "import aistore.sdk.etl.webserver.fastapi_server",
    PYTHON: "pass",
}


def import_(stage: Stage, case: Case, key: str, number: int) -> Run:
    """A whole interpreter that imports one thing and ends; the median of some."""
    python = str(stage.environment.peers / "python") if key == FASTAPI else sys.executable
    command = processes.pinned([python, "-c", IMPORTED[key]], stage.cores.server)
    times = []
    for _ in range(IMPORTS):
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, timeout=60, env=processes.clean_environment({}))
        times.append((time.perf_counter() - started) * 1000)
    return Run(server=key, round=number, p50_ms=median(times))


def _check(generators: Generators, case: Case, job: Job, run: Run) -> None:
    """Some objects with nothing else going on, compared byte for byte."""
    count = max(2, min(64, 64 * MIB // case.size))
    if case.way is Way.WEBSOCKET:
        seen = generators.wsload(job, connections=2, inflight=case.inflight, count=count, full=True)
    else:
        seen = generators.httpload(job, connections=min(2, count), count=count, full=True)
    run.checked += seen.objects
    run.errors += seen.problems()
    if seen.objects != count and not seen.wrong:
        run.errors.append(f"{seen.objects} answers to {count} objects")


def _take(case: Case, run: Run, seen: Seen) -> None:
    run.objects, run.seconds, run.p50_ms, run.p99_ms = seen.objects, seen.seconds, seen.p50_ms, seen.p99_ms
    _rate(case, run)
    run.checked += seen.objects
    run.errors += seen.problems()
    if not seen.objects:
        run.errors.append("no object came back")


def _take_wrk(case: Case, run: Run, seen: WrkSeen, sampled: Seen) -> None:
    run.objects, run.seconds = seen.requests, seen.micros / 1e6
    run.p50_ms, run.p99_ms = seen.p50_us / 1000, seen.p99_us / 1000
    _rate(case, run)
    run.checked += sampled.objects
    run.errors += sampled.problems()
    for name in ("connect", "read", "write", "timeout", "status"):
        if many := getattr(seen, name):
            run.errors.append(f"wrk counted {many} {name} errors")
    if not seen.requests or not sampled.objects:
        run.errors.append("no object came back")
    # Every answer has a length that the samples have shown; at the end, each connection may have a part of one.
    least, most = seen.requests * sampled.answer_min, (seen.requests + case.connections) * sampled.answer_max
    if not least <= seen.bytes <= most:
        run.errors.append(f"{seen.requests} answers in {seen.bytes} bytes, expected {least} to {most}")


def _check_target(case: Case, run: Run, before: dict[str, int], after: dict[str, int], completed: int) -> None:
    """Whether the target has given, or been given, every object that was answered for, and no other."""
    change = {name: after[name] - before[name] for name in after}
    pulled = case.way is Way.PULL
    moved = change["gets" if pulled else "puts"]
    if not completed <= moved <= completed + case.connections + 1:
        run.errors.append(f"the target counted {moved} objects, the load {completed}")
    if change["broken"] > case.connections:  # some may break off when the load ends
        run.errors.append(f"{change['broken']} objects broke off on their way to the target")
    if change["wrong"]:
        run.errors.append(f"{change['wrong']} of the objects that the target was given were not right")
    if not pulled and change["taken"] != moved * case.size:
        run.errors.append(f"the target was given {change['taken']} bytes in {moved} objects of {case.size}")


def _check_alive(server: Server, run: Run) -> None:
    try:
        server.check()
    except ServerProblemError as error:
        run.errors.append(str(error))


def _rate(case: Case, run: Run) -> None:
    run.rate = run.objects / run.seconds if run.seconds else 0
    run.mb_per_s = run.rate * case.size / 1e6


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _compressible(environment: Environment, size: int) -> tuple[Path, Path]:
    """A file of `size` bytes like text, and what zlib makes of it."""
    source = environment.cache / "objects" / f"text-{size}"
    result = source.with_suffix(".zlib")
    if not result.exists():
        source.parent.mkdir(exist_ok=True)
        chance = random.Random(1)
        words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(2000)]
        text = " ".join(chance.choices(words, k=size // 2)).encode()[:size]
        source.write_bytes(text)
        result.write_bytes(zlib.compress(text, 6))
    return source, result
