"""What one process has: the user's instance, and the stages that an object passes on its way through it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol
from urllib.parse import quote_plus

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

from ..awaiting import maybe_await
from ..config import REDACTED
from ..errors import (
    INTERNAL,
    BadRequestError,
    ClientDisconnectedError,
    DeliveryFailedError,
    DeliveryInterruptedError,
    ETLError,
    TargetNotConfiguredError,
    TransformError,
    UpstreamRefusedError,
    UpstreamUnreachableError,
    error_body,
)
from ..server import ETLServer
from ..wire.names import (
    ETL_ARGS,
    ETL_FQN,
    LATEST_VERSION,
    decode_fqn,
    decode_path,
    decode_query,
    encode_uname,
)
from ..wire.pipeline import InvalidPipelineError, check_etl_pipeline, check_url, has_path, parse_etl_pipeline
from .admission import Admission, Lease
from .clients import close_clients, plain_session
from .deliver import Deliverer
from .exchange import DIRECT_PUT_LENGTH_HEADER, Answer, Exchange
from .execute import Executor, transform_error
from .files import LocalFiles
from .flow import BatchStream, ReadBuffer
from .outbound import Headers, Outbound
from .ranges import ranged
from .source import BodySource, FileSource, Source, TargetSource, UrlSource
from .stores import Stores
from .threads import WorkerThreads, tame

STREAM_MEMORY = 2 * 1024 * 1024
"""Bytes that an object takes up while it streams: what waits on its way in, and on its way out."""
LONGEST_DETAIL = 1000
"""Characters of an error's text in a log or a message."""
LONGEST_BACKOFF = 30
"""Seconds between two tries to deliver, at the most."""


_NO_QUERY: dict[str, str] = {}

Handler = Callable[[Exchange, Lease], Awaitable[Answer]]
"""What answers one kind of request."""


class Stoppable(Protocol):
    """A connection that outlives its requests."""

    def stop(self) -> None: ...


class ObjectRequest(NamedTuple):
    """One object to transform, and where it is to go."""

    name: str
    etl_args: str = ""
    stage: str = ""
    """URL of the next stage; empty: the result is the answer."""
    rest: str = ""
    """The pipeline behind that stage."""

    @classmethod
    def make(cls, name: str, etl_args: str, pipeline: str) -> ObjectRequest:
        """Raises `BadRequestError` where the pipeline is malformed."""
        if not pipeline:
            return cls(name, etl_args)
        try:
            check_etl_pipeline(pipeline)
            return cls(name, etl_args, *parse_etl_pipeline(pipeline))
        except InvalidPipelineError as error:
            raise BadRequestError(f"Invalid pipeline header: {error}") from None


class Worker:
    """One process's server: made anywhere, started and used on one event loop."""

    def __init__(self, server: ETLServer) -> None:
        self.server = server
        self.settings = server.settings
        self.logger = server.logger
        self.started = False
        self.read_buffer = ReadBuffer()
        self.sessions: set[Stoppable] = set()
        """The WebSockets that are open."""
        self.start_error = ""
        """What kept it from starting."""
        self._starting: asyncio.Lock | None = None

    async def start(self) -> None:
        """Set up what the data path needs, then the user's instance; once."""
        if self.started:
            return
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self.started:
                return
            settings = self.settings
            self.admission = Admission(settings.max_memory // settings.workers)
            self.threads = WorkerThreads()
            self.outbound = Outbound(settings)
            self.files = LocalFiles(settings.fqn_roots)
            self.executor = Executor(self.server, self.threads)
            self.deliverer = Deliverer(settings, self.outbound, self.threads)
            self.stores = Stores(settings, self.threads)
            self._streams, self._direct_fqn = self.server.streams, settings.direct_fqn
            self._downloads = plain_session(settings)
            token = settings.authn_token.get_secret_value()
            self._session = lambda: self.server.session
            self._target_headers: Headers = (("authorization", f"Bearer {token}"),) if token else ()
            if self.server.streams:
                _ = self.server.session  # made before several threads ask for it
            try:
                await self.stores.open()
                await maybe_await(self.server.setup())
            except BaseException as error:
                self.start_error = self.printable(f"{type(error).__name__}: {error}")
                raise (error if isinstance(error, Exception) else tame(error)) from None
            self.started = True

    async def stop(self) -> None:
        """Tear down the user's instance, and close what is open."""
        if not self.started:
            return
        self.started = False
        for session in tuple(self.sessions):
            session.stop()
        try:
            await maybe_await(self.server.teardown())
        finally:
            self.outbound.close()
            await self.stores.close()
            self.threads.stop()
            self._downloads.close()
            await close_clients(self.server)

    @property
    def eager(self) -> bool:
        """Whether an object may be served outside of a task until it has to wait; a user's coroutine may not."""
        return not self.executor.is_async

    async def serve(self, handler: Handler, exchange: Exchange) -> None:
        """The way of one object: from its request to its answer.

        Raises:
            Exception: the answer broke off after its first byte; the transport is to cut the connection.
        """
        lease = Lease(self.admission.memory)
        answer: Answer | None = None
        try:
            try:
                answer = await handler(exchange, lease)
            except ClientDisconnectedError:
                return
            except Exception as error:
                answer = self.error_answer(error, f"{exchange.method} {exchange.path}")
            if not exchange.send_whole(answer):
                await exchange.send(answer)
        except ClientDisconnectedError:
            raise
        except Exception as error:
            self.log_failure(error, f"cut, because the answer broke off: {exchange.method} {exchange.path}")
            raise
        finally:
            lease.release()
            if answer is not None and not isinstance(answer.body, bytes):
                await answer.body.aclose()

    def serve_now(self, exchange: Exchange) -> Answer | Handler | None:
        """The way of an object that is here in whole and whose transform has been taking microseconds, in one step.

        None: it has to go the whole way. A handler: what is left of that. Nothing is waited for before the answer,
        so that no memory has to be admitted, and nobody can go away meanwhile.
        """
        body = exchange.body
        if exchange.query or exchange.pipeline or not body.ended or not self.executor.is_quick(body.size):
            return None
        name = decode_path(exchange.path)
        if not name:
            return None
        try:
            result = self.transform_now(name, body.take_whole())
            if type(result) is not bytes:
                return self._finish_later(result)
            return Answer(200, result, self._mime_type())
        except ETLError as error:
            return self.error_answer(error, f"{exchange.method} {exchange.path}")

    def transform_now(self, name: str, data: bytes) -> object:
        """What the transform returns: bytes, or else what `executor.finish` is to make them of. See `is_quick`.

        Raises:
            TransformError: it raised.
        """
        try:
            return self.executor.call(data, name, "")
        except Exception as error:
            raise transform_error(error) from error

    def _finish_later(self, result: object) -> Handler:
        async def finish(_: Exchange, __: Lease) -> Answer:
            return Answer(200, await self.executor.finish(result), self._mime_type())

        return finish

    # The requests of the protocol: each makes a request and its source

    async def health(self, _: Exchange, __: Lease) -> Answer:
        """GET /health: whether this process takes objects."""
        if self.admission.draining.is_set():
            return Answer(503, b"Draining", "text/plain")
        return Answer(200, b"Running", "text/plain")

    async def push(self, exchange: Exchange, lease: Lease) -> Answer:
        """PUT: the object is the body, or a local file."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        request = self._request(decode_path(exchange.path), query, exchange.pipeline)
        source = self._file(query, lease) if query else None
        if source is None:
            source = BodySource(exchange.body, exchange.content_length, self.settings.max_body, lease)
        return await self.process(request, source, lease)

    async def pull(self, exchange: Exchange, lease: Lease) -> Answer:
        """GET: the object is the target's, or a local file."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        name = decode_path(exchange.path)
        request = self._request(name, query, exchange.pipeline)
        source = self._file(query, lease) if query else None
        if source is None:
            latest = query.get(LATEST_VERSION)
            version = f"?{LATEST_VERSION}={quote_plus(latest)}" if latest is not None else ""
            source = self._target_source(name, version, lease)
        return await self.process(request, source, lease)

    async def fetch(self, exchange: Exchange, lease: Lease) -> Answer:
        """GET and HEAD with a source: the object is that store's, or a local file. HEAD delivers nothing anywhere."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        name = decode_path(exchange.path)
        request = self._request(name, query, exchange.pipeline if exchange.method == "GET" else "")
        source = self._file(query, lease) or self.stores.source_of(name, lease)
        answer = await self.process(request, source, lease)
        if request.stage:
            return answer
        return await ranged(answer, exchange.method, exchange.headers, lambda: self._transform(request, source))

    async def store(self, exchange: Exchange, lease: Lease) -> Answer:
        """PUT with a sink: as `push`, and where no pipeline says otherwise, the result goes to that store."""
        answer = await self.push(exchange, lease)
        if exchange.pipeline:
            return answer
        size = await self.stores.put(decode_path(exchange.path), answer.body, answer.content_type, lease)
        return Answer(204, headers=((DIRECT_PUT_LENGTH_HEADER, str(size)),))

    async def download(self, exchange: Exchange, lease: Lease) -> Answer:
        """POST /download: the object is what a URL answers."""
        query = decode_query(exchange.query) if exchange.query else {}
        url, name = query.get("original_url", ""), query.get("object_to", "")
        if not url or not name:
            raise BadRequestError("The query parameters original_url and object_to are both required")
        try:
            check_url(url)
        except ValueError as error:
            raise BadRequestError(f"original_url is not a URL: {error}") from None
        settings = self.settings
        source = UrlSource(url, lambda: self._downloads, self.threads, settings.io_timeout, settings.max_body, lease)
        return await self.process(self._request(name, query, exchange.pipeline), source, lease)

    def file_source(self, fqn: str, lease: Lease) -> FileSource:
        """The object is a local file."""
        return FileSource(fqn, self.files, self.threads, self.settings.max_body, lease)

    # source -> execute -> deliver

    async def process(self, request: ObjectRequest, source: Source, lease: Lease) -> Answer:
        """Transform one object and see to it that it gets where it is to go.

        Raises:
            ETLError: what is to be answered instead.
        """
        if request.stage and has_path(request.stage) and not self.settings.host_target.get_secret_value():
            raise TargetNotConfiguredError("AIS_TARGET_URL is not set: direct put to a target needs it")
        content: bytes | BatchStream
        if self._streams or self._direct_fqn:
            content = await self._transform(request, source)
        else:
            # What `_transform` does, without the call: most objects come this way.
            data = source.read_now()
            if data is None:
                data = await source.read()
            content = await self.executor.transform(data, request.name, request.etl_args)
        if not isinstance(content, bytes):
            lease.add(STREAM_MEMORY)
        elif content is not source.whole:
            lease.add(len(content))
        if not request.stage:
            try:
                return Answer(200, content, self._mime_type())
            except TransformError:
                if not isinstance(content, bytes):
                    await content.aclose()
                raise
        return await self._deliver(request, source, content)

    async def _transform(self, request: ObjectRequest, source: Source) -> bytes | BatchStream:
        if self._streams:
            return await self.executor.stream(source, request.name, request.etl_args)
        data: bytes | str
        if self._direct_fqn and isinstance(source, FileSource):
            data = source.path()
        else:
            data = await source.read()
        return await self.executor.transform(data, request.name, request.etl_args)

    def _mime_type(self) -> str:
        try:
            mime_type = self.server.get_mime_type()
            _ = mime_type.encode("latin-1")
        except Exception as error:
            raise TransformError(f"get_mime_type(): {error}") from error
        return mime_type

    async def _deliver(self, request: ObjectRequest, source: Source, content: bytes | BatchStream) -> Answer:
        """Direct put, repeated where that can help; a stream is made anew for each try."""
        stage, rest, name, etl_args = request.stage, request.rest, request.name, request.etl_args
        try:
            return await self.deliverer.put(stage, rest, name, etl_args, content)
        except UpstreamUnreachableError as error:
            if not _is_transient(error):
                raise
            failure: ETLError | None = error
        if not isinstance(content, bytes) and not source.repeatable:
            raise DeliveryInterruptedError(f"Direct put broke off: {failure}")
        retries = self.settings.direct_put_retries
        retrying = AsyncRetrying(
            stop=stop_after_attempt(retries + 1),
            wait=wait_exponential(multiplier=1, max=LONGEST_BACKOFF),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    if failure is not None:
                        first_failure, failure = failure, None
                        raise first_failure
                    again = content if isinstance(content, bytes) else await self._transform(request, source)
                    return await self.deliverer.put(stage, rest, name, etl_args, again)
        except UpstreamUnreachableError as error:
            if not _is_transient(error):
                raise
            raise DeliveryFailedError(f"Direct put failed after {retries} retries: {error}") from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _request(self, name: str, query: dict[str, str], pipeline: str) -> ObjectRequest:
        if not name:
            raise BadRequestError("The path names no object")
        if query is _NO_QUERY and not pipeline:
            return ObjectRequest(name)
        etl_args = query.get(ETL_ARGS, "")
        return ObjectRequest.make(name, etl_args, pipeline) if pipeline else ObjectRequest(name, etl_args)

    def _file(self, query: dict[str, str], lease: Lease) -> Source | None:
        fqn = query.get(ETL_FQN)
        return self.file_source(decode_fqn(fqn), lease) if fqn else None

    def _target_source(self, name: str, query: str, lease: Lease) -> Source:
        target = self.settings.host_target.get_secret_value()
        if not target:
            raise TargetNotConfiguredError("AIS_TARGET_URL is not set: reading objects of the target needs it")
        url = f"{target}/{encode_uname(name)}{query}"
        return TargetSource(
            url,
            self._target_headers,
            self.outbound,
            self._session,
            self.threads,
            self.settings.io_timeout,
            self.settings.max_body,
            lease,
        )

    def error_answer(self, error: Exception, what: str) -> Answer:
        """The answer to a request that failed, without a secret in it; the failure is logged."""
        self.log_failure(error, what)
        if not isinstance(error, ETLError):
            return Answer(500, error_body(INTERNAL), "application/json")
        body = error.body()
        for secret in self.settings.secrets():
            body = body.replace(secret.encode(), REDACTED.encode())
        return Answer(error.status, body, error.content_type, error.headers())

    def log_failure(self, error: Exception, what: str) -> None:
        """One line for an object that failed; with a traceback, where the user's code or ours raised."""
        raised: BaseException | None = error
        status, detail = 500, INTERNAL
        if isinstance(error, ETLError):
            status, detail = error.status, self.told(error)
            raised = error.__cause__ if isinstance(error, TransformError) else None
        lines = [f"{what}: {status} {detail}\n", *(traceback.format_exception(raised) if raised else ())]
        # Redacted here and not by the log's formatter, which under another ASGI server is not ours.
        self.logger.warning("%s", self.printable("".join(lines)).rstrip())

    def told(self, error: ETLError) -> str:
        """What an error says, fit to be shown: not long, and without any secret."""
        return self.printable(error.detail)[:LONGEST_DETAIL]

    def printable(self, text: str) -> str:
        """`text` without any secret, and without the surrogates of names that are no UTF-8."""
        return self.settings.redact(text).encode(errors="backslashreplace").decode()


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, UpstreamUnreachableError) and not isinstance(error, UpstreamRefusedError)


def already(answer: Answer) -> Handler:
    """What "answers" a request whose answer is there."""

    async def handle(_: Exchange, __: Lease) -> Answer:
        return answer

    return handle
