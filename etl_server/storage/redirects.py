"""S3 clients that follow redirects: AIStore and others answer with one, and botocore takes it for an error.

A handler of botocore's `needs-retry` event gives the request the new URL and asks for another attempt. botocore itself
rewinds the body then, and signs the request anew for the new host; aiobotocore does the same on the event loop. One
piece is overridden: aiohttp, under aiobotocore, would follow a redirect itself and lose the signature, so it is kept
from that.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..errors import RedirectError
from ..wire.redirects import MAX_REDIRECTS, REDIRECTS, leaves_https, redirected, shown

ClientT = TypeVar("ClientT")

_HOPS = "etl_server_hops"
_ID = "etl-server-follow-redirects-"


def follow_redirects(client: ClientT, *, allow_http: bool = False) -> ClientT:
    """Let one S3 client follow the redirects that it is answered with: 301, 302, 307, 308, with a `Location`.

    The request goes to the new URL as it was, by the same method, with the same headers and the same body, signed for
    the new host. S3's own redirects to another region, and those without a `Location`, are left to botocore. Calling
    it again changes `allow_http` and nothing else.

    Args:
        client: of boto3, botocore or aiobotocore; or a boto3 resource, whose client is meant then.
        allow_http: go on from an https URL to an http one, with the credentials.

    Returns:
        The same client.

    An operation of the client raises `RedirectError` where a redirect cannot be followed: it is the fourth, or it leads
    from https to http. So it does at once, and has read nothing, for a body that could not be sent again.
    """
    target: Any = client
    target = getattr(target.meta, "client", target)
    events = target.meta.events
    for event, handler in _HANDLERS.items():
        events.unregister(event, unique_id=_ID + event)
        events.register_first(event, partial(handler, allow_http=allow_http), unique_id=_ID + event)
    _keep_from_redirects(target._endpoint.http_session)
    return client


def redirect(response: Any, request_dict: dict[str, Any], allow_http: bool = False, **kwargs: Any) -> int | None:
    """Handle botocore's `needs-retry`: 0 sends the request at once to where the response says, None leaves it be."""
    if response is None or not (location := _location(*response)):
        return None
    url: str = request_dict["url"]
    # An operation has one context, and every attempt the same.
    hops: list[str] = request_dict["context"].setdefault(_HOPS, [shown(url)])
    try:
        goal = redirected(url, location)
    except ValueError as error:
        raise RedirectError(f"S3 redirect to {shown(location)!r}: {error}", hops) from None
    hops.append(shown(goal))
    if len(hops) > MAX_REDIRECTS + 1:
        raise RedirectError(f"S3 redirects: expected at most {MAX_REDIRECTS} in an operation", hops)
    if leaves_https(url, goal) and not allow_http:
        raise RedirectError("S3 redirect from https to http: expected follow_redirects(client, allow_http=True)", hops)
    request_dict["url"] = goal
    # botocore's own handler of region redirects comes after this one, and is told that it had its turn.
    request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True
    return 0


def make_rewindable(params: dict[str, Any], **kwargs: Any) -> None:
    """Handle botocore's `before-call`: refuse a body that cannot be sent twice, before anything of it is read.

    Raises:
        RedirectError: the body cannot be rewound.
    """
    body = params["body"]
    if body is None or isinstance(body, (bytes, bytearray, str)):
        return
    if not (body.seekable() if hasattr(body, "seekable") else hasattr(body, "seek") and hasattr(body, "tell")):
        raise RedirectError(
            f"A client that follows redirects cannot send a body that cannot be rewound, {type(body).__name__}:"
            " expected bytes or a seekable file",
            [shown(params["url"])],
        )
    if body.tell() != 0:
        params["body"] = _Rest(body)


_HANDLERS: dict[str, Callable[..., Any]] = {"before-call.s3": make_rewindable, "needs-retry.s3": redirect}


def _keep_from_redirects(http_session: Any) -> None:
    """Have an HTTP session of aiobotocore's give redirects back as they came, where it is one on aiohttp."""
    module = sys.modules.get("aiobotocore.httpsession")
    if module is None or not isinstance(http_session, module.AIOHTTPSession) or "_get_session" in vars(http_session):
        return
    get_session = http_session._get_session

    async def get(proxy_url: str | None) -> _Unredirected:
        return _Unredirected(await get_session(proxy_url))

    http_session._get_session = get


class _Unredirected:
    """What aiobotocore uses of an aiohttp session, and no redirects with it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, method: str, **kwargs: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **kwargs)


def _location(http_response: Any, parsed: dict[str, Any]) -> str | None:
    """Where a response redirects to, or None where that is not for us to follow."""
    if http_response.status_code not in REDIRECTS:
        return None
    error = parsed.get("Error", {})
    of_a_region = (
        "x-amz-bucket-region" in http_response.headers or "Region" in error or error.get("Code") == "PermanentRedirect"
    )
    return None if of_a_region else http_response.headers.get("location")


class _Rest(io.RawIOBase):
    """What is left of a file, as a file of its own: botocore rewinds a body to 0, wherever it began."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._start: int = file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece: bytes = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self._file.seek(offset + (self._start if whence == io.SEEK_SET else 0), whence)
        return position - self._start

    def tell(self) -> int:
        return int(self._file.tell()) - self._start
