"""Sends objects to an ETL server the way a target does."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import quote, quote_plus

from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    TCPConnector,
    WSMsgType,
)
from multidict import CIMultiDictProxy
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
    wait_fixed,
)
from yarl import URL

from etl_server.errors import RETRY_REASON_DIRECT_PUT, RETRY_REASON_HEADER
from etl_server.wire.names import ETL_ARGS, ETL_FQN, LATEST_VERSION, encode_object_path, encode_uname

from .target import Target

NODE_URL_HEADER = "ais-node-url"
DIRECT_PUT_LENGTH_HEADER = "ais-direct-put-length"

_CHUNK = 1 << 20
_HEALTH_TIMEOUT = 5.0
_HEALTH_INTERVAL = 0.05


class Reply(NamedTuple):
    """An ETL server's answer to one object."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def delivered(self) -> int | None:
        """How many bytes were delivered by direct put; None when this is no such acknowledgement."""
        length = self.headers.get(DIRECT_PUT_LENGTH_HEADER)
        return int(length) if self.status == 204 and length is not None else None

    @property
    def transient(self) -> bool:
        """Whether the server asks for the whole PUT to be repeated."""
        return self.headers.get(RETRY_REASON_HEADER) == RETRY_REASON_DIRECT_PUT


class Message(NamedTuple):
    """What an ETL server sent on a WebSocket."""

    kind: Literal["binary", "text", "close"]
    data: bytes | str = b""
    """The message: `bytes` of a binary one, `str` of a text."""
    code: int | None = None
    """The close code; 1006 when the connection was lost."""
    reason: str = ""
    """The reason that came with the close code."""


def pipeline(*stage_urls: str, destination: str = "") -> str:
    """The value of an `ais-node-url` header.

    Args:
        stage_urls: other ETL servers that the object has to go through, in order; URLs without a path.
        destination: where the last one is to store it, by `Target.destination`; empty: the result comes back.
    """
    return ",".join([*stage_urls, destination] if destination else stage_urls)


class DriverSocket:
    """A WebSocket to an ETL server. Objects may be sent ahead; the answers come in their order."""

    def __init__(self, socket: ClientWebSocketResponse[Any], timeout: float | None) -> None:
        self._socket = socket
        self._timeout = timeout

    async def send(
        self,
        name: str,
        data: bytes | None,
        *,
        etl_args: str = "",
        pipeline: str | Sequence[str] = (),
        fqn: str | None = None,
    ) -> None:
        """Write an object, and do not wait for its answer.

        Args:
            name: the object's name, without its bucket.
            data: its content; None when `fqn` names its file.
            etl_args: arguments for the transform.
            pipeline: the stages after this one, joined or one by one.
            fqn: the object's local file. Then no content is sent.

        Raises:
            ValueError: not exactly one of `data` and `fqn` is given.
            ConnectionError: the connection is closed.
        """
        if (data is None) == (fqn is None):
            raise ValueError("expected either data or fqn")
        control = {"pipeline": _joined(pipeline), "etl_args": etl_args, "fqn": fqn, "path": name}
        await self._socket.send_bytes(json.dumps({field: value for field, value in control.items() if value}).encode())
        if data is not None:
            await self._socket.send_bytes(data)

    async def receive(self) -> Message:
        """The next answer. Once the connection is closed, each call says so.

        Raises:
            asyncio.TimeoutError: none came within the driver's `object_timeout`.
        """
        message = await self._socket.receive(self._timeout)
        if message.type is WSMsgType.BINARY:
            return Message("binary", message.data)
        if message.type is WSMsgType.TEXT:
            return Message("text", message.data)
        if message.type is WSMsgType.CLOSE:
            return Message("close", code=message.data, reason=message.extra or "")
        return Message("close", code=self._socket.close_code)


class Driver:
    """Sends objects to an ETL server by push, pull and WebSocket. An async context manager.

    Every URL goes out as it was escaped here, no answer is decompressed, no redirect is followed, and no request is
    repeated behind the caller's back.
    """

    def __init__(self, server_url: str, target: Target, *, object_timeout: float | None = 45.0) -> None:
        """
        Args:
            server_url: the ETL server, `http://host:port`.
            target: the target on whose behalf objects are sent.
            object_timeout: seconds to wait for one object; None: forever.
        """
        self._server_url = server_url.rstrip("/")
        self._target = target
        self._object_timeout = object_timeout
        self._opened: ClientSession | None = None

    async def __aenter__(self) -> Driver:
        self._opened = ClientSession(
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=self._object_timeout),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
        )
        # A session repeats a PUT or GET whose connection was lost, even when the server has seen all of it.
        self._opened._retry_connection = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def wait_until_ready(self, timeout: float = 30.0) -> None:
        """Ask for `/health` until the answer is 200.

        Raises:
            TimeoutError: it was not within `timeout` seconds.
        """
        polling = AsyncRetrying(
            wait=wait_fixed(_HEALTH_INTERVAL),
            retry=retry_if_result(lambda status: status != 200)
            | retry_if_exception_type((ClientError, asyncio.TimeoutError)),
        )
        try:
            await asyncio.wait_for(polling(self._health), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{self._server_url}/health did not answer 200 within {timeout} s") from None

    async def push(
        self,
        bucket: str,
        name: str,
        *,
        data: bytes | AsyncIterable[bytes] | None = None,
        etl_args: str = "",
        pipeline: str | Sequence[str] = (),
        fqn: str | None = None,
    ) -> Reply:
        """Send an object by `PUT /<bucket>/<name>`.

        Args:
            bucket: the object's bucket.
            name: its name.
            data: its content: `bytes` go with a length, an iterable goes chunked. Default: with `fqn` nothing, else
                the target's own object, streamed with its length.
            etl_args: arguments for the transform.
            pipeline: the stages after this one, joined or one by one.
            fqn: the object's local file.

        Raises:
            aiohttp.ClientError: the server cannot be reached, or the answer broke off.
            asyncio.TimeoutError: it took longer than `object_timeout`.
            KeyError, FileNotFoundError: the target has no such bucket, no such object.
        """
        path = "/" + encode_object_path(f"{bucket}/{name}")
        query = _query(etl_args, fqn)
        if data is not None or fqn is not None:
            return await self._send("PUT", path, query, pipeline, data)
        with self._target.open(bucket, name) as file:
            size = os.fstat(file.fileno()).st_size
            return await self._send("PUT", path, query, pipeline, _pieces(file), size)

    async def push_retrying(
        self,
        bucket: str,
        name: str,
        *,
        data: bytes | None = None,
        etl_args: str = "",
        pipeline: str | Sequence[str] = (),
        fqn: str | None = None,
        attempts: int = 3,
    ) -> Reply:
        """`push`, repeated while the server asks for that, at most `attempts` times in all; the last answer."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts),
            wait=wait_exponential(multiplier=0.05, max=1.0),
            retry=retry_if_result(lambda reply: reply.transient),
        )
        try:
            return await retrying(self.push, bucket, name, data=data, etl_args=etl_args, pipeline=pipeline, fqn=fqn)
        except RetryError as error:
            reply: Reply = error.last_attempt.result()
            return reply

    async def pull(
        self,
        bucket: str,
        name: str,
        *,
        etl_args: str = "",
        pipeline: str | Sequence[str] = (),
        fqn: str | None = None,
        latest: bool = False,
    ) -> Reply:
        """Let the server fetch an object, by `GET /<uname>`.

        Args:
            bucket: the object's bucket.
            name: its name.
            etl_args: arguments for the transform.
            pipeline: the stages after this one, joined or one by one.
            fqn: the object's local file.
            latest: ask for the latest version, which the server is to pass on.

        Raises:
            aiohttp.ClientError: the server cannot be reached, or the answer broke off.
            asyncio.TimeoutError: it took longer than `object_timeout`.
        """
        path = "/" + encode_uname(self._target.uname(bucket, name))
        return await self._send("GET", path, _query(etl_args, fqn, latest), pipeline, None)

    @asynccontextmanager
    async def websocket(self) -> AsyncIterator[DriverSocket]:
        """Open a WebSocket to the server, for messages of any size and without compression; closes it at the end.

        Raises:
            aiohttp.ClientError: the server cannot be reached, or does not speak WebSocket.
        """
        async with self._session.ws_connect(f"{self._server_url}/ws", max_msg_size=0, compress=0) as socket:
            yield DriverSocket(socket, self._object_timeout)

    @property
    def _session(self) -> ClientSession:
        if self._opened is None:
            raise RuntimeError("the driver is to be entered first: `async with Driver(...)`")
        return self._opened

    async def _health(self) -> int:
        timeout = ClientTimeout(total=_HEALTH_TIMEOUT)
        async with self._session.get(f"{self._server_url}/health", timeout=timeout) as response:
            return response.status

    async def _send(
        self,
        method: str,
        path: str,
        query: str,
        pipeline: str | Sequence[str],
        data: bytes | AsyncIterable[bytes] | None,
        length: int | None = None,
    ) -> Reply:
        stages = _joined(pipeline)
        headers = {NODE_URL_HEADER: stages} if stages else {}
        if length is not None:
            headers["Content-Length"] = str(length)
        url = URL(f"{self._server_url}{path}{query}", encoded=True)
        async with self._session.request(method, url, data=data, headers=headers, allow_redirects=False) as response:
            return Reply(response.status, response.headers, await response.read())


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    # Given the file itself, aiohttp stops sending it when the answer begins before its end.
    while piece := await asyncio.to_thread(file.read, _CHUNK):
        yield piece


def _joined(pipeline: str | Sequence[str]) -> str:
    return pipeline if isinstance(pipeline, str) else ",".join(pipeline)


def _query(etl_args: str, fqn: str | None, latest: bool = False) -> str:
    """The query string with its `?`, or nothing."""
    pairs = []
    if etl_args:
        pairs.append(f"{ETL_ARGS}={quote_plus(etl_args, errors='surrogateescape')}")
    if fqn is not None:
        pairs.append(f"{ETL_FQN}={quote_plus(quote(fqn, safe='', errors='surrogateescape'))}")
    if latest:
        pairs.append(f"{LATEST_VERSION}=true")
    return "?" + "&".join(pairs) if pairs else ""
