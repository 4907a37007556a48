"""Objects of S3 that are made in parts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .multipart import SentPart, completion, is_made_of, page_after, sent_part, uploads_to
from .retry import RetryPolicy
from .routers import S3Pointer
from .s3_calls import S3Calls, uri_of
from .s3_errors import UploadNotThereError, was_refused, was_retried

logger = logging.getLogger(__name__)


class MultipartUpload:
    """An object in the making. Unless it is complete, or was never begun, `take_back` is to be called at the end."""

    def __init__(self, calls: S3Calls, pointer: S3Pointer, policy: RetryPolicy, *, alone: bool) -> None:
        """
        Args:
            calls: makes the requests.
            pointer: the object.
            policy: how often and how long it is tried to take something back.
            alone: whether nobody else uploads to this key.
        """
        self._calls = calls
        self._pointer = pointer
        self._policy = policy
        self._alone = alone
        self._id = ""
        self._parts: list[SentPart] = []
        self._lost = False
        """Whether there may be an upload that the server never told us of: its answer was lost."""

    async def create(self, **properties: Any) -> None:
        """Begin."""
        self._lost = True
        try:
            await self._calls.ask("create_multipart_upload", self._pointer, self._created, **properties)
        except Exception as error:
            self._lost = not was_refused(error)
            raise

    def _created(self, answer: Any) -> None:
        self._id = answer["UploadId"]
        self._lost = was_retried(answer)

    async def add(self, body: bytes) -> None:
        """Send the next part."""
        self._add(await self._ask("upload_part", PartNumber=len(self._parts) + 1, Body=body), len(body))

    async def add_copy(self, source: S3Pointer, start: int, stop: int) -> None:
        """Make the bytes `start` to `stop` (not included) of another object the next part."""
        answer = await self._ask(
            "upload_part_copy",
            PartNumber=len(self._parts) + 1,
            CopySource={"Bucket": source["bucket"], "Key": source["key"]},
            CopySourceRange=f"bytes={start}-{stop - 1}",
        )
        self._add(answer.get("CopyPartResult", {}), stop - start)

    def _add(self, answer: Any, size: int) -> None:
        self._parts.append(sent_part(uri_of(self._pointer), size, answer))

    async def complete(self) -> None:
        """Make the parts an object."""
        try:
            await self._ask("complete_multipart_upload", MultipartUpload=completion(self._parts))
        except UploadNotThereError:
            # The client may have tried before, been obeyed, and lost the answer.
            if not await self._is_there():
                raise
        self._id = ""

    async def _is_there(self) -> bool:
        """Whether there is an object made of these very parts."""
        try:
            found = await self._calls.ask("head_object", self._pointer)
        except (FileNotFoundError, PermissionError):
            return False
        return is_made_of(self._parts, found["ContentLength"], found.get("ETag"))

    async def take_back(self) -> None:
        """Leave no upload behind, whatever has become of it. What cannot be removed is logged."""
        if self._id:
            await self._try("abort a multipart upload", lambda: self._abort(self._id))
        if self._lost:
            await self._try("abort the multipart uploads", self._abort_lost)

    async def _abort(self, upload: str) -> None:
        try:
            await self._calls.ask("abort_multipart_upload", self._pointer, UploadId=upload)
        except (FileNotFoundError, UploadNotThereError):
            pass

    async def _abort_lost(self) -> None:
        """Abort the uploads to this key, but for those that may be of others: they have parts."""
        marker: dict[str, Any] = {}
        while True:
            try:
                page = await self._calls.ask(
                    "list_multipart_uploads", self._pointer, Prefix=self._pointer["key"], **marker
                )
            except UploadNotThereError:  # the answer of some servers that have none
                return
            for upload in uploads_to(self._pointer["key"], page):
                if self._alone or await self._is_empty(upload):
                    await self._abort(upload)
            marker = page_after(page)
            if not marker:
                return

    async def _is_empty(self, upload: str) -> bool:
        try:
            answer = await self._calls.ask("list_parts", self._pointer, UploadId=upload, MaxParts=1)
        except UploadNotThereError:
            return False
        return not answer.get("Parts")

    async def _ask(self, operation: str, **params: Any) -> Any:
        return await self._calls.ask(operation, self._pointer, UploadId=self._id, **params)

    async def _try(self, what: str, function: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._policy.call_async(function)
        except Exception as error:
            logger.warning("Could not %s: %s", what, error)
