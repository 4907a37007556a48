"""An HTTP client that sends what it is told to, byte for byte, and sees how exactly an answer ends."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 10.0
"""Seconds to wait for an answer."""


class RawAnswer(NamedTuple):
    """An answer, and whether it came to its proper end."""

    status: int
    """0: there was none, the connection was closed."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    whole: bool
    """False: the connection was cut before the body's length, or its last chunk, had come."""


class RawClient:
    """One connection to a server on this machine. An async context manager."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes | str) -> None:
        """Send as it is."""
        self.writer.write(data if isinstance(data, bytes) else data.encode("latin-1"))
        await self.writer.drain()

    async def put(self, path: str, body: bytes, headers: str = "") -> None:
        """Send a PUT with its length; `headers` are whole lines."""
        await self.send(
            f"PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
        )

    async def get(self, path: str) -> None:
        """Send a GET."""
        await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")

    async def start_chunked(self, path: str, headers: str = "") -> None:
        """Send the head of a chunked PUT; `headers` are whole lines."""
        await self.send(f"PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}Transfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """Send a chunk; an empty one is the end."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def go_away(self) -> None:
        """Close without a word."""
        self.writer.close()

    def reset(self) -> None:
        """Let the server's connection end in an error."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: there is none.
        """
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode("latin-1")
        start, *lines = head.split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return int(start.split(" ")[1]), headers

    async def next_chunk(self) -> bytes:
        """The next chunk of a chunked answer; empty: the last one.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: the connection was cut.
        """
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), PATIENCE), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)
        await self.reader.readexactly(2)
        return data

    async def answer(self, method: str = "PUT") -> RawAnswer:
        """The next answer, interim ones passed over."""
        status = 0
        headers: dict[str, str] = {}
        body = bytearray()
        try:
            while status < 200:
                status, headers = await self.head()
            if method == "HEAD" or status in (204, 304):
                pass
            elif headers.get("transfer-encoding") == "chunked":
                while chunk := await self.next_chunk():
                    body += chunk
            else:
                length = int(headers["content-length"])
                while len(body) < length:
                    data = await asyncio.wait_for(self.reader.read(length - len(body)), PATIENCE)
                    if not data:
                        return RawAnswer(status, headers, bytes(body), whole=False)
                    body += data
        except (asyncio.IncompleteReadError, ConnectionError):
            return RawAnswer(status, headers, bytes(body), whole=False)
        return RawAnswer(status, headers, bytes(body), whole=True)

    async def closed(self) -> bytes:
        """What still comes until the server closes the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        except ConnectionError:
            return b""
