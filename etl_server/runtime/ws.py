"""A WebSocket of picows as the data path's socket: what serves `/ws` under `etl-server serve`."""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import TYPE_CHECKING, Any

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport
from picows.picows import WSAutoPingStrategy, WSProtocol  # type: ignore[attr-defined]  # its stubs lack it

from .flow import SMALL
from .websocket import Session
from .worker import Worker
from .ws_reading import Reading

if TYPE_CHECKING:
    from uvicorn.server import ServerState

LARGEST_MESSAGE = 16 * 1024**3
"""Bytes of a message, as a target's limit."""
CLOSE_TIMEOUT = 10.0
"""Seconds that the other side has to answer a close."""
PROTOCOL_ERROR = 1002
MESSAGE_TOO_BIG = 1009
SERVICE_RESTART = 1012

_READ_BUFFER = 64 * 1024
BINARY = WSMsgType.BINARY
_TEXT, _BINARY = 0x81, 0x82
"""The first byte of a frame that is a whole message: its last part, and its kind."""
_logger = logging.getLogger("picows")


def upgrade(transport: asyncio.Transport, head: bytes, rest: bytes, worker: Worker, state: ServerState) -> None:
    """Hand a connection over to picows: the request that asked for it, and what came behind that."""
    connection = _Connection(worker, state)
    protocol = WSProtocol(
        None,  # host and port: a client's
        None,  # path: a client's
        False,  # not a client
        lambda _: connection,
        _logger,
        True,  # disconnect on exceptions
        CLOSE_TIMEOUT,  # of the handshake, which is here already
        False,  # no keep-alive pings: while all of a connection's objects are in work, nothing is read, no pong either
        20,
        20,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        True,  # answer pings
        LARGEST_MESSAGE,
        None,  # headers: a client's
        _READ_BUFFER,
    )
    protocol.connection_made(transport)
    reading = Reading(protocol, transport, worker.read_buffer, connection)
    transport.set_protocol(reading)
    reading.pass_on(memoryview(head))
    if rest and not transport.is_closing():
        reading.take(memoryview(rest))


def _frame_head(opcode: int, size: int) -> bytes:
    """The head of an unmasked frame that is a whole message (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((opcode, size))
    return struct.pack("!BBH", opcode, 126, size) if size < 1 << 16 else struct.pack("!BBQ", opcode, 127, size)


class _Connection(WSListener):
    """One connection, and the `Socket` of its session."""

    def __init__(self, worker: Worker, state: ServerState) -> None:
        super().__init__()
        self._worker = worker
        self._state = state
        self._parts: list[bytes] = []
        self._size = 0
        self._refused = False
        self._kind = WSMsgType.BINARY
        self._closing: asyncio.TimerHandle | None = None
        self._reading = True
        self._wanted = True
        self._writable = True
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        """What is to be sent at the end of this round of the loop."""
        self._unsent_size = 0
        self._flushing = False

    # picows' callbacks

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._stream: Any = transport.underlying_transport
        self._session = Session(self._worker, self)
        self._state.connections.add(self)  # type: ignore[arg-type]  # it can be shut down, which is all that is asked

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._refuse(PROTOCOL_ERROR, "a reserved bit is set, as of an extension that was not agreed on")
            return
        if kind == BINARY and frame.fin and not self._parts and self._closing is None and not self._refused:
            self._session.feed(frame.get_payload_as_bytes())
            return
        if kind == WSMsgType.CLOSE:
            self._flush()
            if not transport.is_close_frame_sent:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        if kind not in (WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION):
            return
        if self._closing is not None or self._refused:
            return
        if (kind == WSMsgType.CONTINUATION) != bool(self._parts):
            self._refuse(PROTOCOL_ERROR, "a message begins within another one, or goes on that has not begun")
            return
        if frame.fin and not self._parts:
            self._feed(kind, frame.get_payload_as_bytes())
            return
        if kind != WSMsgType.CONTINUATION:
            self._kind = kind
        self._size += frame.payload_size
        if self._size > LARGEST_MESSAGE:
            self._refuse(MESSAGE_TOO_BIG, "the message is too big")
            return
        self._parts.append(frame.get_payload_as_bytes())
        if frame.fin:
            message = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._feed(self._kind, message)

    def takes_large(self) -> bool:
        """Whether a message may come now that picows does not see."""
        return not (self._parts or self._refused or self._transport.is_close_frame_sent)

    def take_large(self, message: bytes) -> None:
        """A message has come that picows has not seen."""
        self._session.feed(message)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._state.connections.discard(self)
        if self._closing is not None:
            self._closing.cancel()
        self._session.gone()

    def pause_writing(self) -> None:
        self._writable = False
        self._set_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._set_reading()

    # The session's socket

    def send(self, message: bytes | str) -> None:
        # Past picows, which makes a system call of each frame: what is small waits for the end of the loop's round.
        if isinstance(message, bytes):
            head, data = _frame_head(_BINARY, len(message)), message
        else:
            data = message.encode()
            head = _frame_head(_TEXT, len(data))
        self._unsent += (head, data)
        self._unsent_size += len(data)
        if self._unsent_size > SMALL:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_round)

    def _flush_round(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        unsent, size = self._unsent, self._unsent_size
        if not unsent or self._stream.is_closing():
            return
        self._unsent, self._unsent_size = [], 0
        if size > SMALL:
            self._stream.writelines(unsent)
        else:
            self._stream.write(b"".join(unsent))

    def close(self, code: int, reason: str) -> None:
        self._flush()
        self._transport.send_close(WSCloseCode(code), reason.encode())
        self._closing = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._transport.disconnect)
        self._wanted = True
        self._set_reading()

    def pause(self) -> None:
        self._wanted = False
        self._set_reading()

    def resume(self) -> None:
        self._wanted = True
        self._set_reading()

    @property
    def unsent(self) -> int:
        """Bytes of answers that wait for the client to take them."""
        return int(self._stream.get_write_buffer_size())

    # uvicorn's, when the server shuts down

    def shutdown(self) -> None:
        if self._closing is None:
            self._session.fail(SERVICE_RESTART, "the server is stopping")

    def _refuse(self, code: int, reason: str) -> None:
        if not self._refused and self._closing is None:
            self._refused = True
            self._parts.clear()
            self._session.fail(code, reason)

    def _feed(self, kind: WSMsgType, data: bytes) -> None:
        if kind == WSMsgType.BINARY:
            self._session.feed(data)
        else:
            self._session.feed(data.decode(errors="replace"))

    def _set_reading(self) -> None:
        """Read while messages are wanted, and while the other side takes its answers."""
        reading = self._wanted and (self._writable or self._closing is not None)
        if reading != self._reading and not self._stream.is_closing():
            self._reading = reading
            if reading:
                self._stream.resume_reading()
            else:
                self._stream.pause_reading()
