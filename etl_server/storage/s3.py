"""A bucket of S3, or of what speaks its protocol, as an object store."""

from __future__ import annotations

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast

import boto3
from botocore.config import Config

from ..errors import ObjectStoreError
from ..wire.names import encode_object_path
from .base import COPY_SIZE, Callback, ObjectInfo, ObjectStore, Owner, Progress, check_name, check_range, checked_prefix
from .files import FileSlice, IncomingFile, unreadable_told
from .multipart import (
    PART_SIZE,
    SentPart,
    completion,
    cut,
    growing_size_at,
    is_made_of,
    page_after,
    part_size_of,
    sent_part,
    uploads_to,
)
from .reading import ResumingReader, answered_stop, empty_reader, open_range, range_header
from .redirects import follow_redirects
from .retry import RetryPolicy
from .s3_config import S3Options
from .s3_errors import RangeNotThereError, UploadNotThereError, translated, was_refused, was_retried
from .uploads import UploadJournal

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_STREAM_WINDOW = 4
"""Parts of a stream that are sent at once."""
_THREADS = 8
_CONNECTIONS = 64

logger = logging.getLogger(__name__)


class S3ObjectStore(ObjectStore):
    """The objects of a bucket whose keys begin with a prefix, over boto3.

    Large objects go in parts, several at a time. Where the answer to the beginning of an upload is lost, the uploads to
    its key that have no parts are aborted in the end: that one is among them.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region_name: str | None = None,
        profile_name: str | None = None,
        addressing_style: str | None = None,
        client: S3Client | None = None,
        part_size: int = PART_SIZE,
        policy: RetryPolicy | None = None,
    ) -> None:
        """
        Args:
            bucket: the bucket.
            prefix: what the keys begin with; a slash is added to it where it has none at its end.
            endpoint_url: URL of the server; default: what boto3 finds in its environment and files.
            region_name: the region; default as above.
            profile_name: the profile in boto3's files that has the credentials; default as above.
            addressing_style: `path`, `virtual` or `auto`; default: `path` where there is an `endpoint_url`.
            client: a boto3 client to be used in place of all that. It is not closed. It is used as it is: it repeats
                requests itself, within each try of `policy`, unless its `Config` has
                `retries={"total_max_attempts": 1}`, and takes redirects for errors unless given to `follow_redirects`.
            part_size: bytes of a part of a large object; S3 wants at least 5 MiB.
            policy: how often and how long requests are repeated.

        Raises:
            ValueError: a number is out of its bounds, or the name of the bucket cannot be one.
            botocore.exceptions.BotoCoreError: the other arguments make no client.
        """
        if part_size < 1:
            raise ValueError(f"part_size={part_size}: expected at least 1 byte")
        self._bucket = bucket
        self._prefix = checked_prefix(bucket, prefix)
        self._owns_client = client is None
        options = S3Options(endpoint_url, region_name, profile_name, addressing_style)
        self._client: S3Client = client or _client(options)
        self._part_size = part_size
        self._policy = policy or RetryPolicy()
        self._threads = ThreadPoolExecutor(_THREADS, "s3")
        self._journal: UploadJournal | None = None

    def get_uri(self, object_name: str) -> str:
        check_name(object_name)
        return f"s3://{self._bucket}/{encode_object_path(self._prefix + object_name)}"

    def stat_object(self, object_name: str) -> ObjectInfo:
        check_name(object_name)
        answer = self._ask(object_name, lambda key: self._client.head_object(Bucket=self._bucket, Key=key))
        return ObjectInfo(
            object_name, answer["ContentLength"], _etag(answer.get("ETag")), _modified(answer.get("LastModified"))
        )

    def upload_object(self, object_name: str, filename: str | Path, callback: Callback | None = None) -> None:
        check_name(object_name)
        with Path(filename).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            progress = Progress(callback, size)
            if size <= self._part_size:
                self._put(object_name, FileSlice(file, 0, size), size, None)
                if size:
                    progress.add(size)
                return
            part_size = part_size_of(size, self._part_size)
            bounds = ((start, min(start + part_size, size)) for start in range(0, size, part_size))
            parts = (_Part(FileSlice(file, start, stop), stop - start) for start, stop in bounds)
            self._put_parts(object_name, parts, size, None, progress, _THREADS)

    def _download(self, object_name: str, incoming: IncomingFile, callback: Callback | None) -> None:
        info = self.stat_object(object_name)
        progress = Progress(callback, info.size)

        def fetch(start: int) -> None:
            stop = min(start + self._part_size, info.size)
            with self._open(object_name, start, stop, info.etag) as part:
                while piece := part.read(COPY_SIZE):
                    incoming.write_at(start, piece)
                    start += len(piece)
                    progress.add(len(piece))
            if start != stop:
                raise ObjectStoreError(f"{self.get_uri(object_name)} was replaced while it was read")

        if info.size <= self._part_size:
            fetch(0)
        else:
            self._in_parallel((partial(fetch, start) for start in range(0, info.size, self._part_size)), _THREADS)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        token = ""
        while True:
            more = {"ContinuationToken": token} if token else {}
            page = self._ask(
                prefix,
                lambda key, more=more: self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, **more),  # type: ignore[misc]
            )
            if page.keys().isdisjoint(("Name", "IsTruncated", "Contents")):  # XML of something else, a page perhaps
                raise ObjectStoreError(f"s3://{self._bucket}: the answer is no list of objects")
            for entry in page.get("Contents", ()):
                if name := entry["Key"].removeprefix(self._prefix):
                    yield ObjectInfo(
                        name, entry["Size"], _etag(entry.get("ETag")), _modified(entry.get("LastModified"))
                    )
            if not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken", "")
            if following in ("", token):
                raise ObjectStoreError(f"s3://{self._bucket}: a list that is not at its end does not go on")
            token = following

    def open_object(self, object_name: str, start: int = 0, stop: int | None = None) -> BinaryIO:
        check_range(start, stop)
        return io.BufferedReader(self._open(object_name, start, stop, None), COPY_SIZE)

    def put_object(
        self, object_name: str, data: bytes | Iterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        """Of an iterable, a few parts are in memory at once; a small one is sent as a whole."""
        check_name(object_name)
        if isinstance(data, (bytes, bytearray, memoryview)):
            parts = self._slices(memoryview(data).cast("B"))
        else:
            parts = cut(data, self._part_size)
        head = [*islice(parts, 2)]
        if len(head) < 2:
            whole = head[0] if head else b""
            return self._put(object_name, whole, len(whole), content_type)
        sized = (_Part(part, len(part)) for part in chain(_emptied(head), parts))
        return self._put_parts(object_name, sized, None, content_type, Progress(None, 1), _STREAM_WINDOW)

    def _slices(self, data: memoryview) -> Iterator[bytes]:
        part_size = part_size_of(len(data), self._part_size)
        return (bytes(data[start : start + part_size]) for start in range(0, len(data), part_size))

    def stream_memory(self, size: int | None = None) -> int:
        """Parts that are sent, the next one, and what that is made of. Their size grows: see `growing_sizes`."""
        most = (_STREAM_WINDOW + 2) * growing_size_at(size or 0, self._part_size)
        return most if size is None else min(most, 2 * size)

    def delete_object(self, object_name: str) -> None:
        check_name(object_name)
        try:
            self._ask(object_name, lambda key: self._client.delete_object(Bucket=self._bucket, Key=key))
        except FileNotFoundError as error:
            if error.filename != self.get_uri(object_name):
                raise

    def claim(self, owner: Owner) -> None:
        self._journal = UploadJournal(owner.journal)

    def clean(self, owner: Owner) -> None:
        journal = UploadJournal(owner.journal)
        for key, upload in journal.open_uploads():
            self._end(key.removeprefix(self._prefix), upload)
        journal.remove()

    def close(self) -> None:
        """Close the connections and end the threads."""
        self._threads.shutdown()
        if self._owns_client:
            self._client.close()

    # Writing

    def _put(self, object_name: str, body: bytes | FileSlice, size: int, content_type: str | None) -> ObjectInfo:
        def put(key: str) -> ObjectInfo:
            answer = self._client.put_object(
                Bucket=self._bucket, Key=key, Body=_rewound(body), **_content_type(content_type)
            )
            return ObjectInfo(object_name, size, _etag(answer.get("ETag")), None)

        stored = self._ask(object_name, put, body)
        # AIStore may tell none, and so does what is no S3 and answers everything with a page.
        if stored.etag is None and self.get_object_size(object_name) != size:
            raise ObjectStoreError(f"{self.get_uri(object_name)}: the server acknowledged it without storing it")
        return stored

    def _put_parts(
        self,
        object_name: str,
        parts: Iterable[_Part],
        size: int | None,
        content_type: str | None,
        progress: Progress,
        at_once: int,
    ) -> ObjectInfo:
        upload, lost = self._begin(object_name, content_type)

        def send(number: int, part: _Part) -> SentPart:
            answer = self._ask(
                object_name,
                lambda key: self._client.upload_part(
                    Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=_rewound(part.body)
                ),
                part.body,
            )
            progress.add(part.size)
            return sent_part(self.get_uri(object_name), part.size, answer)

        try:
            if self._journal is not None:
                self._journal.begun(self._prefix + object_name, upload)
            sent = self._in_parallel((partial(send, number, part) for number, part in enumerate(parts, 1)), at_once)
            stored = self._complete(object_name, upload, sent)
        except BaseException:
            self._abort(object_name, upload)
            raise
        finally:
            if lost:
                self._abort_lost(object_name)
        if self._journal is not None:
            self._journal.ended(upload)
        return stored

    def _begin(self, object_name: str, content_type: str | None) -> tuple[str, bool]:
        """The id of a new upload, and whether there may be others, since an answer was lost."""
        tries = 0

        def create(key: str) -> Any:
            nonlocal tries
            tries += 1
            return self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **_content_type(content_type))

        try:
            answer = self._ask(object_name, create)
        except BaseException as error:
            if tries > 1 or not was_refused(error):
                self._abort_lost(object_name)
            raise
        return answer["UploadId"], tries > 1 or was_retried(cast("Any", answer))

    def _complete(self, object_name: str, upload: str, sent: Sequence[SentPart]) -> ObjectInfo:
        """Make the parts an object."""
        try:
            answer = self._ask(
                object_name,
                lambda key: self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload=completion(sent)
                ),
            )
        except UploadNotThereError:
            # A try before may have been obeyed and its answer lost: then the object is there, made of these very parts.
            stored = self._stat_if_there(object_name)
            if stored is None or not is_made_of(sent, stored.size, stored.etag):
                raise
            return stored
        return ObjectInfo(object_name, sum(part.size for part in sent), _etag(answer.get("ETag")), None)

    def _stat_if_there(self, object_name: str) -> ObjectInfo | None:
        try:
            return self.stat_object(object_name)
        except (FileNotFoundError, PermissionError):
            return None

    def _abort(self, object_name: str, upload: str) -> None:
        try:
            self._end(object_name, upload)
            if self._journal is not None:
                self._journal.ended(upload)
        except Exception as error:
            logger.warning("%s: upload %s could not be aborted: %s", self.get_uri(object_name), upload, error)

    def _abort_lost(self, object_name: str) -> None:
        """Abort the uploads to this key that have no parts. What cannot be removed is logged."""
        try:
            for upload in self._ask(object_name, self._empty_uploads):
                self._end(object_name, upload)
        except Exception as error:
            logger.warning("%s: uploads could not be aborted: %s", self.get_uri(object_name), error)

    def _empty_uploads(self, key: str) -> list[str]:
        missing = self._client.exceptions.NoSuchUpload  # also the answer of some servers that have none
        uploads: list[str] = []
        marker: dict[str, Any] = {}
        try:
            while page := self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key, **marker):
                uploads += uploads_to(key, page)
                marker = page_after(page)
                if not marker:
                    break
        except missing:
            return []
        empty = []
        for upload in uploads:
            try:
                parts = self._client.list_parts(Bucket=self._bucket, Key=key, UploadId=upload, MaxParts=1)
            except missing:
                continue
            if not parts.get("Parts"):
                empty.append(upload)
        return empty

    def _end(self, object_name: str, upload: str) -> None:
        """Abort an upload, unless it has ended."""
        try:
            self._ask(
                object_name,
                lambda key: self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload),
            )
        except (FileNotFoundError, UploadNotThereError):
            pass

    # Reading

    def _open(self, object_name: str, start: int, stop: int | None, etag: str | None) -> ResumingReader:
        """A stream of a range; `etag`: that of the object that is meant, where it is known."""
        if stop is not None and stop <= start:
            self.stat_object(object_name)
            return empty_reader(start, self._policy)
        return open_range(partial(self._get, object_name), self.get_uri(object_name), start, stop, etag, self._policy)

    def _get(self, object_name: str, start: int, stop: int | None) -> _S3Body | None:
        """The object from a byte on, asked for once; None where it ends before."""
        uri = self.get_uri(object_name)
        wanted: Any = range_header(start, stop)
        try:
            with translated(uri):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + object_name, **wanted)
        except RangeNotThereError:
            return None
        body = _S3Body(uri, answer["Body"], _etag(answer.get("ETag")))
        try:
            body.stop = answered_stop(uri, start, stop, answer.get("ContentRange", ""), answer["ContentLength"])
        except ObjectStoreError:
            body.close()
            raise
        return body

    # Asking

    def _ask(self, object_name: str, request: Callable[[str], T], body: bytes | FileSlice = b"") -> T:
        """Make a request of the object's key, which sends `body`, and again if need be."""
        key = self._prefix + object_name
        uri = f"s3://{self._bucket}/{encode_object_path(key)}"

        def once() -> T:
            with unreadable_told(body), translated(uri):
                return request(key)

        return self._policy.call(once)

    def _in_parallel(self, tasks: Iterable[Callable[[], T]], at_once: int) -> list[T]:
        """What the tasks return, in their order, which are taken as there is room. None runs on when one has failed."""
        running: deque[Future[T]] = deque()
        results: list[T] = []
        try:
            for task in tasks:
                if len(running) >= at_once:
                    results.append(running[0].result())
                    running.popleft()
                running.append(self._threads.submit(task))
            while running:
                results.append(running[0].result())
                running.popleft()
        except BaseException:
            for future in running:
                future.cancel()
            wait(running)
            raise
        return results


class _Part(NamedTuple):
    body: bytes | FileSlice
    size: int


class _S3Body:
    """The body of a GetObject."""

    def __init__(self, uri: str, stream: Any, etag: str | None) -> None:
        self._uri = uri
        self._stream = stream
        self.etag = etag
        self.stop = 0

    def read(self, size: int) -> bytes:
        with translated(self._uri):
            data: bytes = self._stream.read(size)
            return data

    def close(self) -> None:
        self._stream.close()


def _emptied(parts: list[bytes]) -> Iterator[bytes]:
    """Parts that nobody else keeps in memory."""
    while parts:
        yield parts.pop(0)


def _client(options: S3Options) -> S3Client:
    """A client that follows redirects and leaves retries to `RetryPolicy`."""
    session = boto3.Session(region_name=options.region_name, profile_name=options.profile_name)
    config = Config(**options.config(_CONNECTIONS))
    return follow_redirects(session.client("s3", endpoint_url=options.endpoint_url, config=config))


def _rewound(body: bytes | FileSlice) -> Any:
    if isinstance(body, FileSlice):
        body.seek(0)
    return body


def _content_type(content_type: str | None) -> dict[str, Any]:
    return {"ContentType": content_type} if content_type else {}


def _etag(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


def _modified(modified: datetime | None) -> datetime | None:
    return modified.astimezone(timezone.utc) if modified else None
