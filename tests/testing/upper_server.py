"""A small ETL server of the protocol, for a driver to talk to: objects come back in upper case."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from aiohttp import ClientSession, WSMsgType, web
from yarl import URL

from etl_server.wire.control import parse_control_message
from etl_server.wire.names import decode_fqn, decode_path, decode_query, encode_uname
from etl_server.wire.pipeline import compose_etl_direct_put_url, parse_etl_pipeline


@dataclass
class Seen:
    """A request that the server got."""

    method: str
    raw_path: str
    raw_query: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class UpperServer:
    """Transforms what it is sent, and writes down what that was."""

    target_url: str
    name: str = ""
    """Put in front of every object, to tell stages apart."""
    answers: deque[web.Response | None] = field(default_factory=deque)
    """Given instead of the transformed object, each once; None cuts the connection."""
    health: deque[int] = field(default_factory=deque)
    """Statuses of `/health` before it is 200."""
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def __aenter__(self) -> UpperServer:
        app = web.Application(client_max_size=0)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ws", self._websocket)
        app.router.add_route("*", "/{path:(?s:.*)}", self._object)
        self._session = ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    def transform(self, data: bytes) -> bytes:
        return self.name.encode() + data.upper()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health.popleft() if self.health else 200, text="Running")

    async def _object(self, request: web.Request) -> web.StreamResponse:
        url = request.rel_url
        seen = Seen(request.method, url.raw_path, url.raw_query_string, dict(request.headers))
        self.seen.append(seen)
        seen.body = await request.read()
        if self.answers:
            answer = self.answers.popleft()
            if answer is not None:
                return answer
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        query = decode_query(url.raw_query_string)
        name = decode_path(url.raw_path)
        if "etl_fqn" in query:
            data = Path(decode_fqn(query["etl_fqn"])).read_bytes()
        elif request.method == "GET":
            status, data = await self._fetch(name)
            if status != 200:
                return web.Response(status=status, body=data)
        else:
            data = seen.body
        return await self._deliver(
            request, self.transform(data), request.headers.get("ais-node-url", ""), name, query.get("etl_args", "")
        )

    async def _fetch(self, uname: str) -> tuple[int, bytes]:
        url = URL(f"{self.target_url}/{encode_uname(uname)}", encoded=True)
        async with self._session.get(url) as response:
            return response.status, await response.read()

    async def _deliver(
        self, request: web.Request, data: bytes, pipeline: str, name: str, etl_args: str
    ) -> web.StreamResponse:
        first, rest = parse_etl_pipeline(pipeline)
        if first:
            status, body, length = await self._put(first, rest, data, name, etl_args)
            if length is not None:
                return web.Response(status=204, headers={"ais-direct-put-length": length})
            if status != 200:
                return web.Response(status=status, body=body)
            data = body
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write_eof(data)
        return response

    async def _put(self, first: str, rest: str, data: bytes, name: str, etl_args: str) -> tuple[int, bytes, str | None]:
        url = URL(compose_etl_direct_put_url(first, self.target_url, name, etl_args), encoded=True)
        async with self._session.put(url, data=data, headers={"ais-node-url": rest} if rest else {}) as response:
            body = await response.read()
            length = response.headers.get("ais-direct-put-length")
            if response.status == 200 and response.headers.get("Content-Length") == "0":
                length = str(len(data))
            return response.status, body, length

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        self.seen.append(Seen("WS", request.rel_url.raw_path, "", dict(request.headers)))
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            self.seen.append(Seen("CONTROL", "", "", json.loads(message.data), message.data))
            control = parse_control_message(message.data)
            data = Path(control.fqn).read_bytes() if control.fqn else await socket.receive_bytes()
            if data == b"close":
                await socket.close(code=1011, message=b"broken on purpose")
                break
            if data == b"cut":
                assert request.transport is not None
                request.transport.abort()
                break
            data = self.transform(data)
            first, rest = parse_etl_pipeline(control.pipeline)
            if first:
                _, body, length = await self._put(first, rest, data, control.path, control.etl_args)
                if length is not None:
                    await socket.send_str(length)
                    continue
                data = body
            await socket.send_bytes(data)
        return socket
