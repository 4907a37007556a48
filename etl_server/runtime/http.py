"""The data path's exchange as a uvicorn HTTP protocol: objects go from the parser to the data path, and nowhere else.

What is not an object's request (health, WebSocket, routes of the user's own) takes uvicorn's way through ASGI. Both
kinds may alternate on one connection: an exchange here stands in for uvicorn's request cycle, so that the order of
pipelined requests, and shutting down, are uvicorn's.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..errors import BadRequestError, ClientDisconnectedError
from .eager import Work, start_eagerly
from .exchange import WEBSOCKET, Answer
from .flow import SMALL, BatchStream, Inflow, ReadBuffer
from .hop import Hop
from .worker import already
from .ws import upgrade

if TYPE_CHECKING:
    from .app import ETLApp
    from .worker import Handler, Now

LONGEST_HEAD = 128 * 1024
"""Bytes of a request's head, and of what comes between and behind the chunks of its body; more is refused with 431."""
HEAD_TIMEOUT = 30.0
"""Seconds that a request's head may take to come."""
CHECK_INTERVAL = 5.0
"""Seconds between two looks at whether a connection is stuck."""


class ObjectProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._etl = cast("ETLApp", self.config.app)
        self.worker = self._etl.worker
        put, get = self._etl.object_handlers["PUT"], self._etl.object_handlers["GET"]
        at_once = not self.worker.access_log
        self.push = put if put == self.worker.push and at_once else None
        """What answers a PUT, where that may be begun at once."""
        self.pull = get if get == self.worker.pull and at_once else None
        """What answers a GET, where that may be begun at once."""
        self._current: HttpExchange | None = None
        """The exchange that the parser feeds, if the request is for an object."""
        self._unstarted: HttpExchange | None = None
        self._running: HttpExchange | None = None
        """The exchange that was begun last; another one may be parsed meanwhile."""
        self._to_ignore = False
        """Whether the request asks for a protocol that is not spoken here."""
        self._in_head = False
        self._head_size = 0
        """Bytes that have come since the request began, or since the last ones of its body."""
        self._since = self.loop.time()
        self._unsent = 0
        self._why = "The client went away"
        """Why the connection ended."""
        self._watch: asyncio.TimerHandle | None = None
        self._default_headers: Any = None
        self._heads: dict[tuple[int, str], bytes] = {}
        self._buffer: ReadBuffer = self.worker.read_buffer

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.pause = self.flow.pause_reading
        self.resume = self.flow.resume_reading
        self._watch = self.loop.call_later(CHECK_INTERVAL, self._check)
        transport.set_protocol(_Reading(self))

    def get_buffer(self, _: int) -> memoryview:
        """Where the next bytes go: a large body has a place of its own, past the parser and without a copy."""
        exchange = self._current
        if exchange is None or exchange.body.ended:
            return self._buffer.small
        return exchange.body.room or self._buffer.whole

    def buffer_updated(self, count: int) -> None:
        exchange = self._current
        if exchange is None or exchange.body.room is None:
            self.data_received(self._buffer.whole[:count])
            return
        self._since = self.loop.time()
        if exchange.body.filled(count):
            # It still waits for the body. The next request is for another one.
            self.parser = self._new_parser()

    def data_received(self, data: bytes | memoryview) -> None:
        self._head_size += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgraded:
            rest = bytes(data[upgraded.args[0] :])
            if self._to_ignore:
                self._parse_without_upgrade(rest)
            elif self._should_upgrade():
                self._stop_watching()
                self._upgrade(rest)
            return
        except httptools.HttpParserError:
            if self._unstarted is not None:  # its body is malformed, and nothing has been done for it yet
                self._unstarted = self.cycle = None  # type: ignore[assignment]
            self._refuse(400, b"Invalid HTTP request received.")
            return
        if self._unstarted is not None:
            self._start_unstarted()
        if self._head_size > LONGEST_HEAD:
            self._refuse(431, b"Request header fields too large.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        queued = [cycle for cycle, _ in self.pipeline]
        for cycle in (self._running, self.cycle, self._current, *queued):
            if isinstance(cycle, HttpExchange):
                cycle.disconnect(self._why)
        for cycle in queued:
            if isinstance(cycle, HttpExchange):
                self.worker.log_lost(cycle)
        super().connection_lost(exc)

    # The parser's callbacks

    def _get_upgrade(self) -> bytes | None:
        self.headers = [(name.lower(), value) for name, value in self.headers]
        return super()._get_upgrade()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._current = None
        self._in_head = True
        self._head_size = 0
        self._to_ignore = False
        self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self.parser
        if parser.should_upgrade() and not self._should_upgrade():
            self._to_ignore = True
            return
        method = parser.get_method().decode("ascii")
        path, _, query = self.url.decode("latin-1").partition("?")
        handler = self._etl.route(method, path)
        if handler is None or parser.should_upgrade() or not self.worker.started:
            self._leave_to_asgi()
            return
        self._current = exchange = HttpExchange(self, handler, method, path, query)
        busy = self.cycle is not None and not self.cycle.response_complete
        self.cycle = exchange  # type: ignore[assignment]  # it stands in for uvicorn's
        if busy:
            self.flow.pause_reading()
            exchange.started = self._since
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        else:
            self._unstarted = exchange

    def on_body(self, body: bytes) -> None:
        self._head_size = 0
        exchange = self._current
        if exchange is None:
            super().on_body(body)
            return
        if not exchange.response_complete:
            self._since = self.loop.time()
            exchange.body.feed(body)

    def on_message_complete(self) -> None:
        if self._to_ignore:
            return
        exchange = self._current
        if exchange is None:
            super().on_message_complete()
            return
        exchange.body.finish()
        if self._unstarted is not None:
            self._unstarted = None
            exchange.start()

    # Exchanges

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        return parser

    def _leave_to_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _upgrade(self, rest: bytes) -> None:
        if self.url.partition(b"?")[0] != WEBSOCKET.encode() or not self.worker.started:
            self.handle_websocket_upgrade()
            return
        self.connections.discard(self)
        upgrade(self.transport, self._head_again(b"GET", b"1.1"), rest, self.worker, self.server_state)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Serve a request that asks for another protocol as if it did not (RFC 9110, 7.8): its body stands behind it.

        The parser takes the end of such a head for the end of the request, and what follows for the other protocol.
        """
        self.headers = [header for header in self.headers if header[0] != b"upgrade"]
        head = self._head_again(self.parser.get_method(), self.parser.get_http_version().encode())
        self.parser = self._new_parser()
        self.data_received(head + rest)

    def _head_again(self, method: bytes, version: bytes) -> bytes:
        """The head of the request that was parsed last, for another parser."""
        lines = [b"%s %s HTTP/%s\r\n" % (method, self.url, version)]
        lines += [b"%s: %s\r\n" % header for header in self.headers]
        return b"".join([*lines, b"\r\n"])

    def timeout_keep_alive_handler(self) -> None:
        """What uvicorn's own timer calls, which is started by requests that go through ASGI only: `_check` does it."""

    def _start_unstarted(self) -> None:
        exchange, self._unstarted = self._unstarted, None
        if exchange is not None:
            exchange.start()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, HttpExchange):
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def exchange_ended(self, exchange: HttpExchange) -> None:
        """An answer has been sent to its end."""
        self.server_state.total_requests += 1
        if not exchange.keep_alive:
            self.transport.close()
        if self.transport.is_closing():
            return
        self._since = self.loop.time()
        # A request behind this one may have been paused for itself.
        if self.flow.read_paused and (
            self._current is None or self._current is exchange or not self._current.body.paused
        ):
            self.flow.resume_reading()
        if self.pipeline:
            # Not from here: a thousand pipelined requests would nest a thousand deep.
            self.loop.call_soon(self._start_asgi_task, *self.pipeline.pop())

    def cut(self, *, reset: bool) -> None:
        """End the connection so that what was sent looks like a part.

        Without chunks or a length, as in HTTP/1.0, the end of the connection is the end of the answer: only a `reset`
        tells that this is not it.
        """
        connection = self.transport.get_extra_info("socket")
        if reset and connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes of answers that wait for the client to take them."""
        return self.transport.get_write_buffer_size()

    def idle_since(self, moment: float) -> bool:
        """Whether nothing is in work, and nothing has come since that moment (`time.monotonic()`)."""
        if self._in_head or self._since > moment or not (self.cycle is None or self.cycle.response_complete):
            return False
        connection = self.transport.get_extra_info("socket")
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def head(self, status: int, content_type: str) -> bytes:
        """The beginning of an answer's head, which is the same for many."""
        headers = self.server_state.default_headers  # uvicorn's own: Date, which it renews every second
        if headers is not self._default_headers:
            self._default_headers = headers
            self._heads = {}
        head = self._heads.get((status, content_type))
        if head is None:
            lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in headers)]
            if content_type:
                lines.append(b"content-type: %s\r\n" % content_type.encode("latin-1"))
            head = self._heads[status, content_type] = b"".join(lines)
        return head

    def _refuse(self, status: int, reason: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(
                STATUS_LINE[status] + b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(reason), reason)
            )
            self.worker.log_failure(BadRequestError(reason.decode(), status), "http", "", self._since)
        self._why = reason.decode()
        self.transport.close()

    # Stuck connections

    def _check(self) -> None:
        """Close a connection that waits for its client longer than it may."""
        self._watch = self.loop.call_later(CHECK_INTERVAL, self._check)
        waited = self.loop.time() - self._since
        io_timeout = self.worker.settings.io_timeout
        exchange = self._current
        unsent = self.unsent
        if unsent:
            if unsent != self._unsent:
                self._since = self.loop.time()
            elif waited > io_timeout:
                self._why = f"The client has taken nothing for ETL_IO_TIMEOUT={io_timeout:g} s"
                self.transport.abort()
        elif self._in_head:
            if waited > HEAD_TIMEOUT:
                self._refuse(408, b"Request header fields took too long.")
        elif exchange is not None and not exchange.body.ended and not self.flow.read_paused:
            if waited > io_timeout:
                self._why = f"The client has sent nothing for ETL_IO_TIMEOUT={io_timeout:g} s"
                self.transport.abort()
        elif (self.cycle is None or self.cycle.response_complete) and waited > self.timeout_keep_alive:
            self.transport.close()
        self._unsent = unsent

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


class _Reading(asyncio.BufferedProtocol):
    """What the transport talks to in place of uvicorn's protocol, which by its base cannot be read into."""

    def __init__(self, protocol: ObjectProtocol) -> None:
        # Its methods are the protocol's own: two calls an object that need not be passed on.
        vars(self).update(
            get_buffer=protocol.get_buffer,
            buffer_updated=protocol.buffer_updated,
            connection_lost=protocol.connection_lost,
            eof_received=protocol.eof_received,
            pause_writing=protocol.flow.pause_writing,
            resume_writing=protocol.flow.resume_writing,
        )


_LENGTHS = frozenset(map(len, (b"content-length", b"ais-node-url", b"expect")))
"""Of the names of the headers that the data path looks at: what is of another length need not be compared."""


class HttpExchange:
    """One request for an object, and its answer. See `Exchange`."""

    __slots__ = (
        "_begun",
        "_continue",
        "_handler",
        "_http10",
        "_protocol",
        "_task",
        "body",
        "content_length",
        "disconnected",
        "gone",
        "headers",
        "keep_alive",
        "message_event",
        "method",
        "path",
        "pipeline",
        "query",
        "response_complete",
        "started",
    )

    def __init__(self, protocol: ObjectProtocol, handler: Handler, method: str, path: str, query: str) -> None:
        self._protocol = protocol
        self._handler = handler
        self._task: Work | Hop | None = None
        self._begun = False
        """Whether what `_task` does can be cancelled at once."""
        self.method = method
        self.path = path
        self.query = query
        self.headers = protocol.headers
        self.pipeline = ""
        self.content_length: int | None = None
        self.keep_alive = protocol.parser.should_keep_alive()
        self.response_complete = False
        self.disconnected = False
        self.gone = ""
        self.message_event = _NO_EVENT
        self._http10 = protocol.parser.get_http_version() == "1.0"
        self._continue = False
        for name, value in protocol.headers:
            if len(name) not in _LENGTHS:
                continue
            name = name.lower()
            if name == b"content-length":
                self.content_length = int(value)
            elif name == b"ais-node-url":
                self.pipeline = value.decode("latin-1").strip()
            elif name == b"expect":
                self._continue = value.lower() == b"100-continue"
        self.body = Inflow(protocol.pause, protocol.resume, self._send_continue if self._continue else None)

    def start(self) -> None:
        """Serve the object: to the end if nothing has to be waited for, else on in a task."""
        if self.disconnected:
            return
        protocol = self._protocol
        worker = protocol.worker
        self.started = protocol._since
        now: Now = None
        if self._handler is protocol.push:
            now = worker.push_now(self)
            if isinstance(now, Answer) and self.send_whole(now):
                worker.counts.push.answered(now.status)
                return
        elif self._handler is protocol.pull:
            now = worker.pull_now(self)
        worker.admission.enter()
        protocol._running = self
        if isinstance(now, Hop):
            self._task = now
            self._begun = True
            protocol.tasks.add(now)  # type: ignore[arg-type]  # it can be cancelled, which is all that is asked
        else:
            self._run(now)

    def go_on(self, hop: Hop, now: Answer | Handler) -> None:
        protocol = self._protocol
        self._task = None
        protocol.tasks.discard(hop)
        if isinstance(now, Answer) and self.send_whole(now):
            hop.way.answered(now.status)
            protocol.worker.admission.leave()
        else:
            self._run(now)

    def _run(self, now: Answer | Handler | None) -> None:
        protocol = self._protocol
        rest = already(now) if isinstance(now, Answer) else now
        self._task = task = start_eagerly(self._serve(rest), eager=protocol.worker.eager)
        if task is not None:
            protocol.tasks.add(task)  # type: ignore[arg-type]
            task.add_done_callback(protocol.tasks.discard)

    def disconnect(self, why: str) -> None:
        """The client is gone: whatever is going on for it ends."""
        self.disconnected = True
        self.gone = why
        if self.response_complete:
            return
        self.body.fail(ClientDisconnectedError(why))
        if self._begun:
            self._cancel()
        else:
            # A task that is cancelled before its first step does not even note that its object has ended.
            self._protocol.loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, rest: Handler | None) -> None:
        self._begun = True
        protocol = self._protocol
        try:
            await protocol.worker.serve(self._handler, self, rest)
        except asyncio.CancelledError:
            if not self.disconnected:
                protocol.cut(reset=self._http10)
                raise
        except Exception:
            protocol.cut(reset=self._http10)
        except BaseException:
            protocol.cut(reset=self._http10)
            raise
        finally:
            protocol.worker.admission.leave()

    def send_whole(self, answer: Answer) -> bool:
        body = answer.body
        protocol = self._protocol
        if not isinstance(body, bytes) or len(body) > SMALL or protocol.flow.write_paused or self.method == "HEAD":
            return False
        if not self.disconnected:
            head, chunked = self._head(answer)
            protocol.transport.write(head + (b"0\r\n\r\n" if chunked else body))
            self.response_complete = True
            protocol.exchange_ended(self)
        return True

    async def send(self, answer: Answer) -> None:
        protocol = self._protocol
        transport = protocol.transport
        if protocol.flow.write_paused:
            # The client does not take the answers before this one.
            await protocol.flow.drain()
        if self.disconnected:
            return
        body = answer.body
        head, chunked = self._head(answer)
        if self.method == "HEAD":
            transport.write(head)
        elif not isinstance(body, bytes):
            await self._send_stream(head, body, chunked, answer.length)
        else:
            transport.writelines((head, b"0\r\n\r\n" if chunked else body))
            if protocol.flow.write_paused:
                # The object counts as taken, and its memory as free, when the client has it.
                await protocol.flow.drain()
        self.response_complete = True
        protocol.exchange_ended(self)

    def _head(self, answer: Answer) -> tuple[bytes, bool]:
        """An answer's head, and whether chunks follow."""
        status, body, content_type, headers, length = answer
        protocol = self._protocol
        size = len(body) if isinstance(body, bytes) else length or 0
        unsized = not size and answer.chunked
        chunked = unsized and status != 204
        if protocol.worker.admission.draining.is_set() or (self._continue and not self.body.ended):
            self.keep_alive = False
        head = protocol.head(status, content_type)
        for name, value in headers:
            head += f"{name}: {value}\r\n".encode("latin-1")
        if not self.keep_alive or self._http10:
            self.keep_alive = self.keep_alive and not chunked
            head += b"connection: keep-alive\r\n" if self.keep_alive else b"connection: close\r\n"
            chunked = chunked and not self._http10
        if chunked:
            return head + b"transfer-encoding: chunked\r\n\r\n", True
        if status == 204 or unsized:
            return head + b"\r\n", False
        return b"%scontent-length: %d\r\n\r\n" % (head, size), False

    async def _send_stream(self, head: bytes, body: BatchStream, chunked: bool, length: int | None) -> None:
        protocol = self._protocol
        transport = protocol.transport
        left = length
        async for batch in body:
            size = sum(map(len, batch))
            if left is not None:
                left -= size
                if left < 0:
                    raise ValueError(f"the body is longer than its length of {length} bytes")
            if size:
                transport.writelines((head, b"%x\r\n" % size, *batch, b"\r\n") if chunked else (head, *batch))
                head = b""
            if protocol.flow.write_paused:
                await protocol.flow.drain()
            if self.disconnected:
                raise ClientDisconnectedError("The client went away")
        if left:
            raise ValueError(f"the body is {left} bytes shorter than its length of {length}")
        transport.write(head + (b"0\r\n\r\n" if chunked else b""))

    def _send_continue(self) -> None:
        self._continue = False
        if not self._protocol.transport.is_closing():
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class _NoEvent:
    """What uvicorn sets to wake its own request cycle; here nobody waits for it."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()
