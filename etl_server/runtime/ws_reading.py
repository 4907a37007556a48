"""How a WebSocket is read: large messages are taken past picows, all else is its own."""

from __future__ import annotations

import asyncio
import io
from typing import Protocol

from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stubs lack it

try:
    from websockets.speedups import apply_mask
except ImportError:  # there is no wheel for this machine
    from websockets.utils import apply_mask

from .flow import ReadBuffer

LARGE = 128 * 1024
"""Bytes from which a message is large."""
LARGEST = 8 * 1024 * 1024
"""Bytes up to which there is room for a message before it has come."""
KEPT = 2 * 1024 * 1024
"""Bytes of room that a connection keeps for its next large message."""
SMALL_FRAMES = 64
"""Frames in a row, none of them large, after which a connection is left to picows."""

_MASKED, _LONG = 0x80, 127
_LARGE_BEGINS = bytes((0x82, _MASKED | _LONG))
"""How the frame of a large message begins: binary, whole, masked, with a length of eight bytes (RFC 6455, 5.2)."""
_LARGE_HEAD = 14
"""Bytes of its head."""


class LargeMessages(Protocol):
    """Who takes large messages."""

    def takes_large(self) -> bool:
        """Whether one may come now."""

    def take_large(self, message: bytes) -> None:
        """A binary message is here."""


class Reading(asyncio.BufferedProtocol):
    """What the transport talks to in place of picows' protocol.

    picows takes a message out of the buffer that it has read into and unmasked it in. For a large one, which does not
    stay in the processor's cache meanwhile, that is a tenth of all that it costs.
    """

    def __init__(
        self, protocol: WSProtocol, transport: asyncio.Transport, buffer: ReadBuffer, taker: LargeMessages
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._buffer = buffer.small
        self._head = b""
        """What has come of a frame's head, if that is not all of it."""
        self._rest = 0
        """Bytes that are still to come of a frame of picows'."""
        self._small_frames = 0
        self._room = memoryview(bytearray())
        self._size = 0
        """Bytes of the large message that is coming; 0: none is."""
        self._filled = 0
        self._mask = b""
        self._taker = taker
        vars(self).update(
            connection_lost=protocol.connection_lost,
            eof_received=protocol.eof_received,
            pause_writing=protocol.pause_writing,
            resume_writing=protocol.resume_writing,
        )

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self._filled : self._size] if self._size else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._size:
            self._fill(nbytes)
        else:
            self.take(self._buffer[:nbytes])

    def take(self, data: memoryview) -> None:
        """Go through what has come, frame by frame."""
        if self._head:
            data = memoryview(self._head + data)
            self._head = b""
        start, end = 0, self._rest  # what lies between them is picows'
        while end < len(data):
            head = bytes(data[end : end + _LARGE_HEAD])
            size = _frame_size(head)
            if not size:
                self._head = head
                data = data[:end]
                break
            if head[:2] == _LARGE_BEGINS and LARGE <= size - _LARGE_HEAD <= LARGEST:
                self.pass_on(data[start:end])
                if self._taker.takes_large():
                    start = end = self._begin(data, end, size - _LARGE_HEAD)
                    continue
                start = end
            end += size
            self._small_frames += 1
            if self._small_frames > SMALL_FRAMES:
                self._transport.set_protocol(self._protocol)
                self.pass_on(data[start:])
                return
        self._rest = end - len(data)
        self.pass_on(data[start:])

    def pass_on(self, data: memoryview) -> None:
        """Give bytes to picows."""
        while data:
            buffer = self._protocol.get_buffer(len(data))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self._protocol.buffer_updated(count)
            data = data[count:]

    def _begin(self, data: memoryview, start: int, size: int) -> int:
        """A large message begins; returns where in `data` it ends, as far as it has come."""
        self._small_frames = 0
        if len(self._room) < size:
            # Of such zeros the system makes memory as they are written over: a head alone costs nothing.
            self._room = io.BytesIO(bytes(size)).getbuffer()
        start += _LARGE_HEAD
        self._mask = bytes(data[start - 4 : start])
        here = data[start : start + size]
        self._room[: len(here)] = here
        self._size, self._filled = size, 0
        self._fill(len(here))
        return start + len(here)

    def _fill(self, count: int) -> None:
        self._filled += count
        if self._filled < self._size:
            return
        message = apply_mask(self._room[: self._size], self._mask)
        self._size = 0
        if len(self._room) > KEPT:
            self._room = memoryview(bytearray())
        self._taker.take_large(message)


def _frame_size(head: bytes) -> int:
    """Bytes of a frame, its head included; 0: its head has to come first."""
    if len(head) < 2:
        return 0
    size = head[1] & 0x7F
    mask = 4 if head[1] & _MASKED else 0
    if size < 126:
        return 2 + mask + size
    extended = 8 if size == _LONG else 2
    if len(head) < 2 + extended + mask:
        return 0
    return 2 + extended + mask + int.from_bytes(head[2 : 2 + extended], "big")
