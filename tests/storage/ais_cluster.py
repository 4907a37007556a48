"""A gateway and a target of AIStore as far as objects go, in memory, on real sockets."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from types import TracebackType
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDictProxy

from etl_server.testing.loop_thread import LoopThread
from etl_server.wire.checksum import CHECKSUM_TYPE_HEADER, CHECKSUM_VALUE_HEADER

Fault = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
BUCKET = "data"


class Seen(NamedTuple):
    """A request that came to a node."""

    node: str
    """`gateway` or `target`."""
    method: str
    raw_path: str
    headers: CIMultiDictProxy[str]
    body: bytes


class AISCluster:
    """A gateway, which sends clients to its one target. A context manager.

    Like AIStore's: the gateway answers without reading the body; the target serves nobody who was not sent by it.
    """

    def __init__(self, *, token: str = "", tls: ssl.SSLContext | None = None, page_size: int = 1000) -> None:
        """`tls`: the gateway's, while the target has none."""
        self.objects: dict[str, bytes] = {}
        self.requests: list[Seen] = []
        self.faults: list[tuple[str, Fault]] = []
        """What is to be done in place of answering, to the next request at a node; each is done once."""
        self.location: Callable[[str], str] = lambda url: url
        """What becomes of the gateway's redirects."""
        self.versions = False
        """Whether the bucket has versions in place of checksums."""
        self.url = ""
        self._token = token
        self._tls = tls
        self._page_size = page_size
        self._target = ""

    def __enter__(self) -> AISCluster:
        self._loop_thread = LoopThread("AIStore")
        self._runners: list[web.ServerRunner] = []
        self._target = f"http://127.0.0.1:{self._loop_thread.run(self._listen('target', None))}"
        port = self._loop_thread.run(self._listen("gateway", self._tls))
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for runner in self._runners:
            self._loop_thread.run(runner.cleanup())
        self._loop_thread.close()

    async def _listen(self, node: str, tls: ssl.SSLContext | None) -> int:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await self._handle(node, request)

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self._runners.append(runner)
        return int(runner.addresses[0][1])

    async def _handle(self, node: str, request: web.BaseRequest) -> web.StreamResponse:
        body = b""
        if node == "target" or request.path.startswith("/v1/buckets/"):
            body = b"".join([piece async for piece in request.content.iter_any()])
        self.requests.append(Seen(node, request.method, request.raw_path, request.headers, body))
        for index, (where, fault) in enumerate(self.faults):
            if where == node:
                del self.faults[index]
                return await fault(request)
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(status=401, text='{"status": 401, "message": "no token"}')
        _, version, kind, bucket, *rest = request.raw_path.partition("?")[0].split("/", 4)
        if version != "v1" or bucket != BUCKET or request.query.get("provider") != "ais":
            return web.Response(status=404, text=f'{{"status": 404, "message": "bucket {bucket} does not exist"}}')
        if kind == "buckets":
            return self._list(json.loads(body))
        if node == "gateway":
            location = self.location(f"{self._target}{request.raw_path}&pid=p1&utm=1")
            response = web.Response(status=307, headers={"Location": location})
            if request.headers.get("Content-Length", "0") != "0":
                response.force_close()
            return response
        if "pid" not in request.query:
            return web.Response(status=400, text="expected to be redirected")
        return self._object(request, unquote(rest[0]), body)

    def _list(self, message: dict[str, dict[str, str]]) -> web.Response:
        wanted = message["value"]
        names = sorted(name for name in self.objects if name.startswith(wanted["prefix"]))
        names = [name for name in names if name > wanted["continuation_token"]]
        page = names[: self._page_size]
        told = "version" if self.versions else "checksum"
        entries = [
            {"name": name, "size": str(len(self.objects[name])), told: _md5(self.objects[name])} for name in page
        ]
        token = page[-1] if len(names) > len(page) else ""
        return web.json_response(
            {"uuid": "list-1", "entries": entries or None, "continuation_token": token, "flags": 0}
        )

    def _object(self, request: web.BaseRequest, name: str, body: bytes) -> web.Response:
        if request.method == "PUT":
            self.objects[name] = body
            return web.Response(headers=self._told(body))
        if name not in self.objects:
            return web.Response(status=404, text='{"status": 404, "message": "object does not exist"}')
        if request.method == "DELETE":
            del self.objects[name]
            return web.Response()
        content = self.objects[name]
        headers = {"Last-Modified": formatdate(0, usegmt=True), **self._told(content)}
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if given is None:
            return web.Response(body=content, headers=headers)
        start, stop = int(given[1]), min(int(given[2] or len(content) - 1) + 1, len(content))
        if start >= len(content):
            return web.Response(status=416)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:stop], headers=headers)

    def _told(self, content: bytes) -> dict[str, str]:
        """The headers that tell contents apart, of an object and in the answer to its PUT."""
        if self.versions:
            return {"ais-version": _md5(content)}
        return {CHECKSUM_TYPE_HEADER: "md5", CHECKSUM_VALUE_HEADER: _md5(content)}


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
