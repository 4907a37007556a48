"""Objects over a WebSocket: many in work at once, answered in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from ..errors import (
    INTERNAL,
    BadRequestError,
    BodyTooLargeError,
    ClientDisconnectedError,
    ETLError,
    ServerEndedError,
    TransformError,
    error_body,
)
from ..wire.control import ControlMessage, InvalidControlMessageError, parse_control_message
from ..wire.pipeline import InvalidPipelineError, ends_at_target
from .admission import Lease
from .counts import GONE
from .eager import Work, start_eagerly
from .exchange import DIRECT_PUT_LENGTH_HEADER, NO_CONTENT
from .flow import Batch
from .source import BytesSource, Source
from .worker import ObjectRequest, Worker

WINDOW = 16
"""Objects of one connection that are in work at once; further ones wait in its socket."""
WAY = "websocket"
LATE_LINGER = 1.0
"""Seconds that a connection is kept which was made while the server was stopping."""
LONGEST_REASON = 123
"""Bytes that fit in a close frame beside its code (RFC 6455, 5.5)."""

GOING_AWAY = 1001
INTERNAL_ERROR = 1011


class Socket(Protocol):
    """What the data path needs of a WebSocket. Nothing here waits: what is sent is buffered."""

    def send(self, message: bytes | str) -> None:
        """Send a binary or a text message."""

    def close(self, code: int, reason: str) -> None:
        """Send what is buffered, then close."""

    def pause(self) -> None:
        """Feed no further message for now."""

    def resume(self) -> None:
        """Feed messages again."""


class Session:
    """One connection: its transport feeds it messages, and says when the other side is gone."""

    def __init__(self, worker: Worker, socket: Socket) -> None:
        self._worker = worker
        self._socket = socket
        self._way = worker.counts.websocket
        self._control: ControlMessage | None = None
        """What was said of the object that comes next."""
        self._due: deque[_Due] = deque()
        self._taking = True
        self._ended = asyncio.Event()
        self._paused = False
        self._waiting: asyncio.Task[None] | None = None
        worker.admission.enter()
        worker.admission.on_drain(self._drain)
        if worker.admission.draining.is_set():
            # Its client did not know. One object is taken, if it comes soon.
            asyncio.get_running_loop().call_later(LATE_LINGER, self._drain)
        worker.sessions.add(self)

    # The transport's side

    def feed(self, message: bytes | str) -> None:
        """A message has come."""
        if not self._taking:
            return
        try:
            if self._control is None:
                control = parse_control_message(message)
                if control.fqn:
                    self._take(control, b"")
                else:
                    self._control = control
                    self._wait_for_memory()
            elif isinstance(message, str):
                raise InvalidControlMessageError("the object is a text message, expected a binary one")
            else:
                control, self._control = self._control, None
                self._take(control, message)
        except InvalidControlMessageError as error:
            # Which message belongs to what is unknown from here on, so the connection ends.
            self._fail(BadRequestError(f"Protocol error: {error}"))

    def fail(self, code: int, reason: str) -> None:
        """What comes cannot be taken: once the answers that are due have been sent, close with `code`."""
        self._taking = False
        self._due.append(_Due(ControlMessage(), Lease(self._worker.admission.memory), (code, reason)))
        self._answer()

    def gone(self) -> None:
        """The other side is gone: whatever is going on for it ends."""
        if not self._ended.is_set():
            self._end(ClientDisconnectedError("The client went away"))

    @property
    def in_work(self) -> int:
        return len(self._due)

    def stop(self) -> None:
        """The process ends now: what is not answered by then has failed."""
        if self._due:
            self._close(INTERNAL_ERROR, "the server ended before the object was finished")
        else:
            self._close(GOING_AWAY, "the server is stopping")

    async def wait_ended(self) -> None:
        """Wait until the connection is closed, by either side."""
        await self._ended.wait()

    # Objects

    def _take(self, control: ControlMessage, data: bytes) -> None:
        """An object is here, or is to be read from a file."""
        worker = self._worker
        self._taking = not worker.admission.draining.is_set()
        quick = not (self._due or control.fqn or control.pipeline or control.etl_args or worker.access_log)
        if not quick or not worker.executor.is_quick(len(data)):
            lease = Lease(worker.admission.memory)
            self._start(_Due(control, lease), partial(self._transform, control, data, lease))
            return
        # Next in turn, and soon done: it needs no place in the queue.
        try:
            result = worker.transform_now(control.path, data, self._way)
        except ETLError as error:
            self._report(error, control, time.monotonic() - worker.executor.failed.seconds)
        else:
            if type(result) is not bytes:
                self._start(_Due(control, Lease(worker.admission.memory)), partial(self._finish, data, result))
                return
            self._socket.send(result)
            worker.counts.passed(len(data), len(result))
            self._way.answered(200)
        if not self._taking:
            self._answer()

    def _start(self, due: _Due, work: Callable[[], Awaitable[bytes | str]]) -> None:
        self._due.append(due)
        due.task = start_eagerly(self._process(due, work), eager=self._worker.eager)
        if due.task is None:
            self._answer()
        else:
            due.task.add_done_callback(self._work_ended)
        self._set_paused()

    async def _process(self, due: _Due, work: Callable[[], Awaitable[bytes | str]]) -> None:
        try:
            due.result = await work()
        except Exception as error:
            due.error = error

    async def _finish(self, data: bytes, result: object) -> bytes:
        return await self._worker.finish(len(data), result, self._way)

    async def _transform(self, control: ControlMessage, data: bytes, lease: Lease) -> bytes | str:
        """The message to answer with: the transformed object, or as text the bytes that were delivered."""
        worker = self._worker
        request = ObjectRequest.make(self._way, control.path, control.etl_args, control.pipeline)
        source: Source
        if control.fqn:
            source = worker.file_source(control.fqn, lease)
        else:
            limit = worker.settings.max_body
            if limit is not None and len(data) > limit:
                raise BodyTooLargeError.beyond(limit)
            lease.add(len(data))
            source = BytesSource(data)
        answer = await worker.process(request, source, lease)
        if answer.status == NO_CONTENT:
            return dict(answer.headers).get(DIRECT_PUT_LENGTH_HEADER, "0")
        if isinstance(answer.body, bytes):
            return answer.body
        parts: Batch = []
        try:
            async for batch in answer.body:
                lease.add(sum(map(len, batch)))
                parts += batch
        finally:
            await answer.body.aclose()
        return b"".join(parts)

    def _work_ended(self, _: object) -> None:
        self._answer()

    def _answer(self) -> None:
        """Answer what is due and done, in order."""
        due = self._due
        while due and due[0].done and not self._ended.is_set():
            head = due.popleft()
            head.lease.release()
            if head.closing is not None:
                self._close(*head.closing)
            elif head.result is None:
                try:
                    self._report(head.error or TransformError("it was cancelled"), head.control, head.started)
                except Exception:
                    # The next answer must not be taken for this one's.
                    self._close(INTERNAL_ERROR, INTERNAL)
                    raise
            else:
                self._socket.send(head.result)
                status = 200 if isinstance(head.result, bytes) else 204
                self._way.answered(status)
                if self._worker.access_log:
                    self._worker.log_done(WAY, head.control.path, status, head.started)
        if self._ended.is_set():
            return
        self._set_paused()
        if not due and self._worker.admission.draining.is_set() and self._control is None:
            self._close(GOING_AWAY, "the server is stopping")

    def _wait_for_memory(self) -> None:
        """Leave the object in its sender's socket while there is no room for it."""
        memory = self._worker.admission.memory
        if memory.full and self._waiting is None:
            self._waiting = asyncio.create_task(memory.wait_for_room())
            self._waiting.add_done_callback(self._memory_there)
            self._set_paused()

    def _memory_there(self, _: asyncio.Task[None]) -> None:
        self._waiting = None
        self._set_paused()

    def _set_paused(self) -> None:
        paused = not self._ended.is_set() and (len(self._due) >= WINDOW or self._waiting is not None)
        if paused != self._paused:
            self._paused = paused
            if paused:
                self._socket.pause()
            else:
                self._socket.resume()

    def _report(self, error: Exception, control: ControlMessage, started: float) -> None:
        """Report a failed object so that it cannot be taken for success."""
        detail = self._explain(error, control.path, started)
        if _acknowledged(control):
            # Where text is due, a target takes a binary message as the failure of that object.
            self._socket.send(error_body(detail))
        elif self._worker.settings.ws_error == "text":
            self._socket.send(detail)
        else:
            self._close(INTERNAL_ERROR, detail)

    def _fail(self, error: ETLError) -> None:
        self.fail(INTERNAL_ERROR, self._explain(error, "", time.monotonic()))

    def _explain(self, error: Exception, name: str, started: float) -> str:
        self._way.answered(error.status if isinstance(error, ETLError) else 500)
        self._worker.log_failure(error, WAY, name, started)
        return self._worker.told(error) if isinstance(error, ETLError) else INTERNAL

    # The end

    def _drain(self) -> None:
        """The server is stopping: finish what was taken, and an object that is half here."""
        if self._control is None:
            self._taking = False
        self._answer()

    def _close(self, code: int, reason: str) -> None:
        self._socket.close(code, reason.encode()[:LONGEST_REASON].decode(errors="ignore"))
        self._end(ServerEndedError("the connection was closed before the object was finished"))

    def _end(self, error: ETLError) -> None:
        self._taking = False
        self._ended.set()
        if self._waiting is not None:
            self._waiting.cancel()
        unanswered = [due for due in self._due if due.closing is None]
        for due in self._due:
            if due.task is not None:
                due.task.cancel()
            due.lease.release()
        self._due.clear()
        self._worker.sessions.discard(self)
        self._worker.admission.leave(self._drain)
        if self._control is not None:
            self._worker.log_failure(error, WAY, self._control.path, time.monotonic())
        for due in unanswered:
            self._way.answered(GONE)
            self._worker.log_failure(error, WAY, due.control.path, due.started)


class _Due:
    """An answer that is due: to an object, or the end of the connection."""

    __slots__ = ("closing", "control", "error", "lease", "result", "started", "task")

    def __init__(self, control: ControlMessage, lease: Lease, closing: tuple[int, str] | None = None) -> None:
        self.control = control
        self.lease = lease
        self.task: Work | None = None
        self.closing = closing
        self.result: bytes | str | None = None
        self.error: Exception | None = None
        self.started = time.monotonic()

    @property
    def done(self) -> bool:
        return self.task is None or self.task.done()


def _acknowledged(control: ControlMessage) -> bool:
    try:
        return ends_at_target(control.pipeline)
    except InvalidPipelineError:
        return False
