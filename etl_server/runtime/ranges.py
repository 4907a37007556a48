"""A part of a result: what `Range` asks for, on constant memory also where the result is a stream."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from ..errors import RangeError, UpstreamUnreachableError
from .exchange import Answer
from .flow import Batch, BatchStream

HELD = 1024 * 1024
"""Bytes of a stream's range that are held, so that it takes one run of the transform."""

Again = Callable[[], Awaitable[bytes | BatchStream]]
"""Transforms the same object once more."""


class ByteRange(NamedTuple):
    """A range as it is asked for: the bytes `first` to `last` (included), or, without `first`, so many last ones."""

    first: int | None
    last: int | None

    def of(self, size: int) -> tuple[int, int]:
        """The bytes of a result of `size` bytes: from, and to (not included).

        Raises:
            RangeError: it holds none of them.
        """
        if self.first is None:
            start, stop = max(0, size - (self.last or 0)), size
        else:
            start, stop = self.first, size if self.last is None else min(size, self.last + 1)
        if start >= stop:
            raise RangeError(size)
        return start, stop


def asked_range(headers: Iterable[tuple[bytes, bytes]]) -> ByteRange | None:
    """The one range that a request asks for. None: the whole, also of a request for several, or one that is malformed.

    What is asked for only if the result is still the same (`If-Range`) is the whole too: results have no version.
    """
    text = ""
    for name, value in headers:
        name = name.lower()
        if name == b"if-range":
            return None
        if name == b"range":
            text = value.decode("latin-1").strip()
    match = re.fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})", text, re.IGNORECASE)
    if match is None or match[1] == match[2] == "":
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


async def ranged(answer: Answer, method: str, headers: Iterable[tuple[bytes, bytes]], again: Again) -> Answer:
    """The answer to a GET or a HEAD of a result, of which `answer` is the whole.

    A HEAD's has no body, and a length where the result is whole. A range of a stream is taken out of it while it
    passes. Where it is large or reaches to the end, whose place nobody knows before, the object is transformed twice:
    first to count, then to answer.

    Raises:
        RangeError: the range holds none of the result.
    """
    answer = answer._replace(headers=(*answer.headers, ("accept-ranges", "bytes")))
    content = answer.body
    if method == "HEAD":
        if not isinstance(content, bytes):
            await content.aclose()
            content = b""
        return answer._replace(body=content)
    wanted = asked_range(headers)
    if wanted is None:
        return answer
    if not isinstance(content, bytes):
        if wanted.first is not None and wanted.last is not None and wanted.last - wanted.first < HELD:
            return await _held(answer, content, wanted.first, wanted.last + 1)
        size = await _count(content)
        start, stop = wanted.of(size)
        content = await again()
        if not isinstance(content, bytes):
            return _partial(answer, _Slice(content, start, stop, size), start, stop, str(size))
    start, stop = wanted.of(len(content))
    return _partial(answer, content[start:stop], start, stop, str(len(content)))


def _partial(answer: Answer, body: bytes | BatchStream, start: int, stop: int, size: str) -> Answer:
    headers = (*answer.headers, ("content-range", f"bytes {start}-{stop - 1}/{size}"))
    return answer._replace(status=206, body=body, headers=headers, length=stop - start)


async def _held(answer: Answer, stream: BatchStream, start: int, stop: int) -> Answer:
    """A small range, for which no more of the stream is made than that takes."""
    held = bytearray()
    position = 0
    try:
        async for batch in stream:
            for piece in batch:
                held += _cut(piece, position, start, stop)
                position += len(piece)
            if position >= stop:
                return _partial(answer, bytes(held), start, stop, "*")
    finally:
        await stream.aclose()
    start, stop = ByteRange(start, stop - 1).of(position)
    return _partial(answer, bytes(held), start, stop, str(position))


async def _count(stream: BatchStream) -> int:
    try:
        return sum([sum(map(len, batch)) async for batch in stream])
    finally:
        await stream.aclose()


def _cut(piece: bytes, position: int, start: int, stop: int) -> bytes:
    """What a piece at a position has of a range."""
    return piece[max(0, start - position) : max(0, stop - position)]


class _Slice(BatchStream):
    """The bytes `start` to `stop` (not included) of a stream that has `size`, all of which are to be there."""

    def __init__(self, stream: BatchStream, start: int, stop: int, size: int) -> None:
        self._stream = stream
        self._start = start
        self._stop = stop
        self._size = size
        self._position = 0

    async def __anext__(self) -> Batch:
        while self._position < self._stop:
            try:
                batch = await anext(self._stream)
            except StopAsyncIteration:
                raise UpstreamUnreachableError("the second run of the transform made less than the first") from None
            wanted: Batch = []
            for piece in batch:
                if cut := _cut(piece, self._position, self._start, self._stop):
                    wanted.append(cut)
                self._position += len(piece)
            if self._position >= self._stop == self._size:
                await self._check_end()
            if wanted:
                return wanted
        raise StopAsyncIteration

    async def _check_end(self) -> None:
        """Before the last bytes leave: a range that is to reach to the end does, and the stream did not fail there."""
        async for batch in self._stream:
            self._position += sum(map(len, batch))
        if self._position != self._size:
            raise UpstreamUnreachableError("the second run of the transform made more than the first")

    async def aclose(self) -> None:
        await self._stream.aclose()
