"""The load generators: what they are told, and what they saw."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel

from .cases import CEILING, Case, Way
from .environment import BENCH, Environment
from .processes import clean_environment, pinned
from .servers import Server, Target, file_like_aistore

OBJECT = "bench/object"
UNAME = "ais%2F@%23%2Fbench%2Fobject"
DESTINATION = "ais%2F@%23%2Fdestination%2Fobject?uuid=bench&owt=1"

_ANSWER_SECONDS = 120
_PATIENCE = 2 * _ANSWER_SECONDS


class LoadProblemError(Exception):
    """A load generator failed by itself."""


class Seen(BaseModel):
    """What a generator saw."""

    objects: int
    """Answers that were right."""
    wrong: int = 0
    errors: list[str] = []
    seconds: float
    p50_ms: float
    p99_ms: float
    answer_min: int = 0
    """Bytes of the smallest answer, its head included; 0 where that is not known."""
    answer_max: int = 0

    def problems(self) -> list[str]:
        """What was not right."""
        return [f"{self.wrong} answers were not right: {self.errors[0]}"] if self.wrong else []


class WrkSeen(BaseModel):
    """What wrk.lua prints."""

    requests: int
    micros: int
    bytes: int
    p50_us: float
    p99_us: float
    connect: int
    read: int
    write: int
    status: int
    timeout: int


@dataclass(frozen=True)
class Job:
    """The requests of a case, to one server."""

    port: int
    path: str
    objects: Path
    size: int
    method: str = "PUT"
    header: tuple[str, str] | None = None
    empty: bool = False
    """Whether a PUT goes without a body."""
    answer: str = "same"
    """The content to expect: `same` (what was sent), `first` (the first object), `none`, or a file."""
    status: int = 200

    @property
    def url(self) -> str:
        """Where the requests go."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def job_for(environment: Environment, case: Case, server: Server, target: Target | None) -> Job:
    """The requests of a case."""
    job = Job(server.port, f"/{OBJECT}", environment.file_of_objects(case.size), case.size)
    fields = dict(vars(job))
    if case.way is Way.PULL:
        fields |= {"method": "GET", "path": f"/{UNAME}", "answer": "first"}
    elif case.way is Way.FQN:
        fqn = quote(quote(str(file_like_aistore(environment, case.size)), safe=""), safe="")
        fields |= {"path": f"/{OBJECT}?etl_fqn={fqn}", "empty": True, "answer": "first"}
    elif case.way in (Way.DIRECT_PUT, Way.PIPELINE):
        assert target is not None
        stages = [f"http://127.0.0.1:{port}" for port in server.ports[1:]]
        stages.append(f"http://127.0.0.1:{target.port}/{DESTINATION}")
        fields |= {"header": ("ais-node-url", ",".join(stages)), "status": 204, "answer": "none"}
    elif case.way is Way.WEBSOCKET:
        fields["path"] = "/ws"
    if server.key == CEILING and fields["answer"] == "same":
        fields["answer"] = "first"
    return Job(**fields)


class Generators:
    """Load generators on their cores."""

    def __init__(self, environment: Environment, cores: Sequence[int]) -> None:
        self._environment = environment
        self._cores = cores

    def wrk(self, job: Job, case: Case, seconds: float) -> WrkSeen:
        """As many requests as the server takes, for whole seconds. Looks at no content."""
        variables = {"BENCH_METHOD": job.method}
        if job.header:
            variables |= {"BENCH_HEADER_NAME": job.header[0], "BENCH_HEADER_VALUE": job.header[1]}
        if job.method == "PUT" and not job.empty:
            variables |= {"BENCH_BODY": str(job.objects), "BENCH_SIZE": str(job.size)}
        output = self._run(
            [
                self._environment.wrk,
                *("-t", "1", "-c", str(case.connections), "-d", f"{max(1, round(seconds))}s"),
                *("--timeout", f"{_ANSWER_SECONDS}s", "-s", str(BENCH / "wrk.lua"), job.url),
            ],
            seconds + _PATIENCE,
            variables,
        )
        return WrkSeen.model_validate_json(output.strip().splitlines()[-1])

    def httpload(
        self,
        job: Job,
        *,
        connections: int,
        seconds: float = 0,
        count: int | None = None,
        rate: float = 0,
        full: bool = False,
    ) -> Seen:
        """Requests over HTTP, of which every answer is looked at; for `seconds`, or `count` of them."""
        command = [self._environment.tool("httpload"), *self._common(job, connections, seconds, count, rate, full)]
        command += ["-method", job.method, "-status", str(job.status)]
        if job.header:
            command += ["-header", ": ".join(job.header)]
        if job.empty:
            command.append("-empty")
        return Seen.model_validate_json(self._run(command, seconds + _PATIENCE))

    def wsload(
        self,
        job: Job,
        *,
        connections: int,
        inflight: int,
        seconds: float = 0,
        count: int | None = None,
        full: bool = False,
    ) -> Seen:
        """Objects over WebSockets, of which every answer is looked at; for `seconds`, or `count` of them."""
        command = [self._environment.tool("wsload"), *self._common(job, connections, seconds, count, 0, full)]
        return Seen.model_validate_json(self._run([*command, "-inflight", str(inflight)], seconds + _PATIENCE))

    def probe(self, url: str, *, rate: float, seconds: float, patience: float) -> Seen:
        """A GET at a fixed pace, whether or not the earlier ones were answered."""
        command = [self._environment.tool("probe"), "-url", url, "-rate", str(rate)]
        command += ["-duration", f"{seconds}s", "-timeout", f"{patience}s"]
        return Seen.model_validate_json(self._run(command, seconds + patience + _PATIENCE))

    def _common(
        self, job: Job, connections: int, seconds: float, count: int | None, rate: float, full: bool
    ) -> list[str]:
        arguments = ["-url", job.url, "-body", str(job.objects), "-size", str(job.size), "-answer", job.answer]
        arguments += ["-connections", str(connections), "-timeout", f"{_ANSWER_SECONDS}s"]
        arguments += ["-count", str(count)] if count else ["-duration", f"{seconds}s"]
        if rate:
            arguments += ["-rate", str(rate)]
        if full:
            arguments.append("-full")
        return arguments

    def _run(self, command: Sequence[str], patience: float, variables: dict[str, str] | None = None) -> str:
        try:
            done = subprocess.run(
                pinned(command, self._cores),
                capture_output=True,
                text=True,
                timeout=patience,
                env=clean_environment(variables or {}),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LoadProblemError(f"{Path(command[0]).name} was not done after {patience:.0f} s") from None
        if done.returncode:
            raise LoadProblemError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
        return done.stdout


def spent() -> float:
    """The CPU time of all generators that have ended so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plain_loops(objects: Path, cores: Sequence[int], seconds: float, python: str) -> float:
    """Objects a second of one plain loop a core, all at once."""
    running = [
        subprocess.Popen(
            pinned([python, str(BENCH / "plain_loop.py"), str(objects), str(seconds)], [core]),
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in cores
    ]
    return sum(float(loop.communicate(timeout=seconds + _PATIENCE)[0]) for loop in running)
