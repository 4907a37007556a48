"""A proxy before an S3 server that does to requests what a test asks for: errors, resets, redirects, waiting."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from aiohttp import ClientError, ClientResponse, ClientSession, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDictProxy
from yarl import URL

from etl_server.testing.loop_thread import LoopThread
from tests.raw_client import PATIENCE

_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Seen:
    """A request that came to a proxy."""

    method: str
    raw_path: str
    """Path and query, byte for byte."""
    headers: CIMultiDictProxy[str]

    @property
    def path(self) -> str:
        """`/bucket/key`, decoded."""
        return unquote(urlsplit(self.raw_path).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.raw_path).query, keep_blank_values=True))

    @property
    def operation(self) -> str:
        """S3's name of what it asks for, of a request whose path begins with the bucket."""
        query = self.query
        bucket, _, key = self.path.lstrip("/").partition("/")
        if self.method == "POST":
            if "delete" in query:
                return "DeleteObjects"
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        if self.method == "PUT" and key:
            copied = "x-amz-copy-source" in self.headers
            if "partNumber" in query:
                return "UploadPartCopy" if copied else "UploadPart"
            return "CopyObject" if copied else "PutObject"
        if self.method == "GET":
            if not key:
                return "ListMultipartUploads" if "uploads" in query else "ListObjects" if bucket else "ListBuckets"
            return "ListParts" if "uploadId" in query else "GetObject"
        if self.method == "DELETE" and "uploadId" in query:
            return "AbortMultipartUpload"
        verb = {"PUT": "Create", "HEAD": "Head", "DELETE": "Delete"}[self.method]
        return verb + ("Object" if key else "Bucket")


class Exchange:
    """A request in a proxy's hands."""

    def __init__(self, request: web.BaseRequest, session: ClientSession, upstream: str) -> None:
        self.request = request
        self._session = session
        self._upstream = upstream

    async def drain(self) -> None:
        """Take the whole body, after `100 Continue` where the client waits for that."""
        self._continue()
        async for _ in self.request.content.iter_any():
            pass

    async def ask(self) -> ClientResponse:
        """Pass the request on as it came, its `Host` too, which is signed; returns the answer, its body unread."""
        self._continue()
        request = self.request
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        return await self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=request.content.iter_chunked(_CHUNK) if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def pass_on(self, answer: ClientResponse, *, at_most: int | None = None) -> web.StreamResponse:
        """Pass an answer on; of its body `at_most` so many bytes, whereupon the connection is closed."""
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                response.headers.add(name, value)
        await response.prepare(self.request)
        left = at_most
        async for piece in answer.content.iter_chunked(_CHUNK):
            await response.write(piece if left is None else piece[:left])
            if left is not None and (left := max(0, left - len(piece))) == 0:
                break
        if left is not None:
            answer.close()
            self.close()
        else:
            await response.write_eof()
        return response

    def close(self) -> None:
        """End the connection as a server does that goes away in an orderly manner, once all that was sent is out."""
        assert self.request.transport is not None
        self.request.transport.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        transport = self.request.transport
        assert transport is not None
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _continue(self) -> None:
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            assert self.request.transport is not None
            self.request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]
"""What is done to a request in place of passing it on."""


def answer(
    status: int, code: str, headers: Mapping[str, str] | None = None, *, early: bool = False, xml: bool = True
) -> Fault:
    """Answer with an S3 error; `early`: before the body, so that a client which waits for 100 never sends it."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        if not early:
            await exchange.drain()
        body = f"<Error><Code>{escape(code)}</Code><Message>injected</Message></Error>" if xml else ""
        response = web.Response(status=status, text=body, content_type="application/xml", headers=headers)
        if early:
            response.force_close()
        return response

    return fault


def throttle() -> Fault:
    return answer(503, "SlowDown")


def internal_error() -> Fault:
    return answer(500, "InternalError")


def redirect(status: int, to: str, *, early: bool = False) -> Fault:
    """Answer with a redirect to the same path and query on the server whose URL is `to`, without a body of S3's."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        location = to + exchange.request.raw_path
        return await answer(status, "", {"Location": location}, early=early, xml=False)(exchange)

    return fault


def reset() -> Fault:
    """Reset the connection before the server hears of the request."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        exchange.reset()
        return web.Response()

    return fault


def lost_answer() -> Fault:
    """The server does what it is asked, and the connection is reset in place of the answer."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async with await exchange.ask() as response:
            await response.read()
        exchange.reset()
        return web.Response()

    return fault


def slow(seconds: float) -> Fault:
    """Pass the request on after so many seconds."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        async with await exchange.ask() as response:
            return await exchange.pass_on(response)

    return fault


def truncate(size: int) -> Fault:
    """Pass on only the first `size` bytes of the answer's body, under the Content-Length of all of it."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async with await exchange.ask() as response:
            return await exchange.pass_on(response, at_most=size)

    return fault


class Hold:
    """A fault: the request waits until `release()`, and is passed on then. Test code waits for it by `reached`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        self.reached.set()
        assert await asyncio.to_thread(self._released.wait, PATIENCE), "a held request was never released"
        async with await exchange.ask() as response:
            return await exchange.pass_on(response)


class _Rule:
    def __init__(self, fault: Fault, when: Callable[[Seen], bool], nth: int, times: int | None) -> None:
        self.fault = fault
        self._when = when
        self._first = nth
        self._last = None if times is None else nth + times - 1
        self._met = 0

    def takes(self, request: Seen) -> bool:
        if not self._when(request):
            return False
        self._met += 1
        return self._first <= self._met and (self._last is None or self._met <= self._last)


class S3Proxy:
    """Passes requests on to an S3 server, but for those that `inject` names. A context manager.

    It listens on a real socket on the loopback address, on an event loop and a thread of its own.
    """

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            upstream: URL of the server.
            tls: serve https with this.
        """
        self.upstream = upstream
        self.requests: list[Seen] = []
        """All that have come, in their order."""
        self.url = ""
        self._tls = tls
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def inject(
        self,
        fault: Fault,
        *,
        when: Callable[[Seen], bool] = lambda request: True,
        operation: str | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        """Do this to the `nth` request, and those behind it, `times` in all (None: ever), of those it concerns.

        Args:
            fault: what to do.
            when: which requests it concerns.
            operation: S3's name of the operation that it concerns alone.
        """
        rule = _Rule(
            fault, lambda request: when(request) and operation in (None, request.operation), nth=nth, times=times
        )
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Forget what was injected, and all requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    @property
    def operations(self) -> list[str]:
        """S3's names of what was asked for, in order."""
        return [request.operation for request in self.requests]

    @property
    def connections(self) -> int:
        """Those that clients have open, in use or not."""
        return len(self._server.connections)

    def __enter__(self) -> S3Proxy:
        self._loop_thread = LoopThread("S3 proxy")
        self._loop_thread.run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop_thread.run(self._stop())
        self._loop_thread.close()

    async def _listen(self) -> None:
        self._session = ClientSession(
            auto_decompress=False, connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar()
        )
        self._server = web.Server(self._handle, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, request.headers)
        with self._lock:
            self.requests.append(seen)
            # Every rule counts every request that it concerns; the first that takes this one has it.
            taking = [rule for rule in self._rules if rule.takes(seen)]
        exchange = Exchange(request, self._session, self.upstream)
        try:
            if taking:
                return await taking[0].fault(exchange)
            async with await exchange.ask() as response:
                return await exchange.pass_on(response)
        except (ClientError, OSError):  # either side went away
            if request.transport is not None:
                exchange.reset()
            return web.Response()
