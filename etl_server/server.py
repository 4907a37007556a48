"""`ETLServer`: the class that users subclass."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .config import Settings

if TYPE_CHECKING:
    import httpx
    import requests
    from fastapi import FastAPI

Execution = Literal["auto", "inline", "thread"]


class ETLServer:
    """A transform of objects. Override `transform` or `transform_stream`; either may be `async`.

    With both, `transform` wins. With neither, the class cannot be instantiated (`TypeError`). One instance serves a
    worker process; unless `max_concurrency` says otherwise, its transform runs for several objects at once.
    """

    max_concurrency: ClassVar[int | None] = None
    """How many calls of the transform, at least 1, may run at once in a process. None: no limit."""

    execution: ClassVar[Execution] = "auto"
    """Where a synchronous transform runs: `inline` on the event loop, in a worker `thread`, or `auto`: on the loop
    as long as this class has been taking microseconds for objects of that size with these arguments, else in a
    thread. A stream runs on the loop only if its object is in memory already."""

    def __new__(cls, *args: Any, **kwargs: Any) -> ETLServer:
        if cls.transform is ETLServer.transform and cls.transform_stream is ETLServer.transform_stream:
            raise TypeError(f"{cls.__name__} must override transform() or transform_stream()")
        if cls.max_concurrency is not None and cls.max_concurrency < 1:
            raise TypeError(f"{cls.__name__}.max_concurrency={cls.max_concurrency}: expected at least 1, or None")
        return super().__new__(cls)

    def __init__(self, *, host: str | None = None, port: int | None = None, settings: Settings | None = None) -> None:
        """Settings come from the environment where they are not given; `host` and `port` win over both.

        Raises:
            ConfigError: an environment variable has a bad value.
        """
        if settings is None:
            settings = Settings.load(host=host, port=port)
        elif host is not None or port is not None:
            settings = settings.model_copy(
                update={name: value for name, value in (("host", host), ("port", port)) if value is not None}
            )
        self.settings = settings

    # What a subclass overrides

    def setup(self) -> Any:
        """Called once in every worker process, before its first request; may be `async`. Load models here."""

    def teardown(self) -> Any:
        """Called once in every worker process that `setup` succeeded in, when it stops; may be `async`."""

    def transform(self, data: Any, path: str, etl_args: str) -> bytes | Awaitable[bytes]:
        """Transform a whole object.

        Args:
            data: the object's `bytes`; under `ETL_DIRECT_FQN=true` the path of its local file, a `str`, where the
                target named one, and in every job; only to be read.
            path: the object's name, as the target gave it.
            etl_args: this request's arguments, opaque text; often empty.

        Returns:
            The transformed object: `bytes`, `bytearray` or `memoryview`.

        Whatever it raises fails this object with status 500 and `Processing error: <message>`.
        """
        raise NotImplementedError

    def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes] | AsyncIterator[bytes]:
        """Transform an object piece by piece, on constant memory.

        Args:
            reader: the object, never held whole. A `BinaryIO` in a synchronous transform; in an `async` one an
                `AsyncReader`, whose `await reader.read(n)` and `async for chunk in reader` do the same.
            path: the object's name, as the target gave it.
            etl_args: this request's arguments, opaque text; often empty.

        Yields:
            The transformed object in pieces: `bytes`, `bytearray` or `memoryview` of any size.

        What it raises before its first byte has left fails the object with status 500; after that, the connection
        is cut, so that nobody takes the part for the whole.
        """
        raise NotImplementedError

    def get_mime_type(self) -> str:
        """The `Content-Type` of transformed objects."""
        return "application/octet-stream"

    # What a subclass may use

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process."""
        return Settings.load()

    @cached_property
    def logger(self) -> logging.Logger:
        """A logger named for the class."""
        return logging.getLogger(f"etl_server.{type(self).__name__}")

    @property
    def host_target(self) -> str:
        """`AIS_TARGET_URL`, or empty. It ends in a secret: do not show it."""
        return self.settings.host_target.get_secret_value()

    @cached_property
    def session(self) -> requests.Session:
        """A `requests.Session` for the target: TLS is set up, and the token goes to the target's host only."""
        from .runtime.clients import target_session

        return target_session(self.settings)

    @cached_property
    def client(self) -> httpx.AsyncClient:
        """An `httpx.AsyncClient` for the target: TLS is set up, and the token goes to the target's host only."""
        from .runtime.clients import target_client

        return target_client(self.settings)

    # Serving

    @cached_property
    def app(self) -> FastAPI:
        """A FastAPI application that serves this transform on any ASGI server."""
        from .runtime.app import create_app

        return create_app(self)

    def start(self, host: str | None = None, port: int | None = None) -> None:
        """Serve until SIGTERM or Ctrl-C; returns when every object in flight is finished.

        With one worker (`ETL_WORKERS=1`) this instance serves. With several, each process makes one of its own of the
        class, without arguments: what this one was given, or has set, is not theirs.

        Args:
            host: address to listen on; default `ETL_HOST`.
            port: port to listen on; default `ETL_PORT`.
        """
        from .runtime.serve import serve_instance

        serve_instance(self, host=host, port=port)

    @property
    def streams(self) -> bool:
        """Whether objects go through `transform_stream`."""
        return type(self).transform is ETLServer.transform
