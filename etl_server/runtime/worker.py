"""What one process has: the user's instance, and the stages that an object passes on its way through it."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol
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
    ServerEndedError,
    TargetNotConfiguredError,
    TransformError,
    UpstreamRefusedError,
    UpstreamStatusError,
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
    printable,
)
from ..wire.pipeline import InvalidPipelineError, check_etl_pipeline, check_url, has_path
from .admission import Admission, Lease
from .clients import close_clients, plain_session
from .counts import CUT, GONE, Counts, Outcome, Way
from .deliver import Deliverer
from .exchange import DIRECT_PUT_LENGTH_HEADER, DOWNLOAD, NO_CONTENT, Answer, Exchange
from .execute import Executor, transform_error
from .files import LocalFiles
from .flow import BatchStream, ReadBuffer
from .hop import Begun, Delivery, Hop, Pull, Traveller
from .logs import ACCESS, Finished
from .outbound import Headers, Outbound, Response
from .ranges import ranged
from .source import BodySource, BytesSource, FileSource, Source, TargetSource, UrlSource
from .stores import Stores
from .threads import WorkerThreads, tame

if TYPE_CHECKING:
    from .metrics import Families

STREAM_MEMORY = 2 * 1024 * 1024
"""Bytes that an object takes up while it streams: what waits on its way in, and on its way out."""
LONGEST_DETAIL = 1000
"""Characters of an error's text in a log or a message."""
PUBLISH_INTERVAL = 1.0
"""Seconds between two times that one of several processes tells the others what it has counted."""
LONGEST_BACKOFF = 30
"""Seconds between two tries to deliver, at the most."""


_NO_QUERY: dict[str, str] = {}
_FQN = f"{ETL_FQN}="

Handler = Callable[[Exchange, Lease], Awaitable[Answer]]
"""What answers one kind of request."""
Now = Answer | Handler | Hop | None
"""How far an object got at once: its answer, what is left to be done, a hop that is under way, or not at all."""


class Stoppable(Protocol):
    """A connection that outlives its requests."""

    @property
    def in_work(self) -> int:
        """Its objects that are not answered yet."""

    def stop(self) -> None: ...


class ObjectRequest(NamedTuple):
    """One object to transform, and where it is to go."""

    way: Way
    """The way it came."""
    name: str
    etl_args: str = ""
    stage: str = ""
    """URL of the next stage; empty: the result is the answer."""
    rest: str = ""
    """The pipeline behind that stage."""

    @classmethod
    def make(cls, way: Way, name: str, etl_args: str, pipeline: str) -> ObjectRequest:
        """Raises `BadRequestError` where the pipeline is malformed."""
        if not pipeline:
            return cls(way, name, etl_args)
        try:
            return cls(way, name, etl_args, *check_etl_pipeline(pipeline))
        except InvalidPipelineError as error:
            raise BadRequestError(f"Invalid pipeline header: {error}") from None


class Worker:
    """One process's server: made anywhere, started and used on one event loop."""

    def __init__(self, server: ETLServer) -> None:
        self.server = server
        self.settings = server.settings
        self.logger = server.logger
        self.access_log = self.settings.access_log
        """Whether each object that is done is logged."""
        self.started = False
        self.read_buffer = ReadBuffer()
        self.sessions: set[Stoppable] = set()
        """The WebSockets that are open."""
        self.counts = Counts(on=self.settings.metrics)
        self._ways: dict[Handler, Way] = {
            self.push: self.counts.push,
            self.store: self.counts.push,
            self.pull: self.counts.pull,
            self.fetch: self.counts.pull,
            self.download: self.counts.download,
        }
        self.start_error = ""
        """What kept it from starting."""
        self._starting: asyncio.Lock | None = None
        self._publishing: asyncio.TimerHandle | None = None
        self._unpublished = False

    async def start(self) -> None:
        """Set up what the data path needs, then the user's instance; once."""
        if self.started:
            return
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self.started:
                return
            try:
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
                self._target = settings.host_target.get_secret_value()
                # What is asynchronous needs a task, and a stream may need a thread.
                self._hops = bool(self._target) and not (self.server.streams or self.executor.is_async)
                self._session = lambda: self.server.session
                self.target_headers: Headers = (("authorization", f"Bearer {token}"),) if token else ()
                if self.server.streams:
                    _ = self.server.session  # made before several threads ask for it
                await self.stores.open()
                await maybe_await(self.server.setup())
            except BaseException as error:
                self.start_error = self.printable(f"{type(error).__name__}: {error}")
                raise (error if isinstance(error, Exception) else tame(error)) from None
            self.started = True
            if self.settings.metrics and self.settings.metrics_directory:
                self._publish_again()

    async def stop(self) -> None:
        """Tear down the user's instance, and close what is open."""
        if not self.started:
            return
        self.started = False
        for session in tuple(self.sessions):
            session.stop()
        if self._publishing is not None:
            self._publishing.cancel()
            self._try_to_publish()
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

    async def serve(self, handler: Handler, exchange: Exchange, rest: Handler | None = None) -> None:
        """The way of one object: from its request to its answer. `rest`: what is left for `handler` to do, if not all.

        Raises:
            Exception: the answer broke off after its first byte; the transport is to cut the connection.
        """
        lease = Lease(self.admission.memory)
        answer: Answer | None = None
        outcome: Outcome = GONE
        failed = False
        try:
            try:
                answer = await (rest or handler)(exchange, lease)
            except ClientDisconnectedError:
                raise
            except Exception as error:
                failed = True
                answer = self.error_answer(error, exchange)
            if not exchange.send_whole(answer):
                await exchange.send(answer)
            outcome = answer.status
        except BaseException as error:
            if not failed:
                self._log_unanswered(error, exchange, begun=answer is not None)
            if isinstance(error, ClientDisconnectedError):
                if answer is None:
                    return
            elif isinstance(error, Exception):
                outcome = CUT
            raise
        finally:
            self._count(handler, exchange, outcome)
            lease.release()
            if answer is not None and not isinstance(answer.body, bytes):
                await answer.body.aclose()

    def _count(self, handler: Handler, exchange: Exchange, outcome: Outcome) -> None:
        """A request is finished. What is no object's does not count."""
        way = self._ways.get(handler)
        if way is not None:
            (self.counts.fqn if _FQN in exchange.query else way).answered(outcome)
            if self.access_log and isinstance(outcome, int) and outcome < 400:
                self.log_done(*_way_and_name(exchange), outcome, exchange.started)

    def push_now(self, exchange: Traveller) -> Now:
        """Begin on an object that is here in whole and whose transform has been taking microseconds, in one step.

        Before its answer, or its hop to the next stage, nothing is waited for, so that no memory has to be admitted,
        and nobody can go away meanwhile.
        """
        body = exchange.body
        if exchange.query or not body.ended or not self.executor.is_quick(body.size):
            return None
        name = decode_path(exchange.path)
        if not name:
            return None
        if not exchange.pipeline:
            return self.answer_now(name, body.take_whole(), self.counts.push, exchange)
        try:
            request = ObjectRequest.make(self.counts.push, name, "", exchange.pipeline)
            self._check_target(request)
            data = body.take_whole()
            content = self.transform_now(name, data, request.way)
        except ETLError as error:
            return self.error_answer(error, exchange)
        if type(content) is not bytes:
            return self._finish_later(request, len(data), content)
        self.counts.passed(len(data), len(content))
        delivery = Delivery(self, exchange, request, content)
        return delivery if delivery.begin() else delivery.resume(None)

    def pull_now(self, exchange: Traveller) -> Now:
        """Ask for the target's object without a coroutine, if a connection is at hand."""
        if exchange.query or exchange.pipeline or not exchange.body.ended or not self._hops:
            return None
        name = decode_path(exchange.path)
        if not name:
            return None
        pull = Pull(self, exchange, name)
        return pull if pull.begin() else None

    def answer_now(self, name: str, data: bytes, way: Way, exchange: Exchange) -> Answer | Handler:
        """The answer with a transformed object, or what is left to be done for it. See `Executor.is_quick`."""
        try:
            result = self.transform_now(name, data, way)
            if type(result) is not bytes:
                return self._finish_later(ObjectRequest(way, name), len(data), result)
            self.counts.passed(len(data), len(result))
            return Answer(200, result, self._mime_type())
        except ETLError as error:
            return self.error_answer(error, exchange)

    def transform_now(self, name: str, data: bytes, way: Way) -> object:
        """What the transform returns: bytes, or else what `finish` is to make them of. See `is_quick`.

        Raises:
            TransformError: it raised.
        """
        try:
            return self.executor.call(data, name, "", way.times)
        except Exception as error:
            raise transform_error(error) from error

    async def finish(self, size: int, result: object, way: Way) -> bytes:
        """The object that `transform_now` has begun to make of one of `size` bytes.

        Raises:
            TransformError: as `Executor.transform`.
        """
        content = await self.executor.finish(result, way)
        self.counts.passed(size, len(content))
        return content

    def _finish_later(self, request: ObjectRequest, size: int, result: object) -> Handler:
        async def finish(_: Exchange, lease: Lease) -> Answer:
            content = await self.finish(size, result, request.way)
            lease.add(len(content))
            return await self._hand_on(request, BytesSource(content), content)

        return finish

    def deliver_later(self, request: ObjectRequest, content: bytes, begun: Begun) -> Handler:
        """What delivers an object whose delivery may have begun."""

        async def deliver(_: Exchange, lease: Lease) -> Answer:
            lease.add(len(content))
            return await self._hand_on(request, BytesSource(content), content, begun)

        return deliver

    def pull_later(self, name: str, begun: Begun) -> Handler:
        """What answers a GET for an object that may have been asked for."""

        async def pull(_: Exchange, lease: Lease) -> Answer:
            source = self._target_source(self.target_url(name), lease, begun)
            return await self.process(ObjectRequest(self.counts.pull, name), source, lease)

        return pull

    # The requests of the protocol: each makes a request and its source

    async def health(self, _: Exchange, __: Lease) -> Answer:
        """GET /health: whether this process takes objects."""
        if self.admission.draining.is_set():
            return Answer(503, b"Draining", "text/plain")
        return Answer(200, b"Running", "text/plain")

    async def metrics(self, exchange: Exchange, _: Lease) -> Answer:
        """GET /metrics: what was counted, in all processes."""
        accept = next((value for name, value in exchange.headers if name.lower() == b"accept"), b"")
        # The library and, of many processes, the files take milliseconds.
        await asyncio.to_thread(lambda: self._families)
        self._publish(besides=1)
        body, content_type = await asyncio.to_thread(self._families.page, accept.decode("latin-1"))
        return Answer(200, body, content_type)

    @cached_property
    def _families(self) -> Families:
        from .metrics import Families

        return Families(type(self.server).__name__, self.settings.metrics_directory)

    def _publish(self, besides: int = 0) -> None:
        """Bring the metrics up to date. `besides`: requests in flight that are for no object."""
        admission, sessions = self.admission, self.sessions
        in_flight = admission.in_flight - besides - len(sessions) + sum(session.in_work for session in sessions)
        self._families.publish(self.counts, in_flight, admission.memory.used)

    def _publish_again(self) -> None:
        self._publishing = asyncio.get_running_loop().call_later(PUBLISH_INTERVAL, self._publish_again)
        self._try_to_publish()

    def _try_to_publish(self) -> None:
        """Bring the metrics up to date; that they cannot be is said once, and keeps nobody from serving."""
        try:
            self._publish()
        except Exception as error:
            if not self._unpublished:
                self._unpublished = True
                self.logger.error("/metrics cannot be brought up to date: %s", self.printable(repr(error)))

    async def push(self, exchange: Exchange, lease: Lease) -> Answer:
        """PUT: the object is the body, or a local file."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        request = self._request(self.counts.push, decode_path(exchange.path), query, exchange.pipeline)
        source = self._file(query, lease) if query else None
        if source is None:
            source = BodySource(exchange.body, exchange.content_length, self.settings.max_body, lease)
        return await self.process(request, source, lease)

    async def pull(self, exchange: Exchange, lease: Lease) -> Answer:
        """GET: the object is the target's, or a local file."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        name = decode_path(exchange.path)
        request = self._request(self.counts.pull, name, query, exchange.pipeline)
        source = self._file(query, lease) if query else None
        if source is None:
            latest = query.get(LATEST_VERSION)
            version = f"?{LATEST_VERSION}={quote_plus(latest)}" if latest is not None else ""
            source = self._target_source(self.target_url(name) + version, lease)
        return await self.process(request, source, lease)

    async def fetch(self, exchange: Exchange, lease: Lease) -> Answer:
        """GET and HEAD with a source: the object is that store's, or a local file. HEAD delivers nothing anywhere."""
        query = decode_query(exchange.query) if exchange.query else _NO_QUERY
        name = decode_path(exchange.path)
        request = self._request(self.counts.pull, name, query, exchange.pipeline if exchange.method == "GET" else "")
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
        request = self._request(self.counts.download, name, query, exchange.pipeline)
        return await self.process(request, source, lease)

    def file_source(self, fqn: str, lease: Lease) -> FileSource:
        """The object is a local file."""
        return FileSource(fqn, self.files, self.threads, self.settings.max_body, lease)

    # source -> execute -> deliver

    async def process(self, request: ObjectRequest, source: Source, lease: Lease) -> Answer:
        """Transform one object and see to it that it gets where it is to go.

        Raises:
            ETLError: what is to be answered instead.
        """
        self._check_target(request)
        content: bytes | BatchStream
        if self._streams or self._direct_fqn:
            content = await self._transform(request, source)
        else:
            # What `_transform` does, without the call: most objects come this way.
            data = source.read_now()
            if data is None:
                data = await source.read()
            content = await self.executor.transform(data, request.name, request.etl_args, request.way)
            self.counts.passed(len(data), len(content))
        if not isinstance(content, bytes):
            lease.add(STREAM_MEMORY)
        elif content is not source.whole:
            lease.add(len(content))
        return await self._hand_on(request, source, content)

    async def _hand_on(
        self, request: ObjectRequest, source: Source, content: bytes | BatchStream, begun: Begun = None
    ) -> Answer:
        """Answer with a transformed object, or deliver it. `begun`: what has come of delivering it."""
        if not request.stage:
            try:
                return Answer(200, content, self._mime_type())
            except TransformError:
                if not isinstance(content, bytes):
                    await content.aclose()
                raise
        result = "aborted"
        try:
            answer = await self._deliver(request, source, content, begun)
            result = "delivered" if answer.status == NO_CONTENT else "answered"
            return answer
        except UpstreamStatusError:
            result = "rejected"
            raise
        except (UpstreamUnreachableError, DeliveryFailedError, DeliveryInterruptedError):
            result = "unreachable"
            raise
        finally:
            self.counts.direct_puts[result] += 1

    async def _transform(self, request: ObjectRequest, source: Source) -> bytes | BatchStream:
        if self._streams:
            stream = self.executor.stream(source, request.name, request.etl_args)
            return await self.counts.stream(request.way, source, stream)
        data: bytes | str
        if self._direct_fqn and isinstance(source, FileSource):
            data = source.path()
        else:
            data = await source.read()
        content = await self.executor.transform(data, request.name, request.etl_args, request.way)
        self.counts.passed(source.length if isinstance(data, str) else len(data), len(content))
        return content

    def _mime_type(self) -> str:
        try:
            mime_type = self.server.get_mime_type()
            _ = mime_type.encode("latin-1")
        except BaseException as error:
            raise TransformError(f"get_mime_type(): {tame(error)}") from error
        return mime_type

    async def _deliver(
        self, request: ObjectRequest, source: Source, content: bytes | BatchStream, begun: Begun
    ) -> Answer:
        """Direct put, repeated where that can help; a stream is made anew for each try."""
        stage, rest, name, etl_args = request.stage, request.rest, request.name, request.etl_args
        try:
            if isinstance(begun, Response):
                return await self.deliverer.answer(begun, content)
            if begun is not None:
                raise begun
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
                    self.counts.retries += 1
                    again = content if isinstance(content, bytes) else await self._transform(request, source)
                    return await self.deliverer.put(stage, rest, name, etl_args, again)
        except UpstreamUnreachableError as error:
            if not _is_transient(error):
                raise
            raise DeliveryFailedError(f"Direct put failed after {retries} retries: {error}") from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _request(self, way: Way, name: str, query: dict[str, str], pipeline: str) -> ObjectRequest:
        if not name:
            raise BadRequestError("The path names no object")
        if query is _NO_QUERY and not pipeline:
            return ObjectRequest(way, name)
        if ETL_FQN in query:
            way = self.counts.fqn
        etl_args = query.get(ETL_ARGS, "")
        return ObjectRequest.make(way, name, etl_args, pipeline) if pipeline else ObjectRequest(way, name, etl_args)

    def _file(self, query: dict[str, str], lease: Lease) -> Source | None:
        fqn = query.get(ETL_FQN)
        return self.file_source(decode_fqn(fqn), lease) if fqn else None

    def _check_target(self, request: ObjectRequest) -> None:
        if request.stage and not self._target and has_path(request.stage):
            raise TargetNotConfiguredError("AIS_TARGET_URL is not set: direct put to a target needs it")

    def target_url(self, name: str) -> str:
        """Where the target has an object."""
        return f"{self._target}/{encode_uname(name)}"

    def _target_source(self, url: str, lease: Lease, begun: Begun = None) -> Source:
        if not self._target:
            raise TargetNotConfiguredError("AIS_TARGET_URL is not set: reading objects of the target needs it")
        return TargetSource(
            url,
            self.target_headers,
            self.outbound,
            self._session,
            self.threads,
            self.settings.io_timeout,
            self.settings.max_body,
            lease,
            begun,
        )

    def error_answer(self, error: Exception, exchange: Exchange) -> Answer:
        """The answer to a request that failed, without a secret in it; the failure is logged."""
        self._log_exchange(error, exchange)
        if not isinstance(error, ETLError):
            return Answer(500, error_body(INTERNAL), "application/json")
        body = error.body()
        for secret in self.settings.secrets():
            body = body.replace(secret.encode(), REDACTED.encode())
        return Answer(error.status, body, error.content_type, error.headers())

    def log_lost(self, exchange: Exchange) -> None:
        """Log a request whose client went away."""
        self._log_exchange(ClientDisconnectedError(exchange.gone or "The client went away"), exchange)

    def _log_unanswered(self, error: BaseException, exchange: Exchange, *, begun: bool) -> None:
        """Log why an answer did not come to its end."""
        if isinstance(error, ClientDisconnectedError) or exchange.gone:
            self.log_lost(exchange)
        elif isinstance(error, Exception):
            self._log_exchange(error, exchange, "cut, because the answer broke off: " if begun else "")
        else:
            self._log_exchange(ServerEndedError(), exchange, "cut: ")

    def _log_exchange(self, error: Exception, exchange: Exchange, what: str = "") -> None:
        way, name = _way_and_name(exchange)
        self.log_failure(error, way, name, exchange.started, what)

    def log_failure(self, error: Exception, way: str, name: str, started: float, what: str = "") -> None:
        """One line for an object that failed; with a traceback, where the user's code or ours raised.

        `started`: when its request came (`time.monotonic()`). `what`: goes before the reason.
        """
        raised: BaseException | None = error
        status, detail = 500, INTERNAL
        if isinstance(error, ETLError):
            status, detail = error.status, self.told(error)
            raised = error.__cause__ if isinstance(error, TransformError) else None
        traceback_text = self.printable("".join(traceback.format_exception(raised))) if raised else ""
        failure = Finished(way, self.printable(name), status, _ms_since(started), what + detail, traceback_text)
        # Redacted here and not by the log's formatter, which under another ASGI server is not ours.
        self.logger.warning("%s", failure, extra={"finished": failure})

    def log_done(self, way: str, name: str, status: int, started: float) -> None:
        """One line for an object that is done; one that failed has had its own. See `log_failure`."""
        done = Finished(way, self.printable(name), status, _ms_since(started))
        logging.getLogger(ACCESS).info("%s", done, extra={"finished": done})

    def told(self, error: ETLError) -> str:
        """What an error says, fit to be shown: not long, and without any secret."""
        return self.printable(error.detail)[:LONGEST_DETAIL]

    def printable(self, text: str) -> str:
        """`text` without any secret, and without the surrogates of names that are no UTF-8."""
        return printable(self.settings.redact(text))


def _way_and_name(exchange: Exchange) -> tuple[str, str]:
    """How an object came, and what it is called, for the log."""
    path, query = exchange.path, exchange.query
    if path == DOWNLOAD:
        return "download", decode_query(query).get("object_to", "")
    way = "fqn" if _FQN in query else {"PUT": "push", "GET": "pull", "HEAD": "pull"}.get(exchange.method)
    return way or exchange.method.lower(), decode_path(path)


def _ms_since(moment: float) -> int:
    return max(0, round((time.monotonic() - moment) * 1000))


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, UpstreamUnreachableError) and not isinstance(error, UpstreamRefusedError)


def already(answer: Answer) -> Handler:
    """What "answers" a request whose answer is there."""

    async def handle(_: Exchange, lease: Lease) -> Answer:
        if isinstance(answer.body, bytes):
            lease.add(len(answer.body))
        return answer

    return handle
