"""Requests to a cluster: its token, redirects, errors, and what is tried again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import requests.adapters
import requests.auth
import tenacity

from ..config import Settings
from ..errors import ClusterError, ClusterUnreachableError
from ..runtime.clients import CONNECT_TIMEOUT, ERROR_BODY_LIMIT, plain_session
from ..wire.redirects import MAX_REDIRECTS, REDIRECTS, leaves_https

_TRANSIENT = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class Transport:
    """One cluster, by its proxy.

    The token goes to the proxy only, which is who asks for it; targets know a redirect of their proxy by its signature.
    GETs are repeated when the connection breaks or a gateway is in the way; nothing else is, as it may have been done.
    """

    def __init__(self, url: str, settings: Settings, retries: int, backoff: float) -> None:
        self.url = url
        self._settings = settings
        self._session = plain_session(settings)
        self._session.auth = _ProxyToken(url, settings)
        # Without the stale connection's second try, which would repeat PUTs and DELETEs too.
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=0))
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(retries + 1),
            wait=tenacity.wait_exponential(backoff, max=10),
            reraise=True,
        )

    def close(self) -> None:
        self._session.close()

    def get_json(self, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """What a GET of `path`, below `/v1/`, answers."""
        return self._retrying(self._get_json, path, query, body)

    def open(self, path: str, query: Mapping[str, str]) -> requests.Response:
        """GET a body to be read as a stream, following redirects. Its end can be told from a lost connection."""
        response = self._retrying(self._send, "GET", path, query, None, None)
        headers = response.headers
        if "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "").lower():
            response.close()
            raise ClusterUnreachableError("the answer has neither a length nor chunks, so its end cannot be known")
        return response

    def call(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> str:
        """The answer to a request that changes something; it is sent once. Waits for `settings.io_timeout` at most."""
        return self.call_within(self._settings.io_timeout, method, path, query, body)

    def call_within(
        self, timeout: float, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> str:
        """As `call`, with the seconds to wait for the answer."""
        return self._text(self._send(method, path, query, body, timeout))

    def _get_json(self, path: str, query: Mapping[str, str] | None, body: Any) -> Any:
        text = self._text(self._send("GET", path, query, body, None))
        try:
            return json.loads(text)
        except ValueError:
            raise ClusterError(f"{self.url} answers {path} with something that is no JSON: {text[:100]!r}") from None

    def _text(self, response: requests.Response) -> str:
        with response:
            try:
                return response.content.decode("utf-8", "replace")
            except requests.RequestException as error:
                raise self._unreachable(response.url, error) from error

    def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, timeout: float | None
    ) -> requests.Response:
        """The answer, whose body is still to be read. An error status is raised."""
        url, hops = f"{self.url}/v1/{path}", [self.url]
        while True:
            try:
                response = self._session.request(
                    method,
                    url,
                    params=query,
                    json=body,
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_TIMEOUT, timeout or self._settings.io_timeout),
                )
            except requests.RequestException as error:
                raise self._unreachable(url, error) from error
            if response.status_code not in REDIRECTS:
                if response.status_code >= HTTPStatus.BAD_REQUEST:
                    raise self._refusal(response)
                return response
            response.close()
            url, query = urljoin(url, response.headers.get("location", "")), None
            hops.append(_origin(url))
            self._check_hop(method, hops)

    def _check_hop(self, method: str, hops: list[str]) -> None:
        way = " → ".join(hops)
        if method != "GET":
            raise ClusterError(f"{method} is answered with a redirect, which is followed for GET only: {way}")
        if len(hops) - 1 > MAX_REDIRECTS:
            raise ClusterError(f"redirected more than {MAX_REDIRECTS} times: {way}")
        if leaves_https(hops[-2], hops[-1]):
            raise ClusterError(f"a redirect leads from https to what is not: {way}")

    def _refusal(self, response: requests.Response) -> ClusterError:
        with response:
            try:
                text = response.raw.read(ERROR_BODY_LIMIT, decode_content=True).decode("utf-8", "replace")
            except Exception:  # the status says enough
                text = ""
        status = response.status_code
        detail = _message(text) or f"status {status} {response.reason}".rstrip()
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            given = "is not valid for this" if self._settings.authn_token.get_secret_value() else "is not set"
            detail += f" (AIS_AUTHN_TOKEN {given})"
        return ClusterError(self._settings.redact(detail), status)

    def _unreachable(self, url: str, error: Exception) -> ClusterUnreachableError:
        reason = error
        while isinstance(reason.__context__, Exception):
            reason = reason.__context__
        return ClusterUnreachableError(
            self._settings.redact(f"{_origin(url)} cannot be talked to: {type(reason).__name__}: {reason}")
        )


class _ProxyToken(requests.auth.AuthBase):
    def __init__(self, url: str, settings: Settings) -> None:
        self._origin = _origin(url)
        self._token = settings.authn_token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        token = self._token.get_secret_value()
        if token and _origin(request.url or "") == self._origin:
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, ClusterUnreachableError) or (
        isinstance(error, ClusterError) and error.status in _TRANSIENT
    )


def _origin(url: str) -> str:
    """Scheme, host and port. What follows may be signed, and is not shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def _message(text: str) -> str:
    """AIStore's words in one line: the message of its JSON errors, or the text of others."""
    try:
        text = json.loads(text)["message"]
    except (ValueError, TypeError, KeyError):
        pass
    return " ".join(str(text).split())
