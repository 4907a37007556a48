"""Transforms that tests of the data path serve: the same behaviour by every way to write a transform."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO

from etl_server import AsyncReader, ETLServer

PIECE = 64 * 1024


class Upper(ETLServer):
    """Returns the object in upper case."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper()


class AsyncUpper(ETLServer):
    async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        await asyncio.sleep(0)
        return data.upper()


class UpperStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while piece := reader.read(PIECE):
            yield piece.upper()


class AsyncUpperStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        while piece := await reader.read(PIECE):
            yield piece.upper()


ALL_UPPER = [Upper, AsyncUpper, UpperStream, AsyncUpperStream]
STREAMS = [UpperStream, AsyncUpperStream]


class EagerStream(ETLServer):
    """Passes on whatever has come, as soon as it has come."""

    def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes]:
        while piece := reader.read1(PIECE):
            yield piece


class AsyncEagerStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        async for piece in reader:
            yield piece


EAGER_STREAMS = [EagerStream, AsyncEagerStream]


def _told(data: bytes, path: str, etl_args: str) -> bytes:
    return json.dumps([len(data), path, etl_args]).encode()


class Told(ETLServer):
    """Returns what it was told, as JSON: the object's size, its path, the arguments."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return _told(data, path, etl_args)


class ToldStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield _told(reader.read(), path, etl_args)


class AsyncToldStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        yield _told(await reader.read(), path, etl_args)


ALL_TOLD = [Told, ToldStream, AsyncToldStream]


class Empty(ETLServer):
    """Makes an empty object of every object."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return b""


class EmptyStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        reader.read()
        yield from ()


class AsyncEmptyStream(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        await reader.read()
        yield b""


ALL_EMPTY = [Empty, EmptyStream, AsyncEmptyStream]


class Swallowing(ETLServer):
    """Makes do with what it got when its object breaks off: what comes of that is no object."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        try:
            yield reader.read()
        except Exception:
            yield b"made do with what there was"


class AsyncSwallowing(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        try:
            yield await reader.read()
        except Exception:
            yield b"made do with what there was"


SWALLOWING = [Swallowing, AsyncSwallowing]
