"""One process's server from its start to its end: ready, stopping, finished.

**Ready.** The socket is listened on once `setup()` is done. Until then a connection is refused, or goes to those
processes that share the socket and are ready.

**Told to stop** (SIGTERM, or SIGINT), it is to end within `ETL_DRAIN_TIMEOUT`, and to fail no object by that:

1. `/health` answers 503, and every answer says `Connection: close`: a client that keeps a connection open sends its
   next object over another one, to another server. A WebSocket is closed when the objects it has taken are answered.
2. Connections are still taken for `ETL_DRAIN_DELAY`, and for `LINGER` as long as there are any: whoever is about to
   send does not know yet.
3. Then it stops listening, but not with connections in the queue, which the system would reset: see `ignore_new`.
4. What is in flight is finished. A connection is closed when nothing has come on it for `LINGER`: HTTP/1.1 has no way
   to close an idle connection that a client cannot cross with a request, but who sends all the time has got an
   answer with `Connection: close` by then.
5. `teardown()`, and the exit code is 0. If the time is over before that, what is not finished is cut, so that its
   client sees the failure, and the exit code is 1. It is 1 too if `teardown()` raised.

**Stuck.** Under `ETL_WATCHDOG`, a process whose event loop stands still for so long, because a transform on it does not
return, says where, and ends with exit code 1.

A second SIGINT ends it at once, and the exit code is 1 if anything was in flight. Before `setup()` is done, there is
nothing to finish, and it ends at once too.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from ..errors import StartError
from .app import ETLApp
from .http import ObjectProtocol
from .listen import BACKLOG, ignore_new, not_free, waiting

UNFINISHED = 1
"""The exit code of a server that had to cut objects to end, or whose `teardown` raised."""
LINGER = 1.0
"""Seconds without a request after which a stopping server takes it that none is on its way."""
SECOND_CHANCE = 1.0
"""Seconds that an event loop which stood still gets to go on: the whole process may have been stopped meanwhile."""
TEARDOWN_GRACE = 3.0
"""Seconds beyond `ETL_DRAIN_TIMEOUT` after which a process ends, whatever it is doing."""

logger = logging.getLogger("etl_server.serve")


@contextlib.contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT handled; in a thread other than the main one, they are left as they are."""
    here = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT) if here}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def leave(*_: object) -> None:
    """End this process at once: nothing has been taken that would have to be finished."""
    os._exit(0)


class Server(uvicorn.Server):
    """A uvicorn server that loses no object at its end. See the module."""

    def __init__(self, config: uvicorn.Config, app: ETLApp, listener: socket.socket) -> None:
        super().__init__(config)
        self.unfinished = 0
        """How many objects were not finished, or connections had not taken their answers."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called when objects are taken."""
        self.shares_listener = False
        """Whether other processes go on to accept from the socket when this one stops."""
        self._worker = app.worker
        self._settings = app.worker.settings
        self._listener = listener
        self._told_to_stop: float | None = None
        self._ignoring = False
        self._listening = False
        self._interrupts = 0
        # Signals are for the main thread only.
        here = threading.current_thread() is threading.main_thread()
        self._watchdog = self._settings.watchdog if here else None
        self._standstills = 0
        """How many times the watchdog has found the loop to stand still since it turned last."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Set up, then listen.

        Raises:
            StartError: it cannot. What `setup` raised has been logged.
        """
        try:
            await self._worker.start()  # the application's own start would do it too, and not say what is wrong
        except Exception as error:
            logger.error("setup() raised %s", type(error).__name__, exc_info=error)
            raise StartError(f"setup() failed: {self._worker.start_error}") from None
        # What is here now stays until the end: a garbage collection that looks at all of it makes objects wait.
        gc.collect()
        gc.freeze()
        try:
            self._listener.listen(BACKLOG)  # uvloop would do it too, and not say if it cannot
            await super().startup(sockets)
        except OSError as error:
            raise StartError(not_free(self._settings, error)) from None
        self._listening = True
        if self._watchdog:
            signal.signal(signal.SIGALRM, self._stands_still)
        self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._worker.started:
            leave()  # what setup() is doing may take for ever
        self._interrupts += sig == signal.SIGINT
        if self._interrupts > 1:
            self.unfinished = self._worker.admission.in_flight
            self.should_exit = self.force_exit = True
        if self._told_to_stop is None:
            self._told_to_stop = time.monotonic()
            signal.signal(signal.SIGALRM, self._end_late)
            signal.setitimer(signal.ITIMER_REAL, self._settings.drain_timeout + TEARDOWN_GRACE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        cut = sum(getattr(connection, "unsent", 0) > 0 for connection in self.server_state.connections)
        if cut:
            self.unfinished += cut
            logger.error("%d connection(s) had not taken their answers in time", cut)

    @property
    def exit_code(self) -> int:
        """0, or `UNFINISHED`; once it has ended."""
        return UNFINISHED if self.unfinished or self.lifespan.should_exit else 0

    async def on_tick(self, counter: int) -> bool:
        if self._watchdog and self._told_to_stop is None:
            self._standstills = 0
            signal.setitimer(signal.ITIMER_REAL, self._watchdog)
        if self._told_to_stop is not None and not self.should_exit:
            self.should_exit = self._stop(self._told_to_stop)
        return await super().on_tick(counter)

    def _stop(self, since: float) -> bool:
        """The next step towards the end; whether it is reached."""
        admission = self._worker.admission
        if not admission.draining.is_set():
            logger.info("stopping: %d in flight", admission.in_flight)
            admission.drain()
        waited = time.monotonic() - since
        if waited >= self._settings.drain_timeout:
            self.unfinished = admission.in_flight
            self.config.timeout_graceful_shutdown = 0
            return True
        if self._listening:
            delay = self._settings.drain_delay
            if waited >= delay and (waited >= delay + LINGER or not self._busy(since)):
                self._stop_listening()
            return False
        if self._busy(since):
            return False
        self.config.timeout_graceful_shutdown = max(1, round(self._settings.drain_timeout - waited))
        return True

    def _stop_listening(self) -> None:
        if not self.shares_listener:
            if not self._ignoring:
                ignore_new(self._listener)
                self._ignoring = True
                return  # by the next step, who had already asked for a connection has got it
            if waiting(self._listener):
                return
        for server in self.servers:
            server.close()
        self._listener.close()
        self._listening = False

    def _busy(self, since: float) -> bool:
        """Whether anything is in flight, or a request may be on its way."""
        moment = time.monotonic() - LINGER
        return self._worker.admission.in_flight > 0 or any(
            isinstance(connection, ObjectProtocol) and (since > moment or not connection.idle_since(moment))
            for connection in self.server_state.connections
        )

    def _stands_still(self, _: int, frame: FrameType | None) -> None:
        self._standstills += 1
        if self._standstills == 1:
            signal.setitimer(signal.ITIMER_REAL, SECOND_CHANCE)
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends it too, should the log not be written
        signal.setitimer(signal.ITIMER_REAL, SECOND_CHANCE)
        try:
            where = "".join(traceback.format_stack(frame))
            logger.error("the event loop stood still for ETL_WATCHDOG=%g s, at:\n%s", self._watchdog, where)
        finally:
            os._exit(UNFINISHED)

    def _end_late(self, *_: object) -> None:
        try:  # what this interrupts may be the writing of a log, which cannot be entered twice
            logger.error("it did not end within ETL_DRAIN_TIMEOUT=%g s", self._settings.drain_timeout)
        finally:
            os._exit(UNFINISHED)
