"""A bucket of AIStore as an object store, over AIStore's own HTTP API.

A gateway answers a request for an object with a redirect to the target that has it.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlencode, urlsplit

import requests
import requests.auth
import requests.exceptions
import urllib3.exceptions

from ..config import Settings
from ..errors import ConfigError, ObjectStoreError, ObjectStoreTransientError, RedirectError
from ..runtime.clients import CONNECT_TIMEOUT, ERROR_BODY_LIMIT, plain_session
from ..wire.checksum import CHECKSUM_VALUE_HEADER
from ..wire.names import encode_object_path
from ..wire.redirects import MAX_REDIRECTS, REDIRECTS, leaves_https, redirected, shown
from .base import COPY_SIZE, Callback, ObjectInfo, ObjectStore, Progress, check_name, check_range, checked_prefix
from .files import FileSlice, unreadable_told
from .reading import answered_stop, empty_reader, open_range, range_header
from .retry import RetryPolicy

Source = IO[bytes] | io.RawIOBase
"""A body that can be rewound."""

_SMALL = 64 << 10
"""Bytes of an object that are sent to a gateway, which does not want them. It reads so many before it closes."""
_IN_MEMORY = 8 << 20
"""Bytes of a stream that are kept in memory before it goes to a temporary file."""
_PROPS = "name,size,checksum,version,last-modified,etag"
_LISTED_PROPS = "name,size,checksum,version"


class AISObjectStore(ObjectStore):
    """The objects of a bucket of AIStore whose names begin with a prefix.

    AIStore tells no time of a change when it lists. What tells contents apart (`etag`) is the checksum, or the version
    where the bucket has no checksums; with neither, AIStore has nothing that changes with the content but its size, and
    a read that is cut may go on in another object of the same size. A stream is written to a temporary file first, so
    that it can be sent to the target that the gateway names, and again if need be.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        provider: str = "ais",
        settings: Settings | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """
        Args:
            bucket: the bucket.
            prefix: what the names begin with; a slash is added to it where it has none at its end.
            endpoint: URL of a gateway; default: `AIS_ENDPOINT`.
            provider: where the bucket is: `ais`, or a cloud behind the cluster.
            settings: token and TLS; default: those of the environment.
            policy: how often and how long requests are repeated.

        Raises:
            ConfigError: there is no endpoint, or it is no URL.
            ValueError: the name of the bucket cannot be one.
        """
        self._prefix = checked_prefix(bucket, prefix)
        settings = settings or Settings.load()
        self._endpoint = (endpoint or settings.ais_endpoint).rstrip("/")
        parts = urlsplit(self._endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint={self._endpoint}: expected the URL of a gateway, or AIS_ENDPOINT with it")
        self._bucket = bucket
        self._provider = provider
        self._token = settings.authn_token.get_secret_value()
        self._timeout = (CONNECT_TIMEOUT, settings.io_timeout)
        self._session = plain_session(settings)
        self._policy = policy or RetryPolicy()

    def get_uri(self, object_name: str) -> str:
        self._check(object_name)
        return self._uri(object_name)

    def stat_object(self, object_name: str) -> ObjectInfo:
        self._check(object_name)
        return self._policy.call(lambda: self._stat(object_name))

    def _stat(self, object_name: str) -> ObjectInfo:
        """The same, asked for once."""
        with self._send("HEAD", object_name, query={"props": _PROPS}) as answer:
            size = _length(answer)
            if size is None:
                raise ObjectStoreError(f"{self._uri(object_name)}: the answer does not tell its size")
            modified = answer.headers.get("last-modified")
            return ObjectInfo(
                object_name, size, _etag(answer.headers), parsedate_to_datetime(modified) if modified else None
            )

    def upload_object(self, object_name: str, filename: str | Path, callback: Callback | None = None) -> None:
        self._check(object_name)
        with Path(filename).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._put(object_name, _WatchedFile(file, size, Progress(callback, size)), size, None)

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        wanted = {"prefix": self._prefix + prefix, "props": _LISTED_PROPS, "uuid": "", "continuation_token": ""}
        while True:
            page = self._policy.call(partial(self._page, dict(wanted)))
            for entry in page.get("entries") or ():
                if name := entry["name"].removeprefix(self._prefix):
                    etag = entry.get("checksum") or entry.get("version") or None
                    yield ObjectInfo(name, int(entry.get("size", 0)), etag, None)
            token = page.get("continuation_token", "")
            if not token:
                return
            if token == wanted["continuation_token"]:
                raise ObjectStoreError(f"ais://{self._bucket}: a list that is not at its end does not go on")
            wanted |= {"continuation_token": token, "uuid": page.get("uuid", "")}

    def open_object(self, object_name: str, start: int = 0, stop: int | None = None) -> BinaryIO:
        check_range(start, stop)
        if stop is not None and stop <= start:
            self.stat_object(object_name)
            return io.BufferedReader(empty_reader(start, self._policy))
        uri = self.get_uri(object_name)
        reader = open_range(partial(self._get, object_name), uri, start, stop, None, self._policy)
        return io.BufferedReader(reader, COPY_SIZE)

    def put_object(
        self, object_name: str, data: bytes | Iterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        self._check(object_name)
        if isinstance(data, (bytes, bytearray, memoryview)):
            with io.BytesIO(data) as whole:
                return self._put(object_name, whole, len(whole.getbuffer()), content_type)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
            for piece in data:
                spool.write(piece)
            return self._put(object_name, spool, spool.tell(), content_type)

    def stream_memory(self, size: int | None = None) -> int:
        return COPY_SIZE + _IN_MEMORY

    def delete_object(self, object_name: str) -> None:
        self._check(object_name)
        try:
            self._policy.call(lambda: self._send("DELETE", object_name)).close()
        except FileNotFoundError:
            pass

    def close(self) -> None:
        self._session.close()

    # Requests

    def _put(self, object_name: str, body: Source, size: int, content_type: str | None) -> ObjectInfo:
        headers = {"Content-Type": content_type or "application/octet-stream"}

        def put() -> ObjectInfo:
            with unreadable_told(body), self._send("PUT", object_name, headers=headers, body=body, size=size) as answer:
                return ObjectInfo(object_name, size, _etag(answer.headers), None)

        stored = self._policy.call(put)
        # Of some buckets AIStore tells neither, and so does what is not AIStore and answers everything with a page.
        if stored.etag is None and self.get_object_size(object_name) != size:
            raise ObjectStoreError(f"{self._uri(object_name)}: the server acknowledged it without storing it")
        return stored

    def _get(self, object_name: str, start: int, stop: int | None) -> _AISBody | None:
        """The object from a byte on, asked for once; None where it ends before."""
        uri = self._uri(object_name)
        try:
            answer = self._send("GET", object_name, headers=range_header(start, stop))
        except _RangeError:
            return None
        try:
            length = _length(answer)
            if length is None:
                length = self._stat(object_name).size
            end = answered_stop(uri, start, stop, answer.headers.get("content-range", ""), length)
        except BaseException:
            answer.close()
            raise
        return _AISBody(uri, answer, end)

    def _page(self, wanted: Mapping[str, str]) -> Any:
        """A page of the list, asked for once."""
        body = json.dumps({"action": "list", "value": wanted}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        answer = self._send("GET", None, headers=headers, body=io.BytesIO(body), size=len(body))
        with answer, _translated(self._uri("")):
            content = answer.content
        try:
            page = json.loads(content)
            if not isinstance(page["entries"] or [], list):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise ObjectStoreError(f"{self._uri('')}: the answer is no list of objects") from None
        return page

    def _send(
        self,
        method: str,
        object_name: str | None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Source | None = None,
        size: int = 0,
    ) -> requests.Response:
        """Make a request once, of an object or of the bucket (None), and follow redirects; the answer is a good one."""
        uri = self._uri(object_name or "")
        path = f"objects/{self._bucket}/{encode_object_path(self._prefix + object_name)}" if object_name else ""
        options = urlencode({"provider": self._provider, **(query or {})})
        url = f"{self._endpoint}/v1/{path or f'buckets/{self._bucket}'}?{options}"
        hops = [shown(url)]
        withheld = size > _SMALL
        while True:
            answer = self._send_to(url, method, uri, headers or {}, body, size, withheld=withheld)
            if answer.status_code not in REDIRECTS:
                missing = not object_name or method == "PUT"
                return self._checked(answer, uri, missing_bucket=missing, withheld=withheld)
            answer.close()
            url = self._redirected(url, answer, uri, hops)
            withheld = False

    def _send_to(
        self,
        url: str,
        method: str,
        uri: str,
        headers: Mapping[str, str],
        body: Source | None,
        size: int,
        *,
        withheld: bool,
    ) -> requests.Response:
        """`withheld`: announce the body and wait for the redirect, since nobody would read it."""
        data: Source | bytes | None = None
        headers = dict(headers)
        if withheld:
            headers |= {"Content-Length": str(size), "Connection": "close"}
        elif body is not None:
            body.seek(0)
            data = body if size else b""
        request = requests.Request(method, url.partition("?")[0], headers=headers, data=data, auth=_Bearer(self._token))
        with _translated(uri):
            prepared = self._session.prepare_request(request)
            prepared.url = url  # byte for byte: requests would tidy up what is an object's name
            settings: Any = self._session.merge_environment_settings(url, {}, True, None, None)
            return self._session.send(prepared, timeout=self._timeout, allow_redirects=False, **settings)

    def _redirected(self, url: str, answer: requests.Response, uri: str, hops: list[str]) -> str:
        location = answer.headers.get("location")
        if not location:
            raise ObjectStoreError(f"{uri}: answered with status {answer.status_code} and no Location")
        try:
            goal = redirected(url, location)
        except ValueError as error:
            raise RedirectError(f"{uri}: {error}", [*hops, shown(location)]) from None
        hops.append(shown(goal))
        if len(hops) > MAX_REDIRECTS + 1:
            raise RedirectError(f"{uri}: expected at most {MAX_REDIRECTS} redirects", hops)
        if unquote(urlsplit(goal).path) != unquote(urlsplit(url).path):
            raise RedirectError(f"{uri}: redirected to another object", hops)
        if self._token and leaves_https(url, goal):
            raise RedirectError(f"{uri}: the token is not sent from https to http", hops)
        return goal

    def _checked(
        self, answer: requests.Response, uri: str, *, missing_bucket: bool, withheld: bool
    ) -> requests.Response:
        """A good answer. `missing_bucket`: it is the bucket that a status of 404 misses."""
        status = answer.status_code
        if 200 <= status < 300 and not withheld:
            return answer
        with answer:
            try:
                content = answer.raw.read(ERROR_BODY_LIMIT).decode("utf-8", "replace").strip()
            except (urllib3.exceptions.HTTPError, OSError):
                content = ""
        text = f"{uri}: answered with status {status}" + (f": {content}" if content else "")
        if status == 404:
            if missing_bucket:
                raise FileNotFoundError(2, "no such bucket", f"ais://{self._bucket}")
            raise FileNotFoundError(2, "no such object", uri)
        if status in (401, 403):
            raise PermissionError(text)
        if status == 416:
            raise _RangeError(text)
        being_written = status == 409 and answer.request.method == "GET"
        if being_written or status == 429 or (status >= 500 and status != 501):
            raise ObjectStoreTransientError(text)
        raise ObjectStoreError(f"{uri}: expected a redirect to a target, {text}" if 200 <= status < 300 else text)

    def _uri(self, object_name: str) -> str:
        return f"ais://{self._bucket}/{encode_object_path(self._prefix + object_name)}"

    def _check(self, object_name: str) -> None:
        check_name(object_name)
        if not {".", ".."}.isdisjoint((self._prefix + object_name).split("/")):
            raise ValueError(f"object name {object_name!r}: expected no part '.' or '..', which URLs cannot hold")


class _RangeError(ObjectStoreError):
    """The object ends before the range begins."""


class _Bearer(requests.auth.AuthBase):
    """The token, if there is one, and nothing that requests would find elsewhere."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _AISBody:
    """The body of an answer that has an object."""

    def __init__(self, uri: str, answer: requests.Response, stop: int) -> None:
        self._uri = uri
        self._answer = answer
        self.etag = _etag(answer.headers)
        self.stop = stop

    def read(self, size: int) -> bytes:
        with _translated(self._uri):
            return bytes(self._answer.raw.read(size))

    def close(self) -> None:
        self._answer.close()


class _WatchedFile(FileSlice):
    """A file that tells how far it has been read."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress) -> None:
        super().__init__(file, 0, size)
        self._progress = progress

    def _read_into(self, view: memoryview) -> int:
        count = super()._read_into(view)
        self._progress.reach(self.tell() + count)
        return count


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """The errors of requests and urllib3 as ours."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise ObjectStoreError(f"{uri}: {_reason(error)}") from None
    except (
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        requests.exceptions.ChunkedEncodingError,
        urllib3.exceptions.HTTPError,
    ) as error:
        raise ObjectStoreTransientError(f"{uri}: {_reason(error)}") from None
    except requests.exceptions.RequestException as error:
        raise ObjectStoreError(f"{uri}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What went wrong, without the URL, whose query may have a signature."""
    inner = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return f"{type(error).__name__}: {inner}" if isinstance(inner, Exception) else type(error).__name__


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _etag(headers: Mapping[str, str]) -> str | None:
    return headers.get(CHECKSUM_VALUE_HEADER) or headers.get("ais-version") or None
