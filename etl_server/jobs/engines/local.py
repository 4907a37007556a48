"""Worker processes on this machine.

An object whose worker died while it was worked on is tried once more, in a process of its own, alone. So whatever a
transform does to its process fails that one object.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

from ...config import Settings
from ...errors import JobError, signal_name
from ..board import Board
from ..ledger import Outcome, Task
from ..worker import Outcomes, Ready, Refused, Stop, WorkerConfig
from . import Busy, Engine

FIRST_TASKS = 4
"""Tasks that a worker is given before it is known how long they take."""
AHEAD = 0.3
"""Seconds of work that a worker has before it."""
MOST_TASKS = 4096
"""Tasks that a worker has at once, at the most."""
MOST_NAMES = 64 * 1024
"""Characters of names that a worker has at once: they fit into the socket, so that sending never waits."""
FALSE_STARTS = 3
"""Workers in a row that may die before they are ready."""
EARLY = 4
"""Workers that start before it is known what there is to do, at the most: for nothing, it may turn out."""
STOP_GRACE = 10.0
"""Seconds that a worker has for its teardown."""


class Processes:
    """Where processes come from that become workers. A context manager, which ends those that became none."""

    def __init__(self, early: int, lock: int) -> None:
        """
        Args:
            early: how many will be needed, it seems; some of them start now, while it is planned what they are for.
            lock: descriptor that they keep open as long as they live; -1: none.
        """
        self._lock = lock
        self._early = deque(_Process(lock) for _ in range(min(early, EARLY)))

    def take(self) -> _Process:
        """A process that waits to be told what to do."""
        return self._early.popleft() if self._early else _Process(self._lock)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._early:
            process.kill()
            process.end()


class LocalEngine(Engine):
    """Processes of this machine."""

    def __init__(
        self, config: WorkerConfig, settings: Settings, workers: int, timeout: float | None, processes: Processes
    ) -> None:
        """
        Args:
            config: what each worker is to do.
            settings: of the transform.
            workers: how many there are.
            timeout: seconds that a transform may take for an object, or a stream between two pieces.
            processes: what the workers are made of.
        """
        self._config = config
        self._settings = settings
        self._count = workers
        self._timeout = timeout
        self._processes = processes
        self._false_starts = 0
        self._stopping = False
        self._again: deque[Task] = deque()
        """Tasks of workers that died, which those had not begun."""
        self._suspects: deque[tuple[Task, str]] = deque()
        """Tasks that workers died of, and how; or so it seems."""
        self._lost: list[Outcome] = []
        self._workers = [self._spawn() for _ in range(workers)]

    def _spawn(self, suspect: tuple[Task, str] | None = None) -> _Worker:
        return _Worker(self._processes.take(), self._config, self._settings, suspect)

    def room(self) -> int:
        return max(0, sum(worker.room() for worker in self._workers) - len(self._again))

    def submit(self, tasks: Sequence[Task]) -> None:
        self._again.extend(tasks)
        self._distribute()

    def _distribute(self) -> None:
        if self._stopping:
            self._again.clear()
            self._suspects.clear()
            return
        waiting = len(self._again)
        rooms = [(worker, worker.room()) for worker in self._workers] if waiting else []
        whole = sum(room for _, room in rooms)
        for worker, room in rooms:
            if share := min(room, -(-waiting * room // whole) if room else 0, len(self._again)):
                worker.give([self._again.popleft() for _ in range(share)])
        if self._suspects and not any(worker.suspect for worker in self._workers):
            isolated = self._spawn(self._suspects.popleft())
            self._workers.append(isolated)
            if isolated.suspect is not None:
                isolated.give([isolated.suspect[0]])

    def poll(self, timeout: float) -> list[Outcome]:
        self._distribute()
        outcomes, self._lost = self._lost, []
        # One that has died may have children that live on and hold its end of the pipe.
        dead = [worker for worker in self._workers if worker.is_dead()]
        ready = wait([worker.pipe for worker in self._workers], 0 if outcomes or dead else timeout)
        for worker in [worker for worker in self._workers if worker.pipe in ready or worker in dead]:
            if worker in dead:
                worker.kill()
            outcomes += self._receive(worker)
            if worker in dead and worker in self._workers:
                self._bury(worker)
        self._end_overdue()
        return outcomes

    def _receive(self, worker: _Worker) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, Outcomes):
                    outcomes += worker.take(message)
                elif isinstance(message, Ready):
                    self._false_starts = 0
                    worker.ready = True
                elif isinstance(message, Refused):
                    raise JobError(message.reason)
        except (EOFError, OSError):
            self._bury(worker)
        else:
            if worker.suspect is not None and not worker.tasks:
                worker.stop()
        return outcomes

    def _bury(self, worker: _Worker, overdue: int = 0) -> None:
        """A worker has died: by itself, or because its transform of the task `overdue` took too long."""
        self._workers.remove(worker)
        self.unclean = True
        how, begun = worker.end()
        if not worker.ready and not worker.stopped:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                raise JobError(f"the transform cannot be set up: its process {how}")
        for task in worker.tasks.values():
            if overdue:
                if task.id == overdue:
                    detail = f"no result within --object-timeout={self._timeout:g}"
                    self._lost.append(Outcome(task.id, detail, bytes_in=task.size, seconds=self._timeout or 0))
                else:
                    self._again.appendleft(task)
            elif self._stopping:
                continue
            elif worker.suspect is not None and worker.ready:
                self._lost.append(Outcome(task.id, f"its process {how}, twice", bytes_in=task.size))
            elif worker.suspect is not None or task.id in begun:
                self._suspects.append((task, how))
            else:
                self._again.appendleft(task)
        if worker.suspect is None and not self._stopping:
            self._workers.append(self._spawn())

    def _end_overdue(self) -> None:
        if self._timeout is None:
            return
        limit = time.monotonic() - self._timeout
        for worker in list(self._workers):
            for active in worker.board.active():
                if active.transforming and active.transforming < limit and active.task_id in worker.tasks:
                    worker.kill()
                    self._bury(worker, active.task_id)
                    break

    @property
    def in_flight(self) -> int:
        return (
            sum(len(worker.tasks) for worker in self._workers)
            + len(self._again)
            + len(self._suspects)
            + len(self._lost)
        )

    def busy(self) -> list[Busy]:
        now = time.monotonic()
        active = [active for worker in self._workers for active in worker.board.active()]
        return sorted((Busy(a.task_id, now - a.taken) for a in active), key=lambda busy: -busy.seconds)

    def stop(self) -> None:
        self._stopping = True
        self._distribute()
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        peaceful = not self.in_flight
        self.unclean = self.unclean or not peaceful
        for worker in self._workers:
            if peaceful:
                worker.stop()
            else:
                worker.kill()
        deadline = time.monotonic() + STOP_GRACE
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))
        self._workers.clear()


class _Worker:
    """A worker process, as its parent sees it."""

    def __init__(
        self, process: _Process, config: WorkerConfig, settings: Settings, suspect: tuple[Task, str] | None = None
    ) -> None:
        """`suspect`: the one task that it is for, and what became of the worker that had it before."""
        self.suspect = suspect
        self.ready = False
        self.stopped = False
        self.tasks: dict[int, Task] = {}
        self._names = 0
        self._lanes = 1
        self._rate = 0.0
        """Outcomes a second."""
        self._process = process
        self.board = process.board
        self.pipe = process.pipe
        self.is_dead = process.is_dead
        self.kill = process.kill
        with contextlib.suppress(OSError):
            self.pipe.send((sys.path, settings, config))

    def room(self) -> int:
        """How many more tasks it can use now."""
        if self.stopped or self.suspect is not None or self._names > MOST_NAMES:
            return 0
        most = min(MOST_TASKS, max(FIRST_TASKS, 2 * self._lanes, int(self._rate * AHEAD)))
        return max(0, most - len(self.tasks))

    def give(self, tasks: list[Task]) -> None:
        self.tasks.update((task.id, task) for task in tasks)
        self._names += sum(len(task.source) + len(task.output) for task in tasks)
        # A dead one is found out by the end of what it sends.
        with contextlib.suppress(OSError):
            self.pipe.send(tasks)

    def take(self, message: Outcomes) -> list[Outcome]:
        """Outcomes have come."""
        # By how long the work took, not by how long ago the last message came: outcomes wait for being durable.
        seconds = sum(outcome.seconds for outcome in message.outcomes) / message.lanes
        rate = len(message.outcomes) / max(seconds, 0.0001)
        self._rate = rate if not self._rate else 0.5 * self._rate + 0.5 * rate
        self._lanes = message.lanes
        known = []
        for outcome in message.outcomes:
            task = self.tasks.pop(outcome.id, None)
            if task is not None:
                self._names -= len(task.source) + len(task.output)
                known.append(outcome)
        return known

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            with contextlib.suppress(OSError):
                self.pipe.send(Stop)

    def end(self, patience: float = 1.0) -> tuple[str, set[int]]:
        """How it has ended, and the tasks that it had begun by then. After `patience` seconds it is killed."""
        return self._process.end(patience)


class _Process:
    """A process that is a worker, or will be: it waits for its configuration."""

    def __init__(self, lock: int) -> None:
        """`lock`: descriptor that it keeps open as long as it lives; -1: none."""
        ours, theirs = socket.socketpair()
        board = Board.create()
        code = "import sys; from etl_server.jobs.worker import main; main(*map(int, sys.argv[1:]))"
        descriptors = [theirs.fileno(), board, *([lock] if lock >= 0 else [])]
        # A session of its own: Ctrl-C reaches the parent only, and whatever the transform started ends with it.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code, str(theirs.fileno()), str(board), str(os.getpid())],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.board = Board(board)
        os.close(board)
        self.pipe = Connection(ours.detach())

    def is_dead(self) -> bool:
        """Whether it has ended, whatever became of what it has started."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, with what it has started."""
        self._kill_group()
        self._process.kill()

    def end(self, patience: float = 1.0) -> tuple[str, set[int]]:
        """How it has ended, and the tasks that it had begun by then. After `patience` seconds it is killed.

        What it has started ends with it.
        """
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        self._kill_group()
        begun = {active.task_id for active in self.board.active()}
        self.pipe.close()
        self.board.close()
        if code >= 0:
            return f"ended with exit code {code}", begun
        return f"was killed by {signal_name(-code)}", begun

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
