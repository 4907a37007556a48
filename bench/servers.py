"""The servers under test, and the target that they pull from and deliver to."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .cases import (
    ALONE,
    ASGI,
    BOTO3,
    CEILING,
    FASTAPI,
    FLASK,
    GO,
    LOOP,
    OURS,
    PYTHON,
    SYNCING,
    THREADED,
    UNMETERED,
    XARGS,
    Case,
    Way,
)
from .environment import BENCH, PEERS, ROOT, Environment
from .processes import Process

TARGET_PATH = "/v1/etl/_object/bench/secret"
THREADS = "64"
START_SECONDS = 30

LABELS = {
    OURS: "etl_server",
    UNMETERED: "etl_server, ETL_METRICS=false",
    FASTAPI: "aistore FastAPI (uvicorn)",
    FLASK: "aistore Flask (gunicorn)",
    THREADED: "aistore threaded HTTP",
    GO: "Go",
    ASGI: "bare ASGI echo (uvicorn)",
    LOOP: "plain loop",
    SYNCING: "plain loop that syncs",
    XARGS: "xargs -P2, a sample",
    ALONE: "transforms alone",
    PYTHON: "bare python",
    CEILING: "generator's ceiling",
    BOTO3: "boto3",
}


class ServerProblemError(Exception):
    """A server did not start, or is gone. The text ends with the last lines that it printed."""


@dataclass(frozen=True)
class Cores:
    """Who runs where."""

    server: tuple[int, ...]
    load: tuple[int, ...]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(environment: Environment, case: Case, key: str, port: int) -> list[str]:
    """How a server is started."""
    bin_, address, workers = environment.peers, f"127.0.0.1:{port}", str(case.workers)
    uvicorn = [str(bin_ / "uvicorn"), "--app-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(port)]
    uvicorn += ["--workers", workers, "--no-access-log", "--log-level", "warning"]
    if key in (OURS, UNMETERED):
        class_ = f"{BENCH / 'transforms.py'}:{case.transform}"
        serve = [sys.executable, "-m", "etl_server", "serve", class_]
        return [*serve, "--host", "127.0.0.1", "--port", str(port), "--workers", workers]
    if key == FASTAPI:
        return [*uvicorn, "--factory", "aistore_fastapi:app"]
    if key == FLASK:
        gunicorn = [str(bin_ / "gunicorn"), "--chdir", str(PEERS), "--bind", address, "--workers", workers]
        return [*gunicorn, "--threads", THREADS, "--log-level", "warning", "aistore_flask:app()"]
    if key == THREADED:
        return [str(bin_ / "python"), str(PEERS / "aistore_threaded.py"), str(port)]
    if key == GO:
        return [str(environment.go_peer), "-listen", address]
    if key == ASGI:
        return [*uvicorn, "bare_asgi:app"]
    if key == CEILING:
        objects = [*("-body", str(environment.file_of_objects(case.size))), *("-size", str(case.size))]
        status = "204" if case.way in (Way.DIRECT_PUT, Way.PIPELINE) else "200"
        return [environment.tool("responder"), "-listen", address, *objects, "-status", status]
    raise ValueError(f"{key} is no server")


class Server:
    """A server that answers. Of a pipeline there are two, of which the second is given what comes of the first."""

    def __init__(
        self, environment: Environment, case: Case, key: str, cores: Sequence[int], logs: Path, target: Target | None
    ) -> None:
        self.key = key
        stages = 2 if case.way is Way.PIPELINE and key != CEILING else 1
        self.ports = [free_port() for _ in range(stages)]
        self._processes: list[Process] = []
        variables = {
            "AIS_TARGET_URL": f"http://127.0.0.1:{target.port if target else 1}{TARGET_PATH}",
            "BENCH_TRANSFORM": case.transform,
            **case.environment,
            **({"ETL_METRICS": "false"} if key == UNMETERED else {}),
        }
        try:
            for number, port in enumerate(self.ports):
                process = Process(
                    command(environment, case, key, port),
                    cores=cores,
                    log=logs / f"{case.name}-{key}-{number}.log",
                    environment=variables,
                    cwd=ROOT,
                )
                self._processes.append(process)
                wait_until_ready(process, port)
        except BaseException:
            self.stop()
            raise

    @property
    def port(self) -> int:
        """Where its first stage listens."""
        return self.ports[0]

    def pids(self) -> list[int]:
        """All of its processes."""
        return [pid for process in self._processes for pid in process.pids()]

    def check(self) -> None:
        """Raises ServerProblemError where one of its processes has ended."""
        for process in self._processes:
            if not process.alive:
                raise ServerProblemError(f"the server ended:\n{process.tail()}")

    def kill(self) -> None:
        """End it at once."""
        for process in self._processes:
            process.kill()

    def stop(self) -> None:
        """End it."""
        for process in self._processes:
            process.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Target:
    """The target: gives objects of one size, takes results, counts both."""

    def __init__(self, environment: Environment, size: int, cores: Sequence[int], logs: Path) -> None:
        self.port = free_port()
        objects = environment.file_of_objects(size)
        self._process = Process(
            [
                environment.tool("target"),
                *("-listen", f"127.0.0.1:{self.port}"),
                *("-body", str(objects)),
                *("-size", str(size)),
            ],
            cores=cores,
            log=logs / "target.log",
            environment={},
            cwd=ROOT,
        )
        wait_until_ready(self._process, self.port, "/stats")

    def stats(self) -> Mapping[str, int]:
        """`gets`, `puts`, `taken` (bytes), and of its puts `wrong` (content) and `broken` (off), since it started."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/stats")
            counts: dict[str, int] = json.loads(connection.getresponse().read())
            return counts
        finally:
            connection.close()

    def pids(self) -> list[int]:
        """Its processes."""
        return self._process.pids()

    def stop(self) -> None:
        """End it."""
        self._process.stop()


def wait_until_ready(process: Process, port: int, path: str = "/health") -> None:
    """Wait for the first 200, looking every millisecond.

    Raises:
        ServerProblemError: the process ended, or did not answer in time.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                if connection.recv(64).split(b" ")[1:2] == [b"200"]:
                    return
        except OSError:
            pass
        if not process.alive:
            raise ServerProblemError(f"the server did not start:\n{process.tail()}")
        time.sleep(0.001)
    raise ServerProblemError(f"the server did not answer {path} within {START_SECONDS} s:\n{process.tail()}")


def file_like_aistore(environment: Environment, size: int) -> Path:
    """A local object of `size` bytes, laid out as on a target's disk; its content is that of the first object."""
    path = environment.cache / "mountpath" / "@ais" / "bench" / "%ob" / f"object-{size}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".half")
        with environment.file_of_objects(size).open("rb") as source, half.open("wb") as copy:
            copy.write(source.read(size))
        half.rename(path)
    return path


def cores_of(server: int | None, load: int | None) -> Cores:
    """The cores to use: by default the last one for the server, the first one for the load."""
    available = sorted(os.sched_getaffinity(0))
    chosen = available[-1] if server is None else server
    other = available[0] if load is None else load
    return Cores((chosen,), (other,))
