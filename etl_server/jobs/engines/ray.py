"""Worker processes on a Ray cluster.

Ray finds the CPUs, and tells which actors are lost. What was under way on those is done again elsewhere: an output is
written as a whole or not at all, so that twice is as good as once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ...config import Settings
from ...errors import ConfigError, JobError, one_line
from ...storage import open_store
from ...storage.local import LocalObjectStore
from ...storage.object_paths import INCOMING
from ..ledger import Outcome, Task
from ..worker import WorkerConfig
from . import LEASE, Busy, Engine
from .local import FALSE_STARTS, STOP_GRACE
from .ray_worker import Order, Reply, Worker, versions

OBJECT_STORE = 100 * 1024 * 1024
"""Bytes of shared memory for a Ray of our own, which passes names and outcomes around, and no objects."""
LOSSES = 2
"""Lost actors after which a task is done by an actor that has no other task at the same time."""
IDLE = 1.0
"""Seconds after which an actor that has nothing to do is told that it is still wanted."""
CALL_GRACE = 5.0
"""Seconds that a call may take beyond what it waits for."""
TOLD_AFTER = 15.0
"""Seconds without any actor after which the user is told what the job waits for."""
LONGEST_REASON = 300
"""Characters of what Ray says that are shown."""

PASSED_ON = ("AWS_", "AIS_", "ETL_", "DIRECT_PUT", "MAX_CONN", "MAX_KEEPALIVE_CONN", "KEEPALIVE_EXPIRY")
"""How the variables begin that go along to the actors."""
KEPT = ("AWS_CONTAINER_", "AWS_WEB_IDENTITY_", "AWS_ROLE_", "ETL_CLASS_", "ETL_PAYLOAD_KEY")
"""And those of them that mean something on this machine only, or are of no use there."""

logger = logging.getLogger(__name__)


class RayEngine(Engine):
    """Actors of a Ray cluster, one a CPU."""

    def __init__(self, config: WorkerConfig, settings: Settings, most: int, address: str) -> None:
        """
        Args:
            config: what each worker is to do; `make` must not need this machine.
            settings: of the transform. Its `workers`, if set, is how many there are, else all that there are CPUs for.
            most: workers that there is something to do for.
            address: of the cluster; empty: one of our own, on this machine.

        Raises:
            ConfigError: there is no Ray here.
            JobError: there is no such cluster.
        """
        self._ray = _import_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, address, settings)
        self._journal = config.owner.journal
        self._token = _make_token(config)
        given = settings.model_fields_set
        count = settings.workers if "workers" in given or not address else self._cpus()
        count = max(1, min(count, most))
        config = config._replace(memory=settings.max_memory // count if "max_memory" in given else 0)
        order = Order(config, settings, settings.object_timeout, _folder(config.source), self._token)
        self._order = pickle.dumps(order)
        self._class = self._ray.remote(Worker)
        self._stopping = False
        self._again: deque[Task] = deque()
        """Tasks that no actor has."""
        self._suspects: deque[Task] = deque()
        """Tasks whose actors were lost again and again."""
        self._losses: Counter[int] = Counter()
        """How many actors were lost that had a task, by its id."""
        self._lost: list[Outcome] = []
        self._false_starts = 0
        self._leased_until = 0.0
        """When the last actor that was lost has ended, even if nobody can reach it."""
        self._tell_at = time.monotonic() + TOLD_AFTER
        self._actors = [self._spawn() for _ in range(count)]

    def _cpus(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 1))

    def _spawn(self, *, alone: bool = False) -> _Actor:
        return _Actor(self._ray, self._class, self._order, alone=alone)

    def room(self) -> int:
        return max(0, sum(actor.room() for actor in self._actors) - len(self._again))

    def submit(self, tasks: Sequence[Task]) -> None:
        self._again.extend(tasks)
        self._distribute()

    def _distribute(self) -> None:
        while self._again:
            actor = max(self._actors, key=_Actor.room)
            room = actor.room()
            if room <= 0:
                break
            actor.give([self._again.popleft() for _ in range(min(len(self._again), max(1, room // 2)))])
        if self._suspects:
            lone = next((actor for actor in self._actors if actor.alone), None)
            if lone is None:
                self._actors.append(self._spawn(alone=True))
            elif lone.ready and not lone.tasks:
                lone.give([self._suspects.popleft()])
        for actor in self._actors:
            actor.call(self._stopping)

    def poll(self, timeout: float) -> list[Outcome]:
        self._distribute()
        outcomes, self._lost = self._lost, []
        calls = {actor.pending: actor for actor in self._actors if actor.pending is not None}
        if not calls:
            time.sleep(0 if outcomes else timeout)
            return outcomes
        with self._cluster():
            done, _ = self._ray.wait(list(calls), num_returns=1, timeout=0 if outcomes else timeout)
            if done:
                done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in done:
            outcomes += self._receive(calls[call])
        self._tell_of_waiting()
        return outcomes

    def _receive(self, actor: _Actor) -> list[Outcome]:
        try:
            with self._cluster():
                answer = self._ray.get(actor.pending, timeout=CALL_GRACE)
        except self._ray.exceptions.RayError as error:
            self._bury(actor, error)
            return []
        if isinstance(answer, str):
            if answer:
                raise JobError(answer)
            actor.begun()
            self._false_starts = 0
            return []
        reply: Reply = answer
        self._note(reply)
        if reply.refused:
            raise JobError(reply.refused)
        return actor.take(reply)

    def _bury(self, actor: _Actor, error: Exception) -> None:
        """An actor is lost: its process, or its node, or the way to it."""
        reason = _reason(error)
        actor.kill()
        self._actors.remove(actor)
        self._lose()
        if not actor.ready:
            self._false_starts += 1
            if "No module named 'etl_server" in str(error):
                wanted = ", ".join(f"{what} {version}" for what, version in versions().items())
                raise JobError(f"a Ray node has no such etl_server as is here: expected {wanted} on every node")
            if self._false_starts >= FALSE_STARTS * max(1, len(self._actors)):
                raise JobError(f"no Ray worker can be started: {reason}")
        elif not self._stopping:
            logger.warning("a Ray worker was lost, and others do its work: %s", reason)
        if self._stopping:
            return
        for task in reversed(actor.tasks.values()):
            self._losses[task.id] += 1
            losses = self._losses[task.id]
            if actor.alone:
                detail = f"its Ray worker was lost {losses} times: {reason}"
                self._lost.append(Outcome(task.id, detail, bytes_in=task.size))
                self._losses.pop(task.id)
            elif losses >= LOSSES:
                self._suspects.append(task)
            else:
                self._again.appendleft(task)
        if not actor.alone:
            self._actors.append(self._spawn())

    def _lose(self) -> None:
        """There is an actor that does not answer any more."""
        self.unclean = True
        self._leased_until = time.monotonic() + LEASE

    @property
    def in_flight(self) -> int:
        given = sum(len(actor.tasks) for actor in self._actors)
        return given + len(self._again) + len(self._suspects) + len(self._lost)

    def busy(self) -> list[Busy]:
        now = time.monotonic()
        return sorted((busy for actor in self._actors for busy in actor.busy(now)), key=lambda busy: -busy.seconds)

    def stop(self) -> None:
        self._stopping = True
        self._again.clear()
        self._suspects.clear()
        for actor in self._actors:
            actor.forget()

    def close(self) -> None:
        peaceful = not self.in_flight
        self.unclean = self.unclean or not peaceful
        try:
            self._end_workers(CALL_GRACE + (STOP_GRACE if peaceful else 0))
        finally:
            with _undisturbed():
                self._leave()

    def _end_workers(self, patience: float) -> None:
        calls = [call for actor in self._actors if (call := actor.close()) is not None]
        deadline = time.monotonic() + patience
        for call in calls:
            try:
                reply = self._ray.get(call, timeout=max(0.1, deadline - time.monotonic()))
            except (self._ray.exceptions.RayError, ConnectionError):
                self._lose()
            else:
                self._note(reply)
        self.abandoned = time.monotonic() < self._leased_until

    def _leave(self) -> None:
        for actor in self._actors:
            actor.kill()
        self._actors.clear()
        if self._token is not None:
            self._token.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # where there is an output
                self._token.parent.rmdir()
        if self._own:
            self._ray.shutdown()

    def _note(self, reply: Reply) -> None:
        """Take what is not about tasks."""
        self.unclean = self.unclean or reply.unclean
        if reply.notes:
            with self._journal.open("ab") as journal:
                journal.write(reply.notes)
        # Not to standard output, which programs may read.
        sys.stderr.write(reply.prints.decode(errors="replace"))

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, self._ray.exceptions.LocalRayletDiedError) as error:
            raise JobError(f"the Ray cluster is lost: {one_line(error)[:LONGEST_REASON]}") from None

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        if any(actor.ready for actor in self._actors):
            self._tell_at = now + TOLD_AFTER
        elif now > self._tell_at:
            self._tell_at = now + 4 * TOLD_AFTER
            logger.warning("there is no Ray worker: waiting for a CPU of the cluster that is free")


class _Actor:
    """An actor, as seen from here. It has one call at a time."""

    def __init__(self, ray: Any, cls: Any, order: bytes, *, alone: bool) -> None:
        """`alone`: it is for one task at a time, and may share a CPU, so that it need not wait for one."""
        self.alone = alone
        self.ready = False
        self.tasks: dict[int, Task] = {}
        """What it has, or is going to be given with the next call."""
        self._ray = ray
        self._outbox: list[Task] = []
        self._room = 0
        self._told_to_stop = False
        self._busy: list[Busy] = []
        self._heard = self._called = time.monotonic()
        cpus = 0 if alone else 1
        self._actor = cls.options(num_cpus=cpus, max_restarts=0, scheduling_strategy="SPREAD").remote()
        self.pending: Any = self._actor.begin.remote(versions(), _environment(), order)

    def begun(self) -> None:
        """It is there."""
        self.ready = True
        self.pending = None
        self._called = 0.0  # to learn what room it has

    def room(self) -> int:
        """How many more tasks it can use."""
        return 0 if self.alone else max(0, self._room)

    def give(self, tasks: list[Task]) -> None:
        """It gets them with its next call."""
        self._room -= len(tasks)
        self._outbox += tasks
        self.tasks.update((task.id, task) for task in tasks)

    def call(self, stop: bool) -> None:
        """Give it what is to be given, and ask what has come of the rest, if there is a reason to."""
        if not self.ready or self.pending is not None:
            return
        now = time.monotonic()
        if self._outbox or self.tasks or now - self._called > IDLE:
            tasks, self._outbox = self._outbox, []
            self._called = now
            self._told_to_stop = stop
            self.pending = self._actor.exchange.remote(tasks, stop)

    def take(self, reply: Reply) -> list[Outcome]:
        """A reply has come."""
        self.pending = None
        self._heard = time.monotonic()
        self._busy = reply.busy
        self._room = reply.room - len(self._outbox)
        known = [outcome for outcome in reply.outcomes if self.tasks.pop(outcome.id, None) is not None]
        if self._told_to_stop and not reply.in_flight:
            self.tasks.clear()
        return known

    def busy(self, now: float) -> list[Busy]:
        """What it is working on."""
        ago = now - self._heard
        return [busy._replace(seconds=busy.seconds + ago) for busy in self._busy if busy.task_id in self.tasks]

    def forget(self) -> None:
        """Take back what it was not given yet."""
        for task in self._outbox:
            del self.tasks[task.id]
        self._outbox.clear()

    def close(self) -> Any:
        """Have it end its work; a call to wait for, or None where it has none."""
        return self._actor.close.remote() if self.ready else None

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray: Ray is not installed: expected pip install 'etl-server[ray]'") from None
    module: ModuleType = ray
    return module


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Have signals that end the command wait, in the main thread: Ray ends the process if it is kept from its end."""
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if here
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signalled in came:
            signal.raise_signal(signalled)


def _connect(ray: Any, address: str, settings: Settings) -> None:
    """Have Ray, quiet, and without its statistics."""
    # What Ray has to say of its own would go to standard output, which programs may read. It has no option for that.
    with contextlib.suppress(AttributeError):
        ray._private.worker._worker_logs_enabled = False
    if address:
        check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    here = {"num_cpus": settings.workers, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else here)
        )
    except Exception as error:
        shown = (
            f"--ray-address {address}: expected a Ray cluster that can be reached" if address else "Ray cannot start"
        )
        raise JobError(f"{shown}: {one_line(error)[:LONGEST_REASON]}") from None
    finally:
        for number, handler in on_signal.items():
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)


def check_address(address: str) -> None:
    """Check that an address is one, and somebody there, for whom Ray would wait for minutes.

    Raises:
        ConfigError: it is none.
        JobError: nobody is there.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address {address}: expected host:port or auto, on a node of the cluster. A job through Ray Client"
            " would end with its connection; from elsewhere: ray job submit -- etl-server transform …"
        )
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise ConfigError(f"--ray-address {address}: expected host:port or auto")
    try:
        socket.create_connection((host, int(port)), CALL_GRACE).close()
    except OSError as error:
        raise JobError(f"--ray-address {address}: expected a Ray cluster that can be reached: {error}") from None


def _environment() -> dict[str, str]:
    """The variables that go along."""
    return {
        name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) and not name.startswith(KEPT)
    }


def _folder(uri: str) -> Path | None:
    """The directory that a URI is of, if it is of one."""
    with open_store(uri) as store:
        return store.root if isinstance(store, LocalObjectStore) else None


def _make_token(config: WorkerConfig) -> Path | None:
    """A file where the outputs go, which whoever is to write there has to see; it is no object."""
    folder = None if config.sink is None else _folder(config.sink)
    if folder is None:
        return None
    token = folder / f"{INCOMING}-{config.owner.id}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise JobError(f"{folder}: expected a folder that can be written to: {error.strerror}") from None
    return token


def _reason(error: Exception) -> str:
    """Why an actor is lost, of all that Ray has to say: where it was, and one sentence on what became of it."""
    text = one_line(error)
    place = re.search(r"\bip: ([^\s,)]+)", text, re.IGNORECASE)
    why = (re.search(r"\bbecause (.+?)(?:\. |$)", text) or re.search(r"(.+?)(?:\. |$)", text) or [text, text])[1]
    return (f"{place[1]}: {why}" if place else why)[:LONGEST_REASON]
