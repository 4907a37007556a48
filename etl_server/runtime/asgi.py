"""The data path's exchange over ASGI: what serves objects under any ASGI server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import ClientDisconnectedError
from .exchange import PIPELINE_HEADER, Answer
from .flow import Inflow

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_PIPELINE = PIPELINE_HEADER.encode()


class ASGIExchange:
    """One HTTP request of an ASGI server."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        raw_path: bytes | None = scope.get("raw_path")
        path = raw_path.decode("latin-1") if raw_path else quote(scope["path"])
        self.path = path.removeprefix(scope.get("root_path", ""))
        self.query: str = scope["query_string"].decode("latin-1")
        self.pipeline = ""
        self.content_length: int | None = None
        for name, value in scope["headers"]:
            if name == _PIPELINE:
                self.pipeline = value.decode("latin-1").strip()
            elif name == b"content-length":
                self.content_length = int(value)
        self.body = Inflow(self._pause, self._resume)
        self._receive = receive
        self._send = send
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.answered = False
        """Whether the answer has been sent to its end."""

    async def pump(self) -> None:
        """Feed the body as it comes; returns when the client has gone away."""
        while True:
            await self._flowing.wait()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.body.fail(ClientDisconnectedError("The client went away"))
                return
            data = message.get("body", b"")
            if data:
                self.body.feed(data)
            if not message.get("more_body", False):
                self.body.finish()

    async def send(self, answer: Answer) -> None:
        """See `Exchange`. What a broken stream raises is passed on, which makes the ASGI server cut the connection."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
        if answer.content_type:
            headers.append((b"content-type", answer.content_type.encode("latin-1")))
        body = answer.body
        if not answer.chunked and answer.status != 204:
            headers.append((b"content-length", b"%d" % (len(body) if isinstance(body, bytes) else answer.length or 0)))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        last = b""
        if isinstance(body, bytes):
            last = body
        else:
            async for batch in body:
                data = batch[0] if len(batch) == 1 else b"".join(batch)
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.answered = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def _pause(self) -> None:
        self._flowing.clear()

    def _resume(self) -> None:
        self._flowing.set()
