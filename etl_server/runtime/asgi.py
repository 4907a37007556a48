"""The data path's exchange and socket over ASGI: what serves objects under any ASGI server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import BadRequestError, ClientDisconnectedError
from .exchange import PIPELINE_HEADER, Answer
from .flow import Inflow
from .websocket import WINDOW, Session
from .worker import Worker

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_PIPELINE = PIPELINE_HEADER.encode()


def escaped_path(scope: Scope) -> str:
    """A request's path as it came, below the path that the application is mounted at."""
    raw_path: bytes | None = scope.get("raw_path")
    path = raw_path.decode("latin-1") if raw_path else quote(scope["path"])
    return path.removeprefix(scope.get("root_path", ""))


class ASGIExchange:
    """One HTTP request of an ASGI server."""

    def __init__(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path = path
        self.query: str = scope["query_string"].decode("latin-1")
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.pipeline = ""
        self.content_length: int | None = None
        for name, value in scope["headers"]:
            if name == _PIPELINE:
                self.pipeline = value.decode("latin-1").strip()
            elif name == b"content-length":
                self.content_length = int(value)
        self.body = Inflow(self._pause, self._resume)
        self._receive = receive
        self._send = send
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.started = time.monotonic()
        self.gone = ""
        self.answered = False
        """Whether the answer has been sent to its end."""

    async def pump(self) -> None:
        """Feed the body as it comes; returns when the client has gone away."""
        left = self.content_length
        if left is None and {b"upgrade", b"transfer-encoding"} <= {name for name, _ in self.headers}:
            left = -1  # an ASGI server may take its body for another protocol's, and tell of none
        while True:
            await self._flowing.wait()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = "The client went away"
                self.body.fail(ClientDisconnectedError("The client went away"))
                return
            data = message.get("body", b"")
            if data:
                self.body.feed(data)
                left = None if left is None else left - len(data)
            if message.get("more_body", False):
                continue
            if left:
                self.body.fail(BadRequestError("The body is not what its head announces"))
            else:
                self.body.finish()

    def send_whole(self, answer: Answer) -> bool:
        """See `Exchange`. To send takes a wait here, always."""
        return False

    async def send(self, answer: Answer) -> None:
        """See `Exchange`. What a broken stream raises is passed on, which makes the ASGI server cut the connection."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
        if answer.content_type:
            headers.append((b"content-type", answer.content_type.encode("latin-1")))
        body = answer.body
        if not answer.chunked and answer.status != 204:
            headers.append((b"content-length", b"%d" % (len(body) if isinstance(body, bytes) else answer.length or 0)))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        last = b""
        if isinstance(body, bytes):
            last = body
        else:
            async for batch in body:
                data = batch[0] if len(batch) == 1 else b"".join(batch)
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.answered = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def _pause(self) -> None:
        self._flowing.clear()

    def _resume(self) -> None:
        self._flowing.set()


async def serve_websocket(worker: Worker, receive: Receive, send: Send) -> None:
    """Serve one WebSocket until either side ends it."""
    await receive()
    await send({"type": "websocket.accept"})
    socket = ASGISocket(send)
    session = Session(worker, socket)
    taking = asyncio.create_task(_feed(session, socket, receive))
    sending = asyncio.create_task(socket.run())
    ended = asyncio.create_task(session.wait_ended())
    try:
        await asyncio.wait((taking, sending, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not taking.done():
            await sending  # what was due, and the close
    finally:
        session.gone()
        for task in (taking, sending, ended):
            task.cancel()
        await asyncio.gather(taking, sending, ended, return_exceptions=True)


async def _feed(session: Session, socket: ASGISocket, receive: Receive) -> None:
    while True:
        await socket.reading.wait()
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        session.feed(data if data is not None else message["text"])


class ASGISocket:
    """A WebSocket of an ASGI server."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._wanted = True
        self.reading = asyncio.Event()
        """Set while messages are wanted, and while the other side takes its answers."""
        self.reading.set()

    async def run(self) -> None:
        """Send what is buffered, as it comes, up to the close."""
        kind = ""
        while kind != "websocket.close":
            message = await self._outgoing.get()
            kind = message["type"]
            try:
                await self._send(message)
            except OSError:  # the other side is gone
                return
            self._set_reading()

    def send(self, message: bytes | str) -> None:
        kind = "bytes" if isinstance(message, bytes) else "text"
        self._outgoing.put_nowait({"type": "websocket.send", kind: message})
        self._set_reading()

    def close(self, code: int, reason: str) -> None:
        self._outgoing.put_nowait({"type": "websocket.close", "code": code, "reason": reason})

    def pause(self) -> None:
        self._wanted = False
        self._set_reading()

    def resume(self) -> None:
        self._wanted = True
        self._set_reading()

    def _set_reading(self) -> None:
        if self._wanted and self._outgoing.qsize() < WINDOW:
            self.reading.set()
        else:
            self.reading.clear()
