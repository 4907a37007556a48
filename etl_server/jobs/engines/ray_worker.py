"""What runs on the nodes of a Ray cluster: the local engine, with one worker process, by remote control.

So whatever a transform does to its process is dealt with on its node, as on one machine. Only a lost node, or a lost
actor, is for the other side to deal with.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from ... import __version__
from ...config import Settings, available_cpus, available_memory
from ...errors import JobError
from ..ledger import Outcome, Task
from ..worker import WorkerConfig
from . import LEASE, Busy
from .local import LocalEngine, Processes

LEASE_GRACE = 3.0
"""Seconds before the end of its lease at which an actor ends: looking for it takes a while."""
MOST_LINES, LONGEST_LINE = 1000, 2000
"""Lines that are kept of what is printed between two calls, the last ones, and their bytes."""
WINDOW = 0.25
"""Seconds that a call waits for outcomes."""


class Order(NamedTuple):
    """What an actor is to do. Picklable."""

    config: WorkerConfig
    """Its `memory` is 0 where the node decides, and its owner's journal a file of the other side."""
    settings: Settings
    timeout: float | None
    """Seconds that a transform may take for an object, or a stream between two pieces."""
    source: Path | None
    """The directory that the objects are in, if they are files."""
    token: Path | None
    """A file that is in the directory where the outputs go, if they become files."""


class Reply(NamedTuple):
    """What came of a call."""

    outcomes: list[Outcome]
    busy: list[Busy]
    room: int
    """How many more tasks the actor can use."""
    in_flight: int
    notes: bytes
    """For the journal of the job's owner."""
    prints: bytes
    """Lines that the transform has printed."""
    unclean: bool
    """A process did not end in peace, and may have left something half-written."""
    refused: str
    """Why no actor at all can do this job; empty: this one does."""


class Worker:
    """A Ray actor that uses one CPU. `begin` is called first, once. All calls are from one thread."""

    def begin(self, expected: Mapping[str, str], environment: Mapping[str, str], order: bytes) -> str:
        """Start to work.

        Args:
            expected: `versions()` of the other side.
            environment: variables for the transform.
            order: a pickled `Order`, which another version might not be able to read.

        Returns:
            Why no actor can do it, or nothing.
        """
        self._heard = time.monotonic()
        node = platform.node()
        found = versions()
        for what, version in expected.items():
            if found.get(what) != version:
                return f"the Ray node {node} has {what} {found.get(what)}, expected {version} as here"
        os.environ.update(environment)
        wanted: Order = pickle.loads(order)  # noqa: S301 - from whoever runs code here anyway
        for folder in (wanted.source, wanted.token):
            if folder is not None and not folder.exists():
                shown = folder if folder == wanted.source else folder.parent
                return f"{shown}: the Ray node {node} does not have this folder: expected one that all nodes share"
        self._prints = _Prints()
        self._notes = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the process
        journal = Path(f"/proc/{os.getpid()}/fd/{self._notes.fileno()}")
        config = wanted.config._replace(
            memory=wanted.config.memory or available_memory() // 2 // available_cpus(),
            owner=wanted.config.owner._replace(journal=journal),
        )
        # This thread is the one whose end the worker process does not survive.
        self._engine = LocalEngine(config, wanted.settings, 1, wanted.timeout, Processes(0, -1))
        threading.Thread(target=self._end_when_forgotten, daemon=True).start()
        return ""

    def exchange(self, tasks: Sequence[Task], stop: bool) -> Reply:
        """Take on tasks, and tell what has come of earlier ones. `stop`: forget what is not begun."""
        self._heard = time.monotonic()
        engine = self._engine
        outcomes: list[Outcome] = []
        refused = ""
        engine.submit(tasks)
        if stop:
            engine.stop()
        try:
            if engine.in_flight:
                outcomes = engine.poll(WINDOW)
        except JobError as error:
            refused = error.detail
        self._heard = time.monotonic()
        return self._reply(outcomes, refused)

    def close(self) -> Reply:
        """End the worker process: in peace, if nothing is in flight."""
        self._heard = time.monotonic()
        self._engine.close()
        return self._reply([], "")

    def _reply(self, outcomes: list[Outcome], refused: str) -> Reply:
        engine = self._engine
        return Reply(
            outcomes,
            engine.busy(),
            engine.room(),
            engine.in_flight,
            self._new_notes(),
            self._prints.take(),
            engine.unclean,
            refused,
        )

    def _new_notes(self) -> bytes:
        """What has been noted since the last time, in whole lines."""
        new = self._notes.read()
        end = new.rfind(b"\n") + 1
        self._notes.seek(end - len(new), os.SEEK_CUR)
        return new[:end]

    def _end_when_forgotten(self) -> None:
        """End without a call for long: the run is over, or cannot reach this node. The worker process ends, too."""
        while time.monotonic() - self._heard < LEASE - LEASE_GRACE:
            time.sleep(1)
        os._exit(1)


class _Prints:
    """What this process and its children print from now on, in whole lines."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MOST_LINES)
        reading, writing = os.pipe()
        for stream in (1, 2):
            os.dup2(writing, stream)
        os.close(writing)
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as pipe:
            while line := pipe.readline(LONGEST_LINE):
                self._lines.append(line.rstrip(b"\n") + b"\n")

    def take(self) -> bytes:
        """What is new."""
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return b"".join(lines)


def versions() -> dict[str, str]:
    """What has to be the same on both sides, by its name."""
    return {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "etl_server": __version__,
        "cloudpickle": cloudpickle.__version__,
    }
