"""Servers on raw sockets that do what they are told to, good or bad: next stages, targets, any origin."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType

from etl_server.wire.names import decode_path

PATIENCE = 10.0
"""Seconds to wait for what has to happen, before it counts as not happening."""


@dataclass
class StageRequest:
    """A request as it came; its body grows while it comes."""

    method: str
    target: str
    """Path and query, escaped as they came."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    """Whether the body came to its proper end."""


class StageConnection:
    """One connection, as a script deals with it."""

    def __init__(self, stage: Stage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stage = stage
        self.reader = reader
        self.writer = writer
        self._unread: StageRequest | None = None

    def unread(self, request: StageRequest) -> None:
        """Let `head` give this one once more: it is another script's."""
        self._unread = request

    async def head(self) -> StageRequest | None:
        """The head of the next request; None: there is none."""
        if self._unread is not None:
            unread, self._unread = self._unread, None
            return unread
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        start, *lines = head.split("\r\n")[:-2]
        method, target, _ = start.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        request = StageRequest(method, target, headers)
        self.stage.requests.append(request)
        self.stage.tell()
        return request

    async def body(self, request: StageRequest) -> None:
        """Take the request's body, up to its end or to where it breaks off."""
        try:
            if request.headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    await self._take(request, size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            else:
                await self._take(request, int(request.headers.get("content-length", "0")))
            request.complete = True
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.stage.tell()

    async def request(self) -> StageRequest | None:
        """The next request, body and all; None: there is none, or it broke off."""
        request = await self.head()
        if request is not None:
            await self.body(request)
        return request if request is not None and request.complete else None

    async def send(self, data: bytes) -> None:
        """Send as it is."""
        self.writer.write(data)
        await self.writer.drain()

    async def ended(self) -> None:
        """Wait until the other side closes."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Let the other side's connection end in an error."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _take(self, request: StageRequest, size: int) -> None:
        while size:
            data = await self.reader.read(size)
            if not data:
                raise asyncio.IncompleteReadError(b"", size)
            request.body += data
            size -= len(data)
            self.stage.tell()


Script = Callable[[StageConnection], Awaitable[None]]
"""What is done with a connection, which is closed afterwards."""


class Stage:
    """A server whose first connection is dealt with by the first script, and so on; the last one goes on for ever.

    An async context manager on the loop of the test.
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[StageRequest] = []
        """In the order in which their heads came."""
        self.connections = 0
        """How many were opened so far."""
        self.open = 0
        """How many are open."""
        self._scripts = scripts
        self._tls = tls
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Stage:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.netloc = f"127.0.0.1:{port}"
        self.url = f"{'http' if self._tls is None else 'https'}://{self.netloc}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_listening(self) -> None:
        """Refuse further connections."""
        self._server.close()

    def tell(self) -> None:
        """Something has happened: `until` looks again."""
        self._changed.set()

    async def asked(self) -> None:
        """Wait until the head of a request has come."""
        await self.until(lambda: bool(self.requests))

    async def left(self) -> None:
        """Wait until no connection is open."""
        await self.until(lambda: self.open == 0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what happens here makes `condition` true."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), PATIENCE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.open += 1
        self.tell()
        try:
            await script(StageConnection(self, reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)
            self.open -= 1
            self.tell()


# Answers, as bytes


def response(
    status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None, *, chunked: bool = False
) -> bytes:
    """A whole answer: with `Content-Length`, or chunked (an empty body too); 204 has neither."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    elif status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


STORED = response(200)
"""How a target acknowledges an object."""


# Scripts


def answering(*answers: bytes) -> Script:
    """Take requests whole and answer them in turn, the last answer again and again, until the other side closes."""

    async def script(connection: StageConnection) -> None:
        count = 0
        while await connection.request() is not None:
            await connection.send(answers[min(count, len(answers) - 1)])
            count += 1

    return script


def by_name(scripts: Mapping[str, Script]) -> Script:
    """Do what the script does whose key is the last part of the first request's path."""

    async def script(connection: StageConnection) -> None:
        request = await connection.head()
        if request is not None:
            connection.unread(request)
            await scripts[decode_path(request.target.partition("?")[0]).rpartition("/")[2]](connection)

    return script


def saying(data: bytes) -> Script:
    """Take one request whole, send `data`, close."""

    async def script(connection: StageConnection) -> None:
        if await connection.request() is not None:
            await connection.send(data)

    return script


def saying_early(data: bytes) -> Script:
    """Send `data` as soon as a request's head has come, then take the body, and close."""

    async def script(connection: StageConnection) -> None:
        request = await connection.head()
        if request is not None:
            await connection.send(data)
            await connection.body(request)

    return script


hanging_up = saying(b"")
"""Take one request whole and close without a word."""


async def resetting(connection: StageConnection) -> None:
    """Take one request whole and reset the connection."""
    await connection.request()
    connection.reset()


async def resetting_at_once(connection: StageConnection) -> None:
    """Reset the connection before a request was read."""
    connection.reset()


async def resetting_midway(connection: StageConnection) -> None:
    """Reset the connection as soon as some of the body has come."""
    request = await connection.head()
    if request is not None:
        await connection.reader.read(1)
        connection.reset()


async def stalling(connection: StageConnection) -> None:
    """Take one request whole and never answer it."""
    await connection.request()
    await connection.ended()


async def deaf(connection: StageConnection) -> None:
    """Read nothing but the head of a request; never answer."""
    await connection.head()
    await asyncio.Event().wait()


@contextmanager
def refusing() -> Iterator[str]:
    """A `host:port` that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"
