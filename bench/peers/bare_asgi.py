"""An echo as a bare ASGI function: the floor of what an object costs under uvicorn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application."""
    if scope["type"] == "websocket":
        await _messages(receive, send)
    elif scope["type"] == "http":
        await _object(receive, send)


async def _object(receive: Receive, send: Send) -> None:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _messages(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        control = await receive()
        if control["type"] == "websocket.disconnect":
            return
        content = await receive()
        if content["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "bytes": content["bytes"]})
