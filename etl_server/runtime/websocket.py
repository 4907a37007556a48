"""Objects over a WebSocket: many in work at once, answered in the order in which they came."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import INTERNAL, BadRequestError, BodyTooLargeError, ETLError, error_body
from ..wire.control import ControlMessage, InvalidControlMessageError, parse_control_message
from ..wire.pipeline import InvalidPipelineError, ends_at_target
from .exchange import DIRECT_PUT_LENGTH_HEADER
from .flow import Batch
from .source import BytesSource, Source
from .worker import ObjectRequest, Worker

if TYPE_CHECKING:
    from starlette.types import Receive, Send

WINDOW = 16
"""Objects of one connection that are in work at once; further ones wait in its socket."""
LONGEST_REASON = 123
"""Bytes that fit in a close frame beside its code (RFC 6455, 5.5)."""

GOING_AWAY = 1001
INTERNAL_ERROR = 1011


class Socket(Protocol):
    """What the data path needs of a WebSocket."""

    async def accept(self) -> None: ...

    async def receive(self) -> bytes | str | None:
        """The next message; None: the other side is gone."""

    async def send(self, message: bytes | str) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...


class _Due(NamedTuple):
    """An answer that is due: what was asked, and the work on it."""

    control: ControlMessage
    work: asyncio.Task[bytes | str]
    """The message to answer with: the transformed object, or as text the bytes that were delivered by direct put."""


async def serve_websocket(worker: Worker, socket: Socket) -> None:
    """Serve one connection until either side ends it."""
    ticket = worker.admission.enter()
    try:
        await socket.accept()
        await _Session(worker, socket).run()
    finally:
        worker.admission.leave(ticket)


class _Session:
    def __init__(self, worker: Worker, socket: Socket) -> None:
        self._worker = worker
        self._socket = socket
        self._due: asyncio.Queue[_Due | ETLError | None] = asyncio.Queue()
        self._window = asyncio.Semaphore(WINDOW)
        self._work: set[asyncio.Task[bytes | str]] = set()
        self._between_objects = True

    async def run(self) -> None:
        taking = asyncio.create_task(self._take())
        answering = asyncio.create_task(self._answer())
        draining = asyncio.create_task(self._drain(taking))
        try:
            await asyncio.wait((taking, answering), return_when=asyncio.FIRST_COMPLETED)
            if taking.done() and not taking.result():
                return
            await asyncio.wait((answering,))
            answering.result()
        finally:
            tasks = (taking, answering, draining, *self._work)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, taking: asyncio.Task[bool]) -> None:
        """Once the server is stopping, take no further object; one that is half here is taken whole."""
        await self._worker.admission.draining.wait()
        if self._between_objects:
            taking.cancel()

    async def _take(self) -> bool:
        """Take objects and start the work on them. Returns whether there is still somebody to answer to."""
        try:
            while not self._worker.admission.draining.is_set():
                await self._window.acquire()
                self._between_objects = True
                message = await self._socket.receive()
                self._between_objects = False
                if message is None:
                    return False
                control = parse_control_message(message)
                data = b"" if control.fqn else await self._socket.receive()
                if data is None:
                    return False
                if isinstance(data, str):
                    raise InvalidControlMessageError("the object is a text message, expected a binary one")
                work = asyncio.create_task(self._process(control, data))
                self._work.add(work)
                work.add_done_callback(self._work.discard)
                self._due.put_nowait(_Due(control, work))
        except InvalidControlMessageError as error:
            # Which message belongs to what is unknown from here on, so the connection ends.
            self._due.put_nowait(BadRequestError(f"Protocol error: {error}"))
            return True
        except asyncio.CancelledError:
            if not self._worker.admission.draining.is_set():
                raise
        self._due.put_nowait(None)
        return True

    async def _process(self, control: ControlMessage, data: bytes) -> bytes | str:
        worker = self._worker
        request = ObjectRequest.make(control.path, control.etl_args, control.pipeline)
        source: Source
        if control.fqn:
            source = worker.file_source(control.fqn)
        else:
            limit = worker.settings.max_body
            if limit is not None and len(data) > limit:
                raise BodyTooLargeError.beyond(limit)
            source = BytesSource(data)
        answer = await worker.process(request, source)
        if answer.status == HTTPStatus.NO_CONTENT:
            return dict(answer.headers).get(DIRECT_PUT_LENGTH_HEADER, "0")
        if isinstance(answer.body, bytes):
            return answer.body
        parts: Batch = []
        try:
            async for batch in answer.body:
                parts += batch
        finally:
            await answer.body.aclose()
        return b"".join(parts)

    async def _answer(self) -> None:
        """Answer in order; what fails is reported so that it cannot be taken for success."""
        while True:
            due = await self._due.get()
            if due is None:
                await self._socket.close(GOING_AWAY, "the server is stopping")
                return
            if isinstance(due, ETLError):
                await self._fail(due, "websocket")
                return
            try:
                message = await due.work
            except Exception as error:
                if not await self._report(error, due.control):
                    return
            else:
                await self._socket.send(message)
            self._window.release()

    async def _report(self, error: Exception, control: ControlMessage) -> bool:
        """Report a failed object. Returns whether the connection goes on."""
        what = f"websocket {control.path}"
        if _acknowledged(control):
            # Where text is due, a target takes a binary message as the failure of that object.
            await self._socket.send(error_body(self._explain(error, what)))
            return True
        if self._worker.settings.ws_error == "text":
            await self._socket.send(self._explain(error, what))
            return True
        await self._fail(error, what)
        return False

    async def _fail(self, error: Exception, what: str) -> None:
        reason = self._explain(error, what).encode()[:LONGEST_REASON].decode(errors="ignore")
        await self._socket.close(INTERNAL_ERROR, reason)

    def _explain(self, error: Exception, what: str) -> str:
        self._worker.log_failure(error, what)
        return self._worker.settings.redact(error.detail) if isinstance(error, ETLError) else INTERNAL


def _acknowledged(control: ControlMessage) -> bool:
    try:
        return ends_at_target(control.pipeline)
    except InvalidPipelineError:
        return False


class ASGISocket:
    """A WebSocket of an ASGI server."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def accept(self) -> None:
        await self._receive()
        await self._send({"type": "websocket.accept"})

    async def receive(self) -> bytes | str | None:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        return data if data is not None else str(message["text"])

    async def send(self, message: bytes | str) -> None:
        kind = "bytes" if isinstance(message, bytes) else "text"
        await self._send({"type": "websocket.send", kind: message})

    async def close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})
