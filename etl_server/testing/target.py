"""A target of the AIStore protocol over directories, for tests and for trying a transform out."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import quote, unquote

from aiohttp import web
from multidict import CIMultiDictProxy

from etl_server.errors import ObjectStoreError
from etl_server.storage.files import FileTree, IncomingFile
from etl_server.wire.checksum import (
    CHECKSUM_TYPE_HEADER,
    CHECKSUM_TYPES,
    CHECKSUM_VALUE_HEADER,
    Checksum,
    ChecksumType,
    new_checksum,
)
from etl_server.wire.names import decode_path, encode_uname

from .loop_thread import LoopThread

RequestHook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

_BASE_PATH = "/v1/etl/_object/"
_NAMESPACE = "ais/@#"
_METHODS = ("GET", "HEAD", "PUT")
_CHUNK = 1 << 18
_LONGEST_LINE = 1 << 16
_RECORDS = 10_000
_SHUTDOWN_SECONDS = 1.0
_TRANSFORM_OBJECT = 5
"""The write kind that a target names in a destination's `owt`: a transformed object."""


@dataclass(frozen=True)
class RequestRecord:
    """A request that a target has answered, or, where the client went away, would have."""

    method: str
    raw_uname: str
    """The escaped last part of the path, byte for byte; empty when the path was no object's."""
    query: str
    """The raw query string."""
    status: int
    headers: CIMultiDictProxy[str] = field(repr=False)
    """The request's headers."""

    @property
    def uname(self) -> str:
        """The object's uname, decoded once."""
        return decode_path(self.raw_uname)


class Target:
    """Serves directories as buckets, the way an AIStore target serves objects to its ETL servers.

    It listens on a real socket, on an event loop and a daemon thread of its own, so that synchronous and asynchronous
    code can use it alike. Every method may be called from any thread, except from `on_request`, which runs on that
    loop. Objects are ordinary files (`storage.object_paths` tells which) and may be put there and looked at as such.

    Answers: 400 for a malformed uname, a checksum that does not match or is of an unknown type, and a body that
    breaks off; 403 for another ETL's name or secret; 404 for an unknown bucket or object; 405; 409 for an object that
    cannot be stored under its name, such as `a/b` where `a` is an object. Only a 200 to a PUT means that something
    was stored: the whole of it, its content synced to disk.
    """

    def __init__(
        self,
        buckets: Mapping[str, Path],
        *,
        etl_name: str = "dev",
        secret: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        checksum: ChecksumType | None = "xxhash2",
        on_request: RequestHook | None = None,
    ) -> None:
        """
        Args:
            buckets: a directory per bucket; one that does not exist is made with its first object.
            etl_name: the ETL that may ask.
            secret: its secret; default: a random one.
            host: address to listen on.
            port: port to listen on; 0: any free one.
            checksum: type of the checksum that comes with every object; None: none comes.
            on_request: called with every request, on the target's loop; may answer in the target's stead, or cut
                the connection.

        Raises:
            ValueError: a bucket's name is empty or has a slash; the ETL's name or the secret is empty.
        """
        for bucket in buckets:
            if not bucket or "/" in bucket:
                raise ValueError(f"{bucket!r} is no bucket's name: expected one path segment")
        if not etl_name or secret == "":
            raise ValueError("etl_name and secret must not be empty")
        self._buckets = {bucket: FileTree(root) for bucket, root in buckets.items()}
        self._etl_name = etl_name
        self._secret = secret or secrets.token_urlsafe(16)
        self._host = host
        self._port = port
        self._checksum = checksum
        self._on_request = on_request
        self._loop_thread: LoopThread | None = None
        self._runner: web.AppRunner | None = None
        self._netloc = ""
        self._records: deque[RequestRecord] = deque(maxlen=_RECORDS)
        self._answered = 0
        self._new_record = threading.Condition()

    def __enter__(self) -> Target:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen and serve; requests may be sent as soon as this returns.

        Raises:
            RuntimeError: it is running already.
            OSError: the address cannot be listened on.
        """
        if self._loop_thread is not None:
            raise RuntimeError("the target is running already")
        loop_thread = LoopThread(f"target {self._etl_name}")
        try:
            self._runner = loop_thread.run(self._listen())
        except BaseException:
            loop_thread.close()
            raise
        self._loop_thread = loop_thread
        host, port = self._runner.addresses[0][:2]
        self._netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def stop(self) -> None:
        """Close all connections, those with a request in progress after a second. Does nothing when not running."""
        if self._loop_thread is None or self._runner is None:
            return
        self._loop_thread.run(self._runner.cleanup())
        self._loop_thread.close()
        self._loop_thread = self._runner = None

    # Where it is

    @property
    def netloc(self) -> str:
        """`host:port`. Stays after `stop`; before the first `start` it is not known.

        Raises:
            RuntimeError: it was never started.
        """
        if not self._netloc:
            raise RuntimeError("the target has no address before it is started")
        return self._netloc

    @property
    def url(self) -> str:
        """The `AIS_TARGET_URL` for an ETL server. It ends in the secret."""
        owner = f"{quote(self._etl_name, safe='')}/{quote(self._secret, safe='')}"
        return f"http://{self.netloc}{_BASE_PATH}{owner}"

    def uname(self, bucket: str, name: str) -> str:
        """The uname of an object."""
        return f"{_NAMESPACE}/{bucket}/{name}"

    def destination(self, bucket: str, name: str) -> str:
        """The last entry of a pipeline that is to store its result as this object.

        It has no base path: the ETL server puts that of its own `AIS_TARGET_URL` in front.
        """
        query = f"uuid={uuid.uuid4().hex}&owt={_TRANSFORM_OBJECT}"
        return f"http://{self.netloc}/{encode_uname(self.uname(bucket, name))}?{query}"

    # What it has

    def names(self, bucket: str) -> list[str]:
        """The names of the bucket's objects, sorted. Raises KeyError when there is no such bucket."""
        return sorted(name for name, _ in self._buckets[bucket].scan())

    def path(self, bucket: str, name: str) -> Path:
        """The file that the object is, or would be.

        Raises:
            KeyError: there is no such bucket.
            ValueError: no file can have this name.
        """
        return self._buckets[bucket].path(name)

    def open(self, bucket: str, name: str) -> BinaryIO:
        """Open an object for reading.

        Raises:
            KeyError: there is no such bucket.
            ValueError: no file can have this name.
            FileNotFoundError: there is no such object.
        """
        return self._buckets[bucket].open(name)

    def read(self, bucket: str, name: str) -> bytes:
        """An object's content. Raises as `open` does."""
        with self.open(bucket, name) as file:
            return file.read()

    # What it was asked

    @property
    def requests(self) -> list[RequestRecord]:
        """The last 10,000 requests, in the order of their answers. One is in here before its client has the answer."""
        with self._new_record:
            return list(self._records)

    def wait_for_requests(self, count: int, timeout: float = 30.0) -> list[RequestRecord]:
        """Wait until so many requests were answered since the target was made; returns `requests`.

        A request whose client went away counts when the target is done with it, temporary file and all.

        Raises:
            TimeoutError: there were fewer after `timeout` seconds.
        """
        with self._new_record:
            if not self._new_record.wait_for(lambda: self._answered >= count, timeout):
                raise TimeoutError(f"{self._answered} of {count} requests were answered within {timeout} s")
            return list(self._records)

    @property
    def open_connections(self) -> int:
        """How many connections to the target are open, idle ones included."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    # Serving, on the loop

    async def _listen(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", self._handle)
        app.on_response_prepare.append(self._record)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        await web.TCPSite(runner, self._host, self._port).start()
        return runner

    async def _record(self, request: web.Request, response: web.StreamResponse) -> None:
        record = RequestRecord(
            request.method, _split_path(request)[2], request.rel_url.raw_query_string, response.status, request.headers
        )
        with self._new_record:
            self._records.append(record)
            self._answered += 1
            self._new_record.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._on_request is not None:
            answer = await self._on_request(request)
            if answer is not None:
                return answer
        etl_name, secret, raw_uname = _split_path(request)
        given = f"{unquote(etl_name)}/{unquote(secret)}".encode("utf-8", "surrogateescape")
        if not secrets.compare_digest(given, f"{self._etl_name}/{self._secret}".encode()):
            raise web.HTTPForbidden(text="wrong path, ETL name or secret")
        if request.method not in _METHODS:
            raise web.HTTPMethodNotAllowed(request.method, _METHODS)
        files, name = self._locate(raw_uname)
        if request.method == "PUT":
            return await self._put(request, files, name)
        return await self._get(request, files, name)

    def _locate(self, raw_uname: str) -> tuple[FileTree, str]:
        provider, _, rest = decode_path(raw_uname).partition("/")
        namespace, _, rest = rest.partition("/")
        bucket, _, name = rest.partition("/")
        well_formed = provider and namespace.startswith("@") and "#" in namespace and bucket and name
        if not well_formed or "/" in raw_uname or "\0" in name:
            raise web.HTTPBadRequest(text="malformed uname: expected provider/@namespace#/bucket/object as one segment")
        files = self._buckets.get(bucket)
        if files is None or f"{provider}/{namespace}" != _NAMESPACE:
            raise web.HTTPNotFound(text="no such bucket")
        return files, name

    async def _get(self, request: web.Request, files: FileTree, name: str) -> web.StreamResponse:
        try:
            file = files.open(name)
        except FileNotFoundError:
            raise web.HTTPNotFound(text="no such object") from None
        with file:
            response = web.StreamResponse()
            response.content_type = "application/octet-stream"
            response.content_length = rest = os.fstat(file.fileno()).st_size
            if self._checksum is not None:
                response.headers[CHECKSUM_TYPE_HEADER] = self._checksum
                response.headers[CHECKSUM_VALUE_HEADER] = await asyncio.to_thread(_checksum_of, file, self._checksum)
            try:
                await response.prepare(request)
                while rest and request.method == "GET":
                    chunk = file.read(min(rest, _CHUNK))
                    if not chunk:
                        raise EOFError(f"{file.name} shrank while it was sent")
                    await response.write(chunk)
                    rest -= len(chunk)
            except ConnectionError:
                pass  # the client is gone
        return response

    async def _put(self, request: web.Request, files: FileTree, name: str) -> web.StreamResponse:
        try:
            with files.create(name) as incoming:
                await _receive(request, incoming)
                await asyncio.to_thread(incoming.commit)
        except ObjectStoreError as error:
            raise web.HTTPConflict(text=f"cannot be stored under this name: {error}") from None
        return web.Response()


async def _receive(request: web.Request, incoming: IncomingFile) -> None:
    checksum, expected = _announced_checksum(request)
    try:
        async for chunk in request.content.iter_any():
            incoming.write(chunk)
            if checksum is not None:
                checksum.update(chunk)
    except (web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="the body broke off") from None
    if checksum is not None and checksum.hexdigest() != expected:
        raise web.HTTPBadRequest(text=f"checksum mismatch: expected {expected}, got {checksum.hexdigest()}")


def _split_path(request: web.Request) -> list[str]:
    """What the path says, still escaped: the ETL's name, its secret, the uname. What is not there is empty."""
    path = request.rel_url.raw_path
    parts = path.removeprefix(_BASE_PATH).split("/", 2) if path.startswith(_BASE_PATH) else []
    return parts + [""] * (3 - len(parts))


def _announced_checksum(request: web.Request) -> tuple[Checksum | None, str]:
    """A running checksum of the type that the request announces, or None, and the value that it is to have."""
    name = request.headers.get(CHECKSUM_TYPE_HEADER)
    value = request.headers.get(CHECKSUM_VALUE_HEADER)
    if name is None and value is None:
        return None, ""
    for known in CHECKSUM_TYPES:
        if name == known and value is not None:
            return new_checksum(known), value
    raise web.HTTPBadRequest(text=f"checksum {name!r}: expected one of {', '.join(CHECKSUM_TYPES)}, with its value")


def _checksum_of(file: BinaryIO, name: ChecksumType) -> str:
    checksum = new_checksum(name)
    while chunk := file.read(_CHUNK):
        checksum.update(chunk)
    file.seek(0)
    return checksum.hexdigest()
