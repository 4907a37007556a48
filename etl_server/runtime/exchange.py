"""What the data path needs of a transport: a request's head, its body as it comes, and a way to answer.

Source, execute and deliver know nothing else of HTTP servers. Whatever can fill in an `Exchange` can serve objects.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .flow import BatchStream, Inflow

HEALTH = "/health"
DOWNLOAD = "/download"
METRICS = "/metrics"
WEBSOCKET = "/ws"

DIRECT_PUT_LENGTH_HEADER = "ais-direct-put-length"
PIPELINE_HEADER = "ais-node-url"

OK, NO_CONTENT = 200, 204
"""Plain numbers: to look one up in `HTTPStatus`, and to hash it, costs more than to make an answer."""


class Answer(NamedTuple):
    """What goes back: a status and a body, whole or as it comes."""

    status: int
    body: bytes | BatchStream = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """Size in bytes of a body that comes, where it is known."""

    @property
    def chunked(self) -> bool:
        """Whether it goes out without a `Content-Length`.

        An empty object does: `Content-Length: 0` would look like a target's acknowledgement to a stage before this one.
        """
        if isinstance(self.body, bytes):
            return self.status == 200 and not self.body
        return not self.length


class Exchange(Protocol):
    """A request and its answer."""

    method: str
    path: str
    """Escaped, as it came."""
    query: str
    """Escaped, as it came."""
    headers: list[tuple[bytes, bytes]]
    """As they came: a name in any case."""
    pipeline: str
    """The `ais-node-url` header, or empty."""
    content_length: int | None
    body: Inflow
    started: float
    """When it came, by `time.monotonic()`."""
    gone: str
    """Why nobody is there any more to be answered; empty: somebody is."""

    def send_whole(self, answer: Answer) -> bool:
        """Send an answer that is whole and short, if that takes no waiting; whether it was sent."""

    async def send(self, answer: Answer) -> None:
        """Send the answer; of a body that comes, the first batch must be at hand.

        If a body breaks off, or does not have its length, the connection is cut.
        """
