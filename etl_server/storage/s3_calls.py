"""Calls of an S3 client, of boto3 or aiobotocore, from an event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CancelScope, CapacityLimiter

from ..awaiting import maybe_await
from ..wire.names import encode_object_path
from .routers import S3Pointer
from .s3_errors import translated

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Wait for some work to its end, however the task is cancelled meanwhile; that is raised then.

    A shield of anyio's keeps out what anyio cancels, but no `asyncio.Task.cancel()`.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as lost
        raise cancelled
    return task.result()


class S3Calls:
    """Calls a client, so many times at once: a blocking one in threads, an asynchronous one on the loop."""

    def __init__(self, client: Any, limit: int, *, writes: bool) -> None:
        """
        Args:
            client: of boto3 or aiobotocore.
            limit: calls at once; others wait.
            writes: whether a call changes something. Such a call, and one in a thread, is waited for when the task is
                cancelled, so that what it did can be undone.
        """
        self._client = client
        self._limiter = CapacityLimiter(limit)
        self._blocks = not _is_asynchronous(client)
        self._finishes = self._blocks or writes

    async def ask(
        self, operation: str, pointer: S3Pointer, keep: Callable[[Any], object] = lambda answer: None, **params: Any
    ) -> Any:
        """The answer to an operation on an object.

        Args:
            operation: the method of the client.
            pointer: the object.
            keep: given the answer, also where the task was cancelled meanwhile.
            params: the operation's other parameters.

        Raises:
            FileNotFoundError, PermissionError, ObjectStoreTransientError, ObjectStoreError: as of an `ObjectStore`.
        """
        method = partial(getattr(self._client, operation), Bucket=pointer["bucket"], **params)
        return await self.run(
            method if operation in _OF_BUCKETS else partial(method, Key=pointer["key"]), pointer, keep
        )

    async def run(
        self, call: Callable[[], Any], pointer: S3Pointer, keep: Callable[[Any], object] = lambda answer: None
    ) -> Any:
        """The same of a call of something that the client made."""
        async with self._limiter:
            work = self._run(call, pointer, keep)
            return await (finish(work) if self._finishes else work)

    async def _run(self, call: Callable[[], Any], pointer: S3Pointer, keep: Callable[[Any], object]) -> Any:
        with translated(uri_of(pointer)):
            # A limiter of its own: this call has been let in already.
            result = await anyio.to_thread.run_sync(call, limiter=CapacityLimiter(1)) if self._blocks else call()
            answer = await maybe_await(result)
        keep(answer)
        return answer


_OF_BUCKETS = frozenset(("list_multipart_uploads",))


def uri_of(pointer: S3Pointer) -> str:
    """`s3://bucket/key`, percent-encoded."""
    return f"s3://{pointer['bucket']}/{encode_object_path(pointer['key'])}"


def _is_asynchronous(client: Any) -> bool:
    """Whether this is a client of aiobotocore's. Any other is called in a thread, and what it returns looked at."""
    module = sys.modules.get("aiobotocore.client")
    return module is not None and isinstance(client, module.AioBaseClient)
