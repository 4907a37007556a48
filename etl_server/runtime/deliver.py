"""Direct put: send a transformed object to the next stage of its pipeline, and make an answer of what that says."""

from __future__ import annotations

from ..config import Settings
from ..errors import RETRY_REASON_HEADER, UpstreamUnreachableError
from ..wire.checksum import CHECKSUM_TYPE_HEADER, CHECKSUM_VALUE_HEADER, ChecksumType, checksum_of
from ..wire.pipeline import compose_etl_direct_put_url, has_path
from .clients import ERROR_BODY_LIMIT, upstream_error
from .exchange import DIRECT_PUT_LENGTH_HEADER, NO_CONTENT, OK, PIPELINE_HEADER, Answer
from .flow import Batch, BatchStream
from .outbound import Outbound, PendingRequest, Response, Taker
from .threads import WorkerThreads

QUICK = 64 * 1024
"""Bytes whose checksum takes no longer than going to a thread for it."""


class Deliverer:
    """Puts objects to next stages."""

    def __init__(self, settings: Settings, outbound: Outbound, threads: WorkerThreads) -> None:
        self._outbound = outbound
        self._threads = threads
        self._host_target = settings.host_target.get_secret_value()
        self._token = settings.authn_token.get_secret_value()
        self._checksum = settings.checksum

    async def put(self, stage: str, rest: str, name: str, etl_args: str, content: bytes | BatchStream) -> Answer:
        """PUT an object to `stage`, with the `rest` of the pipeline; once.

        Raises:
            UpstreamRefusedError: the stage refused the connection.
            UpstreamUnreachableError: the connection was lost, stalled, or is not HTTP.
            UpstreamStatusError: the stage answered with an error.
        """
        relayed = False
        try:
            url = compose_etl_direct_put_url(stage, self._host_target, name, etl_args)
            headers = self._headers(stage, rest)
            if self._checksum is not None and isinstance(content, bytes):
                headers += await self._checksum_headers(self._checksum, content)
            response = await self._outbound.request("PUT", url, headers, content)
            answer = await self.answer(response, content)
            relayed = isinstance(answer.body, _Relay)
            return answer
        finally:
            if not relayed and not isinstance(content, bytes):
                await content.aclose()

    def put_now(
        self, stage: str, rest: str, name: str, etl_args: str, content: bytes, taker: Taker
    ) -> PendingRequest | None:
        """The same without a coroutine, if a connection is at hand, up to the stage's answer; see `request_now`."""
        if self._checksum is not None:
            return None
        url = compose_etl_direct_put_url(stage, self._host_target, name, etl_args)
        return self._outbound.request_now("PUT", url, self._headers(stage, rest), content, taker)

    def _headers(self, stage: str, rest: str) -> list[tuple[str, str]]:
        headers: list[tuple[str, str]] = []
        if rest:
            headers.append((PIPELINE_HEADER, rest))
        if self._token and has_path(stage):
            headers.append(("authorization", f"Bearer {self._token}"))
        return headers

    async def _checksum_headers(self, kind: ChecksumType, content: bytes) -> list[tuple[str, str]]:
        if len(content) <= QUICK:
            value = checksum_of(kind, content)
        else:
            value = await self._threads.run(checksum_of, kind, content)
        return [(CHECKSUM_TYPE_HEADER, kind), (CHECKSUM_VALUE_HEADER, value)]

    async def answer(self, response: Response, content: bytes | BatchStream) -> Answer:
        """What to say of what the stage said of the `content`.

        Raises:
            UpstreamUnreachableError: the connection was lost.
            UpstreamStatusError: the stage answered with an error.
        """
        try:
            answer = acknowledged(response)
            if answer is not None:
                return answer
            if response.status >= 300:
                raise upstream_error(
                    response.status,
                    await response.read_start(ERROR_BODY_LIMIT),
                    response.headers.get("content-type", ""),
                    response.headers.get(RETRY_REASON_HEADER, ""),
                )
            if response.length == 0:
                raise UpstreamUnreachableError("the next stage acknowledged an object before it was sent to its end")
            first = await response.receive()
        except BaseException:
            response.close()
            raise
        content_type = response.headers.get("content-type", "")
        if not first:
            response.close()
            return Answer(OK, b"", content_type)
        return Answer(OK, _Relay(response, first, content), content_type, length=response.length)


def acknowledged(response: Response) -> Answer | None:
    """What to say of an object that the stage has taken and says nothing more about, which closes the response."""
    if response.status == NO_CONTENT:
        length = response.headers.get(DIRECT_PUT_LENGTH_HEADER)
    elif response.status < 300 and response.length == 0 and response.sent is not None:
        length = str(response.sent)
    else:
        return None
    response.close()
    return Answer(NO_CONTENT, headers=() if length is None else ((DIRECT_PUT_LENGTH_HEADER, length),))


class _Relay(BatchStream):
    """What the next stage answers, passed on as it comes; it may still be taking the object meanwhile."""

    def __init__(self, response: Response, first: Batch, content: bytes | BatchStream) -> None:
        self._response = response
        self._first: Batch | None = first
        self._content = content

    async def __anext__(self) -> Batch:
        batch, self._first = self._first, None
        if batch is None:
            batch = await self._response.receive()
        if not batch:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        self._response.close()
        if not isinstance(self._content, bytes):
            await self._content.aclose()
