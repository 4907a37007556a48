"""The routes: which request goes where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from fastapi import FastAPI

from ..errors import MethodNotAllowedError
from ..server import ETLServer
from .admission import Lease
from .asgi import ASGIExchange, escaped_path, serve_websocket
from .exchange import DOWNLOAD, HEALTH, METRICS, WEBSOCKET, Answer, Exchange
from .worker import Handler, Worker

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class ETLApp(FastAPI):
    """A FastAPI application whose object routes never pass FastAPI's routing.

    Routes that are added to it before it starts are served too, under their exact paths.
    """

    def __init__(self, worker: Worker) -> None:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            await worker.start()
            try:
                yield
            finally:
                await worker.stop()

        super().__init__(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        self.worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = escaped_path(scope)
            if scope["type"] == "websocket":
                if path == WEBSOCKET:
                    await self.worker.start()
                    await serve_websocket(self.worker, receive, send)
                    return
            else:
                handler = self.route(scope["method"], path)
                if handler is not None:
                    await self.worker.start()
                    await self._serve(handler, ASGIExchange(scope, path, receive, send))
                    return
        await super().__call__(scope, receive, send)

    def route(self, method: str, path: str) -> Handler | None:
        """What answers a request for an object; None: the request is not for an object. `path` is escaped."""
        if path in self._special_paths:
            if path == HEALTH:
                return self.worker.health if method in ("GET", "HEAD") else _only("GET, HEAD")
            if path == DOWNLOAD:
                return self.worker.download if method == "POST" else _only("POST")
            if path in self._other_paths:
                return None
            if path == METRICS and method in ("GET", "HEAD"):
                return self.worker.metrics
        return self.object_handlers.get(method) or _only(", ".join(self.object_handlers))

    @cached_property
    def object_handlers(self) -> dict[str, Handler]:
        """What answers the requests for objects, by their methods."""
        worker, settings = self.worker, self.worker.settings
        get: dict[str, Handler] = (
            {"GET": worker.fetch, "HEAD": worker.fetch} if settings.source else {"GET": worker.pull}
        )
        return {**get, "PUT": worker.store if settings.sink else worker.push}

    @cached_property
    def _other_paths(self) -> frozenset[str]:
        return frozenset([WEBSOCKET, *(getattr(route, "path", "") for route in self.router.routes)])

    @cached_property
    def _special_paths(self) -> frozenset[str]:
        metrics = [METRICS] if self.worker.settings.metrics else []
        return self._other_paths.union([HEALTH, DOWNLOAD, *metrics])

    async def _serve(self, handler: Handler, exchange: ASGIExchange) -> None:
        """Answer one request; if the client goes away meanwhile, whatever is going on for it ends."""
        self.worker.admission.enter()
        pump = asyncio.create_task(exchange.pump())
        work = asyncio.create_task(self.worker.serve(handler, exchange))
        try:
            await asyncio.wait((pump, work), return_when=asyncio.FIRST_COMPLETED)
            if not exchange.answered:
                work.cancel()
            await asyncio.wait((work,))
            if not work.cancelled() and work.exception() is not None:
                # Why has been logged; here it only makes the server cut the connection.
                raise ConnectionAbortedError("the answer broke off") from None
        finally:
            work.cancel()
            pump.cancel()
            self.worker.admission.leave()


def _only(allow: str) -> Handler:
    async def refuse(exchange: Exchange, _: Lease) -> Answer:
        raise MethodNotAllowedError(f"{exchange.method} is not allowed here, expected {allow}", allow)

    return refuse


def create_app(server: ETLServer) -> ETLApp:
    """The application that serves one instance."""
    return ETLApp(Worker(server))
