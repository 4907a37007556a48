"""HTTP clients for targets, set up by the settings: TLS, token, pools."""

from __future__ import annotations

import contextlib
import io
import ssl
import threading
from collections.abc import Callable, Generator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.auth
import urllib3
import urllib3.exceptions

from ..config import Settings
from ..errors import BodyTooLargeError, UpstreamStatusError, UpstreamUnreachableError
from .logs import redact_clients

if TYPE_CHECKING:
    import httpx

    from ..server import ETLServer

CONNECT_TIMEOUT = 10.0
"""Seconds to establish a connection."""
ERROR_BODY_LIMIT = 64 * 1024
"""Bytes of another server's error body that are passed on."""


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """What targets' certificates are verified by, and the certificate to show to them."""
    context = ssl.create_default_context(cafile=str(settings.client_ca) if settings.client_ca else None)
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.client_crt:
        context.load_cert_chain(settings.client_crt, settings.client_key)
    return context


def target_session(settings: Settings) -> requests.Session:
    """A `requests.Session` for the target: TLS, pool size, and the token for the target's host."""
    session = plain_session(settings)
    token = settings.authn_token.get_secret_value()
    if token:
        session.auth = _TargetToken(settings)
    return session


async def close_clients(server: ETLServer) -> None:
    """Close those of an instance's `session` and `client` that it has used."""
    if "session" in vars(server):
        server.session.close()
    if "client" in vars(server):
        await server.client.aclose()


def plain_session(settings: Settings) -> requests.Session:
    """A `requests.Session` for any host: TLS and pool size, no token."""
    redact_clients(settings)
    session = _Session()
    session.verify = False if settings.skip_verify else str(settings.client_ca) if settings.client_ca else True
    if settings.client_crt:
        key = settings.client_key
        session.cert = (str(settings.client_crt), str(key)) if key else str(settings.client_crt)
    # Objects are wanted as they are stored, so nobody on the way is to compress them.
    session.headers["Accept-Encoding"] = "identity"
    # A kept-alive connection that turns out to be stale is tried once more on a fresh one.
    retry_stale = urllib3.Retry(total=1, connect=0, read=1, status=0, redirect=10, raise_on_status=False)
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=settings.max_connections, max_retries=retry_stale)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def target_client(settings: Settings) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` for the target, on the aiohttp transport: TLS, pool size, token for the target's host."""
    import aiohttp
    import httpx
    import httpx_aiohttp

    redact_clients(settings)
    token = settings.authn_token.get_secret_value()

    class TargetToken(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            if token and is_target(settings, str(request.url)):
                request.headers["Authorization"] = f"Bearer {token}"
            yield request

    def connect() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=settings.max_connections,
            keepalive_timeout=settings.keepalive_expiry,
            ssl=ssl_context(settings),
        )
        return aiohttp.ClientSession(connector=connector, auto_decompress=False)

    return httpx.AsyncClient(
        auth=TargetToken(),
        transport=httpx_aiohttp.AiohttpTransport(client=connect),
        timeout=httpx.Timeout(settings.io_timeout, connect=CONNECT_TIMEOUT),
    )


def is_target(settings: Settings, url: str) -> bool:
    """Whether a URL leads to the target that this server belongs to."""
    return urlsplit(url).netloc == urlsplit(settings.host_target.get_secret_value()).netloc


class _Session(requests.Session):
    """What it is told of certificates is not overruled by REQUESTS_CA_BUNDLE, which `requests` puts first."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        if verify is None and self.verify is not True:
            verify = self.verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


class _TargetToken(requests.auth.AuthBase):
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if is_target(self._settings, request.url or ""):
            request.headers["Authorization"] = f"Bearer {self._settings.authn_token.get_secret_value()}"
        return request


class ResponseRawReader(io.RawIOBase):
    """A streamed `requests.Response` as a reader.

    `close()` closes the response and not only its socket, which gives the connection back to the session's pool,
    also when the body was not read to its end.
    """

    def __init__(self, response: requests.Response, limit: int | None = None) -> None:
        """`limit`: bytes from which reading fails with `BodyTooLargeError`."""
        super().__init__()
        self._response = response
        self._limit = limit
        self._ending = threading.RLock()
        self._left = float("inf") if limit is None else limit
        self.failure: BaseException | None = None
        """Why the rest of the body cannot be read."""

    @property
    def length(self) -> int | None:
        """The body's size in bytes, where the response says it."""
        length = self._response.headers.get("content-length")
        return int(length) if length is not None and length.isdecimal() else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the buffer protocol of io
        data = self._read(self._response.raw.read1, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(self._response.raw.read, None)

    def close(self) -> None:
        """Close the response, and give its connection back to the pool."""
        with self._ending:
            if not self.closed:
                self._response.close()
            super().close()

    def abort(self) -> None:
        """End a read that another thread waits in. Does nothing once the reader is closed."""
        with self._ending:
            if not self.closed:
                with contextlib.suppress(OSError, ValueError, RuntimeError):
                    self._response.raw.shutdown()

    def _read(self, read: Callable[[int | None], bytes], size: int | None) -> bytes:
        try:
            data = bytes(read(size))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.failure = UpstreamUnreachableError(f"The object broke off while it was read: {type(error).__name__}")
            raise self.failure from error
        self._left -= len(data)
        if self._left < 0:
            self.failure = BodyTooLargeError.beyond(self._limit)
            raise self.failure
        return data


def open_stream(
    session: requests.Session, url: str, timeout: float, *, redirects: bool, limit: int | None
) -> ResponseRawReader:
    """GET `url` as a stream. Blocks: for worker threads.

    Raises:
        UpstreamStatusError: the answer is not 200.
        UpstreamUnreachableError: there is no answer.
    """
    try:
        response = session.get(url, stream=True, timeout=(CONNECT_TIMEOUT, timeout), allow_redirects=redirects)
    except requests.RequestException as error:
        raise UpstreamUnreachableError(f"The object could not be read: {type(error).__name__}") from error
    if response.status_code != HTTPStatus.OK:
        with response:
            try:
                content = response.raw.read(ERROR_BODY_LIMIT)
            except (urllib3.exceptions.HTTPError, OSError):
                content = b""
        raise upstream_error(response.status_code, content, response.headers.get("content-type", ""))
    if not _is_delimited(response, may_close=redirects):
        response.close()
        raise UpstreamUnreachableError("The object could not be read: its answer has neither a length nor chunks")
    return ResponseRawReader(response, limit)


def _is_delimited(response: requests.Response, *, may_close: bool) -> bool:
    """Whether the end of the body can be told from a lost connection.

    A server on the Web that ends it by closing is believed if it says so; a target always gives a length or chunks.
    """
    headers = response.headers
    if "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower():
        return True
    return may_close and bool(response.raw.version == 10 or "close" in headers.get("connection", "").lower())


def upstream_error(status: int, content: bytes, content_type: str, retry_reason: str = "") -> UpstreamStatusError:
    """Another server's answer that is no object, as an error: its status where that says so, else 502."""
    return UpstreamStatusError(
        status if 400 <= status <= 599 else HTTPStatus.BAD_GATEWAY,
        content or f'{{"detail": "answered with status {status}"}}'.encode(),
        content_type if content and content_type else "application/json",
        retry_reason,
    )
