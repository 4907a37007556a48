"""A pooled HTTP/1.1 client on the event loop: what the server talks to targets and to other ETL servers with.

It does what the data path needs and nothing else: GET, PUT of a known or unknown length, an answer that can be
streamed while the request still is, and errors that tell a refused connection from a lost one.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from ..config import Settings
from ..errors import RETRY_REASON_HEADER, UpstreamRefusedError, UpstreamUnreachableError
from .admission import Lane
from .clients import CONNECT_TIMEOUT, ssl_context
from .eager import Soon
from .exchange import DIRECT_PUT_LENGTH_HEADER
from .flow import SMALL, Batch, Inflow, ReadBuffer

Headers = Sequence[tuple[str, str]]
Taker = Callable[["Response | BaseException"], None]
"""What is told how a request went: its response, once head and what came with it are here, or why none comes."""

_LENGTHS = frozenset(
    map(len, ("content-length", "content-type", "transfer-encoding", DIRECT_PUT_LENGTH_HEADER, RETRY_REASON_HEADER))
)
"""Of the names of the headers that are looked at: what is of another length need not be kept."""
FRESH = 1.0
"""Seconds for which an idle connection is trusted with a body that cannot be sent again."""


MOST_ORIGINS = 256
"""Places that are remembered though no connection leads there."""


class Origin:
    """A place that connections lead to, with those that are idle."""

    __slots__ = ("host", "idle", "netloc", "port", "scheme")

    def __init__(self, scheme: str, netloc: str) -> None:
        parts = urlsplit(f"{scheme}://{netloc}")
        self.scheme = scheme
        self.netloc = netloc.rpartition("@")[2]
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if scheme == "https" else 80)
        self.idle: list[_Connection] = []
        """The one that was used last comes last."""


class Outbound:
    """The client. It belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        # Objects come in by GET and go out by PUT. What is on its way out never waits for what wants to come in,
        # which in its turn may wait for the memory that it takes.
        self._places = {method: Lane(settings.max_connections) for method in ("GET", "PUT")}
        self._origins: dict[str, Origin] = {}
        """By scheme and network location."""
        self._idle_count = 0
        self._expiry = settings.keepalive_expiry
        self._open: set[_Connection] = set()
        self.read_buffer = ReadBuffer()
        self._tls: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self, method: str, url: str, headers: Headers = (), body: bytes | AsyncIterator[Batch] = b""
    ) -> Response:
        """Send a request and wait for the head of its answer.

        `url` goes out as it is: its path must be escaped already. A `body` of bytes goes with `Content-Length`, an
        iterator chunked; what the iterator raises cuts the connection, and is raised here or by the response.

        Raises:
            UpstreamRefusedError: the connection was refused.
            UpstreamUnreachableError: there is no connection, it was lost, or stalled for `ETL_IO_TIMEOUT`.
        """
        origin, target = self._locate(url)
        replayable = isinstance(body, bytes)
        place = self._places[method]
        if not place.take_now(1):
            await place.wait(1)
        try:
            connection = self._take_idle(origin, fresh=not replayable)
            if connection is not None:
                try:
                    return await connection.exchange(method, target, headers, body)
                except UpstreamUnreachableError:
                    if not replayable or not connection.went_stale:
                        raise
            connection = await self._connect(origin)
            return await connection.exchange(method, target, headers, body)
        except BaseException:
            place.give_back(1)
            raise

    def request_now(self, method: str, url: str, headers: Headers, body: bytes, taker: Taker) -> PendingRequest | None:
        """The same without a coroutine, if a connection is at hand; else None, and nothing has been done.

        `taker` is told how it went, once. It may not act on an error before it has returned.
        """
        origin, target = self._locate(url)
        place = self._places[method]
        if not place.take_now(1):
            return None
        connection = self._take_idle(origin, fresh=False)
        if connection is None or connection.closed:
            place.give_back(1)
            return None
        connection.send(method, target, headers, body, taker)
        return connection

    def close(self) -> None:
        """Cut all connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.abort()

    async def _connect(self, origin: Origin) -> _Connection:
        if origin.scheme == "https" and self._tls is None:
            self._tls = ssl_context(self._settings)
        where = f"{origin.host}:{origin.port}"
        connecting = self._loop.create_task(
            self._loop.create_connection(
                lambda: _Connection(self, origin, self._settings.io_timeout),
                origin.host,
                origin.port,
                ssl=self._tls if origin.scheme == "https" else None,
            )
        )
        try:
            if not (await asyncio.wait((connecting,), timeout=CONNECT_TIMEOUT))[0]:
                raise UpstreamUnreachableError(f"{where} did not connect within {CONNECT_TIMEOUT:g} s")
            _, connection = connecting.result()
            self._open.add(connection)
            return connection
        except (OSError, UnicodeError) as error:  # a host name that cannot be is a UnicodeError
            if _refused(error):
                raise UpstreamRefusedError(f"{where} refused the connection") from None
            raise UpstreamUnreachableError(f"{where} cannot be reached: {error}") from None
        finally:
            connecting.cancel()
            connecting.add_done_callback(self._drop_unused)

    def _drop_unused(self, connecting: asyncio.Task[tuple[asyncio.Transport, _Connection]]) -> None:
        """Close a connection that came when nobody waited for it any more."""
        if not connecting.cancelled() and connecting.exception() is None:
            connection = connecting.result()[1]
            if connection not in self._open:
                connection.abort()

    def _take_idle(self, origin: Origin, *, fresh: bool) -> _Connection | None:
        """The connection that was used last, unless that is too long ago."""
        idle = origin.idle
        if not idle:
            return None
        expiry = min(FRESH, self._expiry) if fresh else self._expiry
        if self._loop.time() - idle[-1].idle_since > expiry:
            return None
        self._idle_count -= 1
        return idle.pop()

    def _locate(self, url: str) -> tuple[Origin, str]:
        """Where a URL leads, and what to ask for there."""
        end = url.find("/", len("https://"))
        if end > 0 and (origin := self._origins.get(url[:end])) is not None:
            return origin, url[end:]
        scheme, _, rest = url.partition("://")
        netloc, slash, target = rest.partition("/")
        if not slash and "?" in netloc:
            netloc, _, query = netloc.partition("?")
            target = f"?{query}"
        place = f"{scheme.lower()}://{netloc}"
        origin = self._origins.get(place)
        if origin is None:
            if len(self._origins) >= MOST_ORIGINS:
                used = {connection.origin for connection in self._open}
                self._origins = {place: origin for place, origin in self._origins.items() if origin in used}
            origin = self._origins[place] = Origin(scheme.lower(), netloc)
        return origin, f"/{target}"

    def give_back(self, connection: _Connection, keep: bool) -> None:
        """An exchange is over: keep its connection for the next one, or cut it."""
        self._places[connection.method].give_back(1)
        if not keep or self._closed or self._idle_count >= self._settings.max_keepalive_connections:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        connection.origin.idle.append(connection)
        self._idle_count += 1
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._expiry + 1, self._close_expired)

    def forget(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        idle = connection.origin.idle
        if connection in idle:
            idle.remove(connection)
            self._idle_count -= 1

    def _close_expired(self) -> None:
        self._sweep = None
        oldest = self._loop.time() - self._expiry
        for origin in {connection.origin for connection in self._open}:
            while origin.idle and origin.idle[0].idle_since <= oldest:
                origin.idle[0].abort()
        if self._idle_count:
            self._sweep = self._loop.call_later(self._expiry + 1, self._close_expired)


class PendingRequest(Protocol):
    """A request that was sent."""

    @property
    def went_stale(self) -> bool:
        """Whether it failed because the other side had closed a kept-alive connection: on a new one it may succeed."""

    def give_up(self) -> None:
        """Nobody waits for its response any more, or it has failed: free its place, and cut its connection."""


class Response:
    """An answer whose head has come. Take its `body`, or leave it, by `close`."""

    __slots__ = ("_connection", "body", "headers", "length", "status")

    def __init__(self, connection: _Connection, body: Inflow) -> None:
        self._connection = connection
        self.body = body
        self.status = 0
        self.headers: dict[str, str] = {}
        """By lower-case name; those that the data path looks at."""
        self.length: int | None = None
        """The body's size in bytes, where the head says it."""

    @property
    def sent(self) -> int | None:
        """Bytes of the request's body, once it has been sent to its end."""
        return self._connection.sent

    async def receive(self) -> Batch:
        """The next pieces of the body; empty at its end.

        Raises:
            UpstreamUnreachableError: the rest of it will not come.
        """
        return await self.body.receive()

    async def read_start(self, size: int) -> bytes:
        """The body, or about its first `size` bytes: enough to tell what an error is about."""
        start = b""
        while len(start) < size and (batch := await self.receive()):
            start += b"".join(batch)
        return start

    def close(self) -> None:
        """Give the connection back: it is kept if the exchange is over, and cut if it is not."""
        self._connection.release(self)


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, outbound: Outbound, origin: Origin, timeout: float) -> None:
        self.origin = origin
        self.method = ""
        self.idle_since = 0.0
        self.closed = False
        self.answered = False
        """Whether a byte of the current answer has come."""
        self.timed_out = False
        self.sent: int | None = None
        """Bytes of the request's body, once all of it has been sent."""
        self._whole: int | None = None
        self._outbound = outbound
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = outbound.read_buffer
        self._response: Response | None = None
        self._taker: Taker | None = None
        """Who waits for the head of the current answer, and what comes with it."""
        self._headed = False
        """Whether that head has come."""
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active_at = 0.0
        self._unsent = 0
        self._interim = False
        self._keep = False
        self._writable: asyncio.Future[None] | None = None

    @property
    def went_stale(self) -> bool:
        return not self.answered and not self.timed_out

    async def exchange(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[Batch]
    ) -> Response:
        """Send a request; the response once its head is here. What fails before that closes the connection."""
        if self.closed:
            raise self._lost("the connection was lost")
        head: Soon[Response] = Soon(loop=self._loop)
        try:
            self.send(method, target, headers, body, partial(_settle, head))
            return await head
        except BaseException:
            self._cut()
            raise

    def send(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[Batch], taker: Taker
    ) -> None:
        """Send a request; `taker` is told how it went."""
        self.method = method
        self.body = body_in = Inflow(self._transport.pause_reading, self._transport.resume_reading)
        self._response = Response(self, body_in)
        self._taker = taker
        self.answered = self._keep = self._headed = False
        self.sent = self._whole = None
        self._active_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._check_progress)
        lines = f"{method} {target} HTTP/1.1\r\nhost: {self.origin.netloc}\r\n"
        for name, value in headers:
            lines += f"{name}: {value}\r\n"
        if not isinstance(body, bytes):
            self._transport.write(f"{lines}transfer-encoding: chunked\r\n\r\n".encode("latin-1"))
            self._sender = self._loop.create_task(self._send_body(body))
            return
        if body or method == "PUT":
            lines += f"content-length: {len(body)}\r\n"
        start = f"{lines}\r\n".encode("latin-1")
        self._whole = len(body)
        if len(body) <= SMALL:
            self._transport.write(start + body)
        else:
            self._transport.writelines([start, body])

    def release(self, response: Response) -> None:
        """The end of an exchange whose head has come."""
        if self._response is response:
            over = self._keep and self.body.ended and not self.body.paused and self.sent is not None
            self._end_exchange()
            self._outbound.give_back(self, over and not self.closed)

    def give_up(self) -> None:
        self._cut()
        self._outbound.give_back(self, False)

    def abort(self) -> None:
        """Cut the connection, whatever is going on."""
        if not self.closed:
            self.closed = True
            self._transport.abort()
        self._outbound.forget(self)

    def _cut(self) -> None:
        self._taker = None
        self._end_exchange()
        self.abort()

    def _end_exchange(self) -> None:
        self._response = None
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None

    async def _send_body(self, body: AsyncIterator[Batch]) -> None:
        size = 0
        try:
            async for batch in body:
                count = sum(map(len, batch))
                if count:
                    if self.closed:
                        return
                    self._transport.writelines([b"%x\r\n" % count, *batch, b"\r\n"])
                    size += count
                    self._active_at = self._loop.time()
                if self._writable is not None:
                    await self._writable
            if not self.closed:
                self._transport.write(b"0\r\n\r\n")
                self.sent = size
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _check_progress(self) -> None:
        """Ends the exchange when neither side has moved a byte for the time that is allowed.

        Between exchanges it runs out by itself: to start a timer for each would cost more than to let it.
        """
        self._timer = None
        if self._response is None:
            return
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent or not self._transport.is_reading():
            self._active_at = now
        self._unsent = unsent
        left = self._active_at + self._timeout - now
        if left > 0:
            self._timer = self._loop.call_later(max(left, 0.01), self._check_progress)
            return
        self.timed_out = True
        self._fail(
            UpstreamUnreachableError(f"{self.origin.netloc} did not respond within ETL_IO_TIMEOUT={self._timeout:g} s")
        )

    def _fail(self, error: BaseException) -> None:
        """The exchange cannot be finished: whoever waits for it learns why, and the connection is cut."""
        taker, self._taker = self._taker, None
        if taker is not None:
            taker(error)
        elif self._response is not None:
            self.body.fail(error)
        self.abort()

    def _lost(self, why: str) -> UpstreamUnreachableError:
        return UpstreamUnreachableError(f"{self.origin.netloc}: {why}")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, _: int) -> memoryview:
        if self._response is None or self.body.ended:
            return self._buffer.small
        return self.body.room or (self._buffer.whole if self.answered else self._buffer.small)

    def buffer_updated(self, count: int) -> None:
        if self._response is None or self.body.ended:
            self._keep = False
            self.abort()  # nobody asked for it
            return
        self.answered = True
        self._active_at = self._loop.time()
        if self.body.room is not None:
            if self.body.filled(count):
                # The old parser still waits for the body.
                self._keep = self._parser.should_keep_alive()
                self._parser = httptools.HttpResponseParser(self)
            return
        try:
            self._parser.feed_data(self._buffer.whole[:count])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.body.ended:
                self._fail(self._lost("its answer is not valid HTTP"))
                return
            self.abort()
        if self._headed:
            taker, self._taker = self._taker, None
            if taker is not None:
                taker(self._response)

    def eof_received(self) -> None:
        # The transport would wait for ever until what is not sent yet has been taken.
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._response is not None:
            self._fail(self._lost("the connection was lost" + (f": {error}" if error is not None else "")))
        self._outbound.forget(self)
        self.resume_writing()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            self._active_at = self._loop.time()
            writable.set_result(None)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._response is not None and self.body.ended:
            self._keep = False  # something came behind the answer

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) in _LENGTHS and self._response is not None and not self.body.ended:
            self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or self._headed:
            return
        status = self._parser.get_status_code()
        self._interim = status < 200
        if self._interim:
            response.headers.clear()
            return
        response.status = status
        if not self._transport.get_write_buffer_size():
            self.sent = self._whole if self.sent is None else self.sent
        length = response.headers.get("content-length")
        chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()
        if length is not None and not chunked:
            response.length = int(length)
        elif not chunked and status not in (204, 304):
            # Without a length, a lost connection cannot be told from the end of the body.
            self._fail(self._lost("its answer has neither a length nor chunks"))
            return
        self._headed = True

    def on_body(self, data: bytes) -> None:
        if self._response is not None and not self.body.ended:
            self.body.feed(data)

    def on_message_complete(self) -> None:
        if self._interim or self._response is None or self.body.ended:
            return
        self._keep = self._parser.should_keep_alive()
        self.body.finish()


def _settle(head: asyncio.Future[Response], outcome: Response | BaseException) -> None:
    if head.done():
        return
    if isinstance(outcome, BaseException):
        head.set_exception(outcome)
    else:
        head.set_result(outcome)


def _refused(error: Exception) -> bool:
    """Whether a connection was refused; asyncio merges the errors of several addresses into one without a number."""
    return isinstance(error, ConnectionRefusedError) or (
        isinstance(error, OSError) and error.errno is None and f"Errno {errno.ECONNREFUSED}" in str(error)
    )
