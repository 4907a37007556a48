"""A worker process of a job: lanes, which are threads, each take an object through all of its way.

One lane is the fastest where the transform uses the CPU all the time. More come while it does not, because reading and
writing make it wait, and as long as more of them get more done.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..awaiting import maybe_await
from ..config import Settings
from ..runtime.clients import close_clients
from ..runtime.logs import configure_logging
from ..runtime.threads import SWITCH_INTERVAL
from ..server import ETLServer
from ..storage import Owner
from .board import SLOTS, Board
from .ledger import Outcome, Task
from .naming import Naming
from .transfer import Budget, Transfer

FLUSH_INTERVAL = 0.05
"""Seconds for which outcomes wait for others to be sent with."""
FLUSH_SHARE = 0.1
"""Share of its time that a lane gives to having outputs on disk, where there is enough other work."""
LONGEST_FLUSH_INTERVAL = 0.2
ADAPT_INTERVAL = 0.1
"""Seconds between two looks at whether there are enough lanes."""
LOOKS = 3
"""Looks after which it is known what a number of lanes gets done, at the least."""
ENOUGH = 30
"""Objects by which that is known; where they take long, `MOST_LOOKS` have to do."""
MOST_LOOKS = 10
BUSY = 0.9
"""CPUs in use from which the process counts as busy."""
GAIN = 1.1
"""Times as much that more lanes have to get done in order to stay, unless they make the process busy."""
PATIENCE = 30
"""Looks for which a number of lanes that did not help is not tried again."""
_PDEATHSIG = 1


class WorkerConfig(NamedTuple):
    """What a worker process has to know. Picklable."""

    make: Callable[[], ETLServer]
    source: str
    sink: str | None
    naming: Naming
    etl_args: str
    memory: int
    """Bytes that its objects may take up."""
    files: dict[str, str]
    """Local files that the transform's code is in, and what they were when the job began."""
    owner: Owner
    """Whom the job's half-written outputs belong to."""


class Ready(NamedTuple):
    """The worker is set up."""


class Refused(NamedTuple):
    """The worker cannot be set up, and neither can any other."""

    reason: str


class Outcomes(NamedTuple):
    """What came of some tasks, and how many the worker works on at once."""

    outcomes: list[Outcome]
    lanes: int


Stop = None
"""To a worker: finish what is begun, forget what is not, and end."""


def main(connection: int, board: int, parent: int) -> None:
    """The life of a worker process. Its configuration is the first message on the connection."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(connection)
    try:
        sys.path[:], settings, config = pipe.recv()
    except (EOFError, OSError):  # there is nothing to do
        return
    configure_logging(settings)
    sys.setswitchinterval(SWITCH_INTERVAL)
    asyncio.run(_Worker(pipe, Board(board), settings, config).run())
    # Not by the usual way, which would wait for threads of the user's that hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Worker:
    def __init__(self, pipe: Connection, board: Board, settings: Settings, config: WorkerConfig) -> None:
        self._pipe = pipe
        self._board = board
        self._settings = settings
        self._config = config
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lanes = 0
        self._wanted = 1
        self._done = 0
        self._stopping = threading.Event()
        self._sending = threading.Lock()
        self._flush_due = 0.0

    async def run(self) -> None:
        config = self._config
        try:
            server = config.make()
            changed = [file for file, was in config.files.items() if file_identity(file) != was]
            if changed:
                raise RuntimeError(f"{changed[0]} was changed while the job was running")
            transfer = Transfer(
                server,
                config.source,
                config.sink,
                config.owner,
                config.naming,
                config.etl_args,
                Budget(config.memory),
            )
            await maybe_await(server.setup())
        except BaseException as error:
            reason = f"the transform cannot be set up: {type(error).__name__}: {error}"
            self._pipe.send(Refused(" ".join(self._settings.redact(reason).split())))
            return
        self._transfer = transfer
        self._pipe.send(Ready())
        for task in (self._receive, self._flush_regularly, self._adapt):
            threading.Thread(target=task, daemon=True).start()
        self._grow()
        await asyncio.to_thread(self._wait_for_end)
        self._flush(wait=True)
        try:
            await maybe_await(server.teardown())
        finally:
            await close_clients(server)
            transfer.close()

    def _receive(self) -> None:
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone, and with it the ledger: nothing may be written any more
            if message is Stop:
                self._stop()
                return
            for task in message:
                self._tasks.put(task)

    def _wait_for_end(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() and not self._lanes)

    def _stop(self) -> None:
        self._stopping.set()
        while True:
            try:
                self._tasks.get_nowait()
            except queue.Empty:
                break
        for _ in range(SLOTS):
            self._tasks.put(None)
        with self._changed:
            self._changed.notify_all()

    def _grow(self) -> None:
        with self._lock:
            while self._lanes < self._wanted and not self._stopping.is_set():
                slot = self._lanes
                self._lanes += 1
                threading.Thread(target=self._lane, args=(slot,), daemon=True).start()

    def _lane(self, slot: int) -> None:
        board, transfer = self._board, self._transfer

        def mark(since: float) -> None:
            board.transforming(slot, since)

        while (task := self._tasks.get()) is not None:
            board.take(slot, task.id, time.monotonic())
            outcome = transfer.run(task, mark)
            with self._lock:
                self._outcomes.append(outcome)
                self._done += 1
            board.release(slot)
            if time.monotonic() >= self._flush_due or self._tasks.empty():
                self._flush()
            with self._lock:
                if slot >= self._wanted and slot == self._lanes - 1:
                    self._lanes -= 1
                    self._changed.notify_all()
                    return
        with self._changed:
            self._lanes -= 1
            self._changed.notify_all()

    def _flush_regularly(self) -> None:
        """Send the outcomes that no lane has come to send."""
        while True:
            time.sleep(FLUSH_INTERVAL)
            if self._outcomes and time.monotonic() > self._flush_due + FLUSH_INTERVAL:
                self._flush()

    def _flush(self, *, wait: bool = False) -> None:
        """Settle and send outcomes, many at once. Where another thread is about it, nothing is done, or `wait`.

        Lanes do this between two objects, because a thread of its own would quarrel with them about the interpreter.
        """
        while self._sending.acquire(blocking=wait):
            self._settle_and_send()
            # Of what came meanwhile, nobody else will send the last.
            if not self._outcomes or not self._tasks.empty():
                return

    def _settle_and_send(self) -> None:
        try:
            self._flush_due = float("inf")
            with self._lock:
                outcomes, self._outcomes = self._outcomes, []
            began = time.monotonic()
            if outcomes:
                self._pipe.send(Outcomes(self._transfer.settle(outcomes), self._wanted))
            ended = time.monotonic()
            pause = (ended - began) * (1 / FLUSH_SHARE - 1)
            self._flush_due = ended + min(max(pause, FLUSH_INTERVAL), LONGEST_FLUSH_INTERVAL)
        finally:
            self._sending.release()

    def _adapt(self) -> None:
        looks: list[tuple[float, float]] = []  # objects a second, CPUs in use; since the number of lanes last changed
        rate_before = 0.0
        patience = 0
        while not self._stopping.is_set():
            cpu, done, began = time.process_time(), self._done, time.monotonic()
            time.sleep(ADAPT_INTERVAL)
            elapsed = time.monotonic() - began
            looks.append(((self._done - done) / elapsed, (time.process_time() - cpu) / elapsed))
            patience -= 1
            rate = fmean(rate for rate, _ in looks)
            if len(looks) < LOOKS or (rate * len(looks) * ADAPT_INTERVAL < ENOUGH and len(looks) < MOST_LOOKS):
                continue
            busy = fmean(busy for _, busy in looks)
            if rate < rate_before * (GAIN if busy < BUSY else 1):
                self._wanted = max(1, self._wanted // 2)
                patience = PATIENCE
            elif busy < BUSY and patience <= 0 and not self._tasks.empty() and self._wanted < SLOTS:
                self._wanted = min(SLOTS, self._wanted * 2)
                rate_before = rate
                looks.clear()
                self._grow()
                continue
            rate_before = 0.0
            looks.clear()


def file_identity(file: str) -> str:
    """What a file is: another text when it was written since."""
    try:
        status = Path(file).stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _die_with(parent: int) -> None:
    """End at once when the parent does, even while a transform holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
