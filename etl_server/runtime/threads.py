"""Worker threads for synchronous transforms: as many as the event loop bears, never more."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..config import available_cpus

T = TypeVar("T")

SWITCH_INTERVAL = 0.0005
"""Seconds for which a thread that computes keeps the interpreter while the event loop wants it."""
TICK = 0.005
"""Seconds between two looks at what the threads do."""
LATE = 0.005
"""Lateness of the event loop, in seconds, from which threads are too many."""
IDLE = 0.5
"""CPUs in use, all threads together, below which they count as waiting for something."""
FIRST = 2
"""Threads at once, to begin with."""
MOST = 256
"""Threads at once, at the most."""


class WorkerThreads:
    """Runs functions in daemon threads; belongs to one event loop.

    How many run at once adapts itself. While work waits and the threads only wait too, the limit doubles; where each
    of them has a CPU to itself, it rises by one. Threads that compete for the interpreter are not given company, and
    when that makes the event loop late, their number is halved. A call whose caller has gone away no longer counts:
    it may hang for ever.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cpus = available_cpus()
        self._limit = FIRST
        self._running = 0
        self._threads = 0
        self._busy = 0
        self._ticking = False

    async def run(self, function: Callable[..., T], *args: Any, on_exit: Callable[[], None] | None = None) -> T:
        """Call `function(*args)` in a thread and return or raise what it does.

        `on_exit` is called on the loop once the function has really ended, even if nobody waits for it any more, or
        when it is clear that it will never start.
        """
        while self._running >= self._limit:
            place = self._loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._admit()
                if on_exit is not None:
                    on_exit()
                raise
        job = _Job(function, args, self._loop.create_future(), on_exit)
        try:
            self._start(job)
        except RuntimeError:  # the system gives no more threads
            if on_exit is not None:
                on_exit()
            raise
        try:
            return await job.done  # type: ignore[no-any-return]
        finally:
            if not job.ended:
                job.abandoned = True
                self._leave()

    def spawn(self, function: Callable[[], object]) -> None:
        """Call `function` in a thread some time; nobody waits for it."""
        self._start(_Job(function, (), self._loop.create_future(), None))

    def stop(self) -> None:
        """Let idle threads end. Those that still work are left alone."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _start(self, job: _Job) -> None:
        if self._busy >= self._threads:
            threading.Thread(target=self._work, name=f"transform-{self._threads}", daemon=True).start()
            self._threads += 1
        self._running += 1
        self._busy += 1
        self._jobs.put(job)
        if not self._ticking:
            self._ticking = True
            self._schedule_tick()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            try:
                job.result = job.function(*job.args)
            except BaseException as error:
                job.error = error
            try:
                self._loop.call_soon_threadsafe(self._end, job)
            except RuntimeError:  # the loop is closed
                return
            del job

    def _end(self, job: _Job) -> None:
        self._busy -= 1
        job.ended = True
        if job.on_exit is not None:
            job.on_exit()
        if job.abandoned:
            return
        self._leave()
        if job.done.done():
            return
        if job.error is None:
            job.done.set_result(job.result)
        else:
            job.done.set_exception(tame(job.error))

    def _leave(self) -> None:
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        places = self._limit - self._running
        while self._waiting and places > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                places -= 1

    def _schedule_tick(self) -> None:
        due = self._loop.time() + TICK
        self._loop.call_at(due, self._tick, due, time.process_time(), time.thread_time())

    def _tick(self, due: float, process_time: float, loop_time: float) -> None:
        late = self._loop.time() - due
        computing = (time.process_time() - process_time) - (time.thread_time() - loop_time)
        cpus = computing / (TICK + late)
        if late > LATE and cpus > IDLE:
            self._limit = max(1, self._limit // 2)
        elif self._waiting:
            if cpus < IDLE:
                self._limit = min(MOST, self._limit * 2)
            elif cpus > 0.8 * self._running and self._running < self._cpus:
                self._limit = self._running + 1
            self._admit()
        if self._running or self._waiting:
            self._schedule_tick()
        else:
            self._ticking = False


def tame(error: BaseException) -> Exception:
    """What a user's code raised, as an error that ends neither an event loop nor an iteration."""
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


class _Job:
    __slots__ = ("abandoned", "args", "done", "ended", "error", "function", "on_exit", "result")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        done: asyncio.Future[Any],
        on_exit: Callable[[], None] | None,
    ) -> None:
        self.function = function
        self.args = args
        self.done = done
        self.on_exit = on_exit
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.abandoned = False
