"""Several worker processes on one socket, and what becomes of one that dies.

It is started again, and the others never notice. What it was working on fails as cut connections. A worker that dies
again and again, soon after each start, is a reason to end: with an exit code that says so, as nobody looks into a
server that seems to run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from ..config import Settings
from ..errors import one_line, signal_name
from .lifecycle import UNFINISHED, stop_signals
from .listen import url_of

if TYPE_CHECKING:
    from .metrics import Places
    from .serve import MakeServer

STARTUP_FAILURE = 3
"""The exit code of a server that cannot start, or cannot go on because its workers die."""
POLL_INTERVAL = 0.2
"""Seconds between two looks at whether the workers live."""
STOP_GRACE = 5.0
"""Seconds beyond `ETL_DRAIN_TIMEOUT` after which a worker is killed."""
HEALTHY_AFTER = 30.0
"""Seconds after which a worker's death has nothing to do with its start."""
MOST_DEATHS = 5
"""Deaths in a row, each sooner than that, at which the server ends."""
RESPAWN_DELAY = 1.0
"""Seconds to wait after the second death in a row; they double with each further one. After the first, none."""
LONGEST_REASON = 1000

logger = logging.getLogger("etl_server.serve")


class Supervisor:
    """Starts workers, starts them again, and stops them."""

    def __init__(self, make: MakeServer, settings: Settings, listener: socket.socket) -> None:
        self._job = (sys.path, make, settings)
        self._settings = settings
        self._listener = listener
        self._url = url_of(listener)
        self._stopping = False  # no Event: a handler that sets one may interrupt who holds its lock
        self._ready = False
        self._places: Places | None = None
        if settings.metrics:
            from .metrics import Places

            self._places = Places()

    def run(self) -> int:
        """Run workers until SIGTERM or SIGINT; returns the exit code."""
        reason = ""
        with stop_signals(self._stop):
            environment = self._places.environment if self._places is not None else None
            workers: list[_Worker] = []
            try:
                for place in range(self._settings.workers):
                    workers.append(_Worker(self._job, self._listener, place, environment))  # noqa: PERF401
            except OSError as error:
                reason = f"a worker cannot be started: {error.strerror}"
            while not reason:
                time.sleep(POLL_INTERVAL)
                if self._stopping:
                    break
                reason = next(filter(None, map(self._tend, workers)), "")
            self._listener.close()  # else it would go on to take connections after the last worker has closed it
            finished = _stop(workers, self._settings.drain_timeout + STOP_GRACE)
        if self._places is not None:
            self._places.close()
        if reason:
            logger.error("%s", reason)
            return STARTUP_FAILURE
        return 0 if finished else UNFINISHED

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _tend(self, worker: _Worker) -> str:
        """See whether a worker lives, and start it again if not; why that is no use, if it is none."""
        died = worker.look()
        if worker.ready and not self._ready:
            self._ready = True
            logger.info("listening on %s with %d workers", self._url, self._settings.workers)
        if not died:
            return ""
        if worker.failure and not self._ready:
            return worker.failure
        if worker.deaths >= MOST_DEATHS:
            return f"a worker died {worker.deaths} times in a row, soon after its start; at last it {died}"
        if self._places is not None:
            self._places.restarted(worker.place)
        logger.error("worker %d died: it %s; another one is started in %g s", worker.pid, died, worker.rest())
        return ""


class _Worker:
    """A worker process, and those that take its place."""

    def __init__(
        self,
        job: tuple[list[str], MakeServer, Settings],
        listener: socket.socket,
        place: int,
        environment: dict[str, str] | None,
    ) -> None:
        """`place`: its number among the workers. `environment`: where they count what they do; None: they do not."""
        self._job = job
        self._listener = listener
        self.place = place
        self._environment = environment
        self._due: float | None = None
        self.deaths = 0
        """In a row, each soon after the start."""
        self._spawn()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _spawn(self) -> None:
        self._since: float | None = None
        self.failure = ""
        """Why it did not start, in its own words."""
        told, tell = os.pipe()
        os.set_blocking(told, False)
        number = self.place if self._environment is not None else None
        # A fresh interpreter, and not multiprocessing's, which would run the user's script a second time.
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a number
                [sys.executable, "-c", f"from etl_server.runtime.serve import work; work({number})"],
                env={**os.environ, **(self._environment or {})},
                stdin=subprocess.PIPE,
                pass_fds=[self._listener.fileno(), tell],
            )
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(tell)
        self._told, self._due = told, None
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(pickle.dumps((*self._job, self._listener.fileno(), tell)))
                self._process.stdin.flush()

    @property
    def ready(self) -> bool:
        """Whether it takes objects."""
        return self._since is not None

    def look(self) -> str:
        """How it died, if it has just died; a process that is due is started."""
        if self._due is not None:
            if time.monotonic() >= self._due:
                try:
                    self._spawn()
                except OSError as error:
                    self.deaths += 1
                    return f"cannot be started again: {error.strerror}"
            return ""
        code = self._process.poll()
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._told, 4096).decode(errors="replace").splitlines():
                if line == "ready":
                    self._since = time.monotonic()
                else:
                    self.failure = line
        if code is None:
            return ""
        os.close(self._told)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        lived = self._since is not None and time.monotonic() - self._since >= HEALTHY_AFTER
        self.deaths = 1 if lived else self.deaths + 1
        return f"did not start: {self.failure}" if self.failure else _exit(code)

    def rest(self) -> float:
        """Let it be started again, after a while: the seconds."""
        delay = RESPAWN_DELAY * 2 ** (self.deaths - 2) if self.deaths > 1 else 0.0
        self._due = time.monotonic() + delay
        return delay

    def stop(self) -> None:
        """Tell it that all workers are to stop."""
        if self._due is None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self, deadline: float) -> bool:
        """Wait until it has ended, and kill it at the deadline; whether it finished what it had."""
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.error("worker %d did not stop in time", self._process.pid)
            self._process.kill()
            code = self._process.wait()
        return code == 0 or self._due is not None


def _stop(workers: list[_Worker], seconds: float) -> bool:
    """Stop all workers within so many seconds; whether they finished what they had."""
    for worker in workers:
        worker.stop()
    deadline = time.monotonic() + seconds
    finished = [worker.wait(deadline) for worker in workers]
    return all(finished)


def _exit(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal_name(-code)}"


class Channel:
    """A worker's way to tell its supervisor how it is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def ready(self) -> None:
        """It takes objects."""
        self._tell("ready")

    def failed(self, error: Exception) -> None:
        """It did not start."""
        self._tell(one_line(error)[:LONGEST_REASON])

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, which ends this process in another way
            os.write(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))
