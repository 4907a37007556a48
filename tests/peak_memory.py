"""How much memory a server of streams takes at its peak: `python -m tests.peak_memory [MIB]`, from the project's root.

A server process passes an object through, in each way that an object can come and go. Its peak (`VmHWM`) is set against
what it had before.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, quote_plus

from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

from etl_server import AsyncReader, ETLServer
from etl_server.testing import Target
from tests.helpers import ServerProcess, ais_file

MIB = 1 << 20
SOURCES = ("pushed", "pulled", "downloaded", "file")
DELIVERIES = ("inline", "direct put")


class Pass(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        while piece := reader.read(256 * 1024):
            yield piece


class AsyncPass(ETLServer):
    async def transform_stream(self, reader: AsyncReader, path: str, etl_args: str) -> AsyncIterator[bytes]:
        async for piece in reader:
            yield piece


class Peak(NamedTuple):
    """What one object took."""

    cls: str
    source: str
    delivery: str
    arrived: int
    """Bytes that came out."""
    growth: int
    """Bytes of memory at the peak, beyond what the server had before."""
    memory: int
    """Bytes of memory at the peak, in all."""


async def measure(
    cls: type[ETLServer],
    size: int,
    folder: Path,
    sources: tuple[str, ...] = SOURCES,
    deliveries: tuple[str, ...] = DELIVERIES,
) -> list[Peak]:
    """Stream an object of `size` bytes through a server, each way in turn; `folder` is for sparse files."""
    arrived = 0

    async def swallow(request: web.Request) -> web.StreamResponse | None:
        nonlocal arrived
        if request.method != "PUT":
            return None
        async for chunk in request.content.iter_any():
            arrived += len(chunk)
        return web.Response()

    file = ais_file(folder, "zeros", b"")
    with file.open("wb") as zeros:
        zeros.truncate(size)
    peaks: list[Peak] = []
    with Target({"src": file.parent, "dst": folder / "dst"}, on_request=swallow) as target:
        environment = {"AIS_TARGET_URL": target.url}
        with ServerProcess.serve(f"tests.peak_memory:{cls.__name__}", environment=environment) as server:
            server.wait_until_listening()
            async with ClientSession(server.url, timeout=ClientTimeout(None)) as session:
                # What the first objects load is no part of a stream.
                for source in ("pushed", "file"):
                    await _stream(session, target, source, "inline", ais_file(folder, "small", b"small"), 5)
                for source in sources:
                    for delivery in deliveries:
                        before = memory_of(server.pid, "VmRSS")
                        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
                        arrived = 0
                        answered = await _stream(session, target, source, delivery, file, size)
                        memory = memory_of(server.pid, "VmHWM")
                        peaks.append(Peak(cls.__name__, source, delivery, answered + arrived, memory - before, memory))
    return peaks


async def _stream(session: ClientSession, target: Target, source: str, delivery: str, file: Path, size: int) -> int:
    """Send one object; returns how many bytes were answered inline."""
    headers = {"ais-node-url": target.destination("dst", "a")} if delivery == "direct put" else {}
    uname = quote(target.uname("src", "zeros"), safe="@")
    method, path, body = "PUT", "/src/zeros", None
    if source == "pushed":
        body = _zeros(size)
    elif source == "pulled":
        method, path = "GET", f"/{uname}"
    elif source == "downloaded":
        method, path = "POST", f"/download?object_to=zeros&original_url={quote_plus(f'{target.url}/{uname}')}"
    else:
        path += f"?etl_fqn={quote_plus(quote(str(file), safe=''))}"
    size = 0
    async with session.request(method, URL(path, encoded=True), data=body, headers=headers) as response:
        assert response.status == (204 if headers else 200), await response.text()
        async for chunk in response.content.iter_any():
            size += len(chunk)
    return size


async def _zeros(size: int) -> AsyncIterator[bytes]:
    piece = bytes(MIB)
    while size > 0:
        yield piece[:size]
        size -= MIB


def memory_of(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no {name}")


def main() -> None:
    size = int(sys.argv[1]) * MIB if len(sys.argv) > 1 else 2048 * MIB
    with tempfile.TemporaryDirectory() as folder:
        for cls in (Pass, AsyncPass):
            for peak in asyncio.run(measure(cls, size, Path(folder))):
                print(
                    f"{peak.cls:10} {peak.source:10} {peak.delivery:10} {peak.arrived / MIB:8.0f} MiB"
                    f" through {peak.growth / MIB:6.1f} MiB; {peak.memory / MIB:.0f} MiB in all"
                )


if __name__ == "__main__":
    main()
