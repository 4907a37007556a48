"""A stream of an object behind a network, which survives that its connection is cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from ..errors import ObjectStoreError, ObjectStoreTransientError
from .retry import RetryPolicy
from .span import Span


class Body(Protocol):
    """The body of an answer: an object from some byte on."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. Raises `ObjectStoreTransientError` when the connection is cut."""

    def close(self) -> None: ...


class RangeBody(Body, Protocol):
    """The body of an answer that says what it is of."""

    etag: str | None
    """That of the object."""
    stop: int
    """The byte behind its last one, counted from the object's beginning."""


def open_range(
    get: Callable[[int, int | None], RangeBody | None],
    uri: str,
    start: int,
    stop: int | None,
    etag: str | None,
    policy: RetryPolicy,
) -> ResumingReader:
    """A stream of a range of an object, or of what of it there is, that is never of two objects.

    Args:
        get: asks for a range, once; None: the object ends before.
        uri: the object, for messages.
        start: the first byte.
        stop: the byte behind the last one; None: the object's end.
        etag: that of the object that is meant; None: that which is there.
        policy: how often it is asked.
    """

    replaced = ObjectStoreError(f"{uri} was replaced while it was read")

    def open_first() -> RangeBody | None:
        body = get(start, stop)
        if body is not None and etag not in (None, body.etag):
            body.close()
            raise replaced
        return body

    first = policy.call(open_first)
    if first is None:
        return empty_reader(start, policy)
    known = (first.etag, first.stop)

    def open_again(position: int) -> Body:
        body = get(position, known[1])
        if body is None:
            raise replaced
        if (body.etag, body.stop) != known:
            body.close()
            raise replaced
        return body

    return ResumingReader(open_again, start, first.stop, policy, first)


def empty_reader(position: int, policy: RetryPolicy) -> ResumingReader:
    """A stream without a byte in it."""

    def never(position: int) -> Body:
        raise AssertionError(f"no byte is asked for from {position} on")

    return ResumingReader(never, position, position, policy)


def range_header(start: int, stop: int | None) -> dict[str, str]:
    """The `Range` of a request, as botocore and requests want it; none for the whole object."""
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}


def answered_stop(uri: str, start: int, stop: int | None, content_range: str, content_length: int) -> int:
    """The byte behind the last one of an answer to a request for a range.

    Raises:
        ObjectStoreError: it is an answer to another request.
    """
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
    if given is None and start == 0:
        return content_length if stop is None else min(stop, content_length)
    answered = int(given[2]) + 1 if given is not None else 0
    if given is None or int(given[1]) != start or (given[3] != "*" and answered != _end(stop, int(given[3]))):
        asked = f"{start} to {'the end' if stop is None else stop}"
        raise ObjectStoreError(f"{uri}: asked for the bytes {asked}, the server gave others: {content_range or 'all'}")
    return answered


def _end(stop: int | None, size: int) -> int:
    return size if stop is None else min(stop, size)


class ResumingReader(Span):
    """The bytes `start` to `stop` (not included) of an object.

    A read that fails is tried again on a new connection, from where it was. It ends at `stop` and never before.
    """

    def __init__(
        self, open_at: Callable[[int], Body], start: int, stop: int, policy: RetryPolicy, first: Body | None = None
    ) -> None:
        """
        Args:
            open_at: asks for the object from this byte on.
            start: the first byte.
            stop: the byte behind the last one.
            policy: how often a read is tried without getting anything.
            first: the body from `start` on, if it is open already.
        """
        super().__init__(start, stop)
        self._open_at = open_at
        self._policy = policy
        self._body = first
        self._body_position = start

    def _read_into(self, view: memoryview) -> int:
        data = self._policy.call(lambda: self._read(len(view)))
        view[: len(data)] = data
        self._body_position = self._position + len(data)
        return len(data)

    def readall(self) -> bytes:
        """All that is left. What comes in one piece, as it mostly does, is not copied."""
        pieces = []
        while self._position < self._stop:
            pieces.append(self._policy.call(lambda: self._read(self._stop - self._position)))
            self._position += len(pieces[-1])
            self._body_position = self._position
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, size: int) -> bytes:
        if self._body_position != self._position:  # somebody has sought meanwhile
            self._drop()
        try:
            if self._body is None:
                self._body = self._open_at(self._position)
            data = self._body.read(size)
            if not data:
                raise ObjectStoreTransientError(f"The object ended {self._stop - self._position} bytes early")
        except BaseException:
            self._drop()
            raise
        return data

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        """Close the connection, or give it back if everything was read."""
        if not self.closed:
            self._drop()
        super().close()
