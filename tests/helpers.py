"""What several test files use: waiting for what cannot be awaited, health, files of AIStore's layout, processes."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import AliasChoices

from etl_server import Settings

from .raw_client import PATIENCE, RawClient

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).parent.parent
"""The project's folder."""
STARTS = 60.0
"""Seconds that processes may take to start on a machine that has other things to do."""
UNREADABLE = Path("/sys/class/net/lo/speed")
"""A file of some bytes of which the kernel gives none: EINVAL."""


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition()` holds, for things that tell nobody when they happen, in a process that starts, too."""
    deadline = time.monotonic() + STARTS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)


async def health(port: int) -> tuple[int, bytes]:
    """Status and body of what `/health` answers."""
    async with RawClient(port) as client:
        await client.get("/health")
        answer = await client.answer()
        return answer.status, answer.body


@contextmanager
def no_logs() -> Iterator[None]:
    """Keep logs from pytest, whose workers cannot pass on text that is not Unicode."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def refused(port: int) -> bool:
    """Whether nobody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def known_variables() -> set[str]:
    """The environment's variables that are settings."""
    names = set()
    for field in Settings.model_fields.values():
        choices = field.validation_alias
        names |= set(map(str, choices.choices)) if isinstance(choices, AliasChoices) else {str(field.alias)}
    return names


def ais_file(mountpath: Path, name: str, content: bytes) -> Path:
    """A file where AIStore keeps the object `name` of the bucket `src`, so that `etl_fqn` may name it."""
    file = mountpath / "@ais" / "src" / "%ob" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


class Process:
    """A process whose stderr is collected line by line. A context manager, which ends it."""

    def __init__(
        self, *command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.lines: list[str] = []
        self.patience = STARTS
        self._ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The `count`th line of stderr in which the pattern is found, once it is there."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(found()) >= count, self.patience)
            assert len(found()) >= count, f"no line has {pattern!r}:\n" + "\n".join(self.lines)
            return found()[count - 1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once the process has ended and all that it wrote is here."""
        code = self._process.wait(self.patience)
        self._collector.join(PATIENCE)
        if self._process.stderr is not None:
            self._process.stderr.close()
        return code

    def _collect(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class ServerProcess(Process):
    """A server of ours in a process of its own."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        """`arguments` are Python's: `"-m", "etl_server", "serve", …` or a script. `python`: the command to run."""
        super().__init__(*python, *arguments, environment=environment, cwd=cwd)
        self.port = 0

    @classmethod
    def serve(cls, spec: str, *options: str, environment: Mapping[str, str] | None = None) -> ServerProcess:
        """`etl-server serve SPEC` on a free port of the loopback address, with one worker unless told otherwise."""
        defaults = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "1"}
        return cls(
            "-m", "etl_server", "serve", spec, *options, environment={**defaults, **(environment or {})}, cwd=ROOT
        )

    @classmethod
    def bootstrap(
        cls,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        python: Sequence[str] = (sys.executable,),
    ) -> ServerProcess:
        """`python -m etl_server.bootstrap`, with the same defaults."""
        defaults = {"ETL_HOST": "127.0.0.1", "ETL_PORT": "0", "ETL_WORKERS": "1"}
        variables = {**defaults, **(environment or {})}
        server = cls("-m", "etl_server.bootstrap", *arguments, environment=variables, cwd=cwd, python=python)
        server.patience = 100.0  # it may have to install
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_listening(self) -> ServerProcess:
        """Wait until it says where it listens. Connections are taken from then on, and answered once it is set up."""
        self.port = int(self.wait_for_line(r"listening on http://127\.0\.0\.1:(\d+)").group(1))
        return self

    def put(self, body: bytes, etl_args: str = "") -> tuple[int, bytes]:
        """Status and body of the answer to a PUT of an object, once it listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.wait_until_listening().port, timeout=PATIENCE)
        try:
            connection.request("PUT", f"/bucket/object?etl_args={etl_args}", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
