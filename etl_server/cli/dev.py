"""`etl-server dev`: try a class out on a folder, through every way that the protocol knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .serve import ClassArgument

if TYPE_CHECKING:
    from ..testing import Driver, DriverSocket, Message, Reply, Target

DATA = "data"
OUT = "out"
ECHO = "etl_server.testing.echo:Echo"
OBJECTS_FAILED = 1


@dataclass
class Row:
    """One object, sent one way."""

    object: str
    way: str
    bytes_in: int
    bytes_out: int
    ms: float
    ok: bool
    error: str = ""


def dev(
    spec: ClassArgument,
    data: Annotated[Path, typer.Option(help="Folder of objects to transform.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for what direct put delivers.  [a temporary one]", file_okay=False)
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the server; 0: any.")] = 8000,
    etl_args: Annotated[str, typer.Option(help="Arguments for the transform.")] = "",
    once: Annotated[bool, typer.Option("--once", help="End after the table; exit 1 if a row failed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of the table.")] = False,
) -> None:
    """Try a class out on a folder.

    Starts a target over the folder and a server of the class, and sends every object through each way that a target
    knows: push, pull, by file path, WebSocket, and a two-stage pipeline with direct put. Then keeps serving.

    Example: etl-server dev examples/thumbnail.py --data examples/data/images
    """
    from ..loading import load_class

    load_class(spec)
    with contextlib.ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-server-dev-")))
        failed = asyncio.run(_dev(spec, data.resolve(), out.resolve(), port, etl_args, once, as_json))
    raise typer.Exit(OBJECTS_FAILED if failed else 0)


async def _dev(spec: str, data: Path, out: Path, port: int, etl_args: str, once: bool, as_json: bool) -> bool:
    from ..testing import Driver, Target

    stopped = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, stopped.set)
    with Target({DATA: data, OUT: out}) as target:
        names = target.names(DATA)
        if not names:
            raise ConfigError(f"--data {data}: expected a folder with at least one file")
        environment = {"AIS_TARGET_URL": target.url, "DIRECT_PUT": "true", "ETL_FQN_ROOTS": str(data)}
        environment |= {"ETL_SOURCE": "", "ETL_SINK": ""}  # it is the target's objects that are tried
        with (
            _server(spec, port or _free_port(), environment) as server,
            _server(ECHO, _free_port(), environment) as echo,
        ):
            async with Driver(server.url, target) as driver, Driver(echo.url, target) as echo_driver:
                await _until(stopped, asyncio.gather(server.ready(driver), echo.ready(echo_driver)))
                if stopped.is_set():
                    return False
                trial = _Trial(driver, target, echo.url, etl_args)
                failed = await _until(stopped, _show(trial.run(names), len(names) * len(trial.ways), as_json))
                if not once and not stopped.is_set():
                    _explain(server.url, target, names[0], out, etl_args)
                    await stopped.wait()
                return bool(failed)


class _Trial:
    """Sends objects through the ways, and judges what comes back."""

    def __init__(self, driver: Driver, target: Target, echo_url: str, etl_args: str) -> None:
        self._driver = driver
        self._target = target
        self._echo_url = echo_url
        self._etl_args = etl_args
        self.ways: dict[str, Callable[[str], Awaitable[int]]] = {
            "push": self._push,
            "pull": self._pull,
            "file": self._file,
            "websocket": self._websocket,
            "pipeline": self._pipeline,
        }

    async def run(self, names: list[str]) -> AsyncIterator[Row]:
        for name in names:
            size = self._target.path(DATA, name).stat().st_size
            for way, send in self.ways.items():
                started = time.perf_counter()
                written, error = 0, ""
                try:
                    written = await send(name)
                except Exception as failure:
                    error = str(failure) or type(failure).__name__
                elapsed = (time.perf_counter() - started) * 1000
                yield Row(name, way, size, written, round(elapsed, 1), not error, error)

    async def _push(self, name: str) -> int:
        return _content(await self._driver.push(DATA, name, etl_args=self._etl_args))

    async def _pull(self, name: str) -> int:
        return _content(await self._driver.pull(DATA, name, etl_args=self._etl_args))

    async def _file(self, name: str) -> int:
        path = str(self._target.path(DATA, name))
        return _content(await self._driver.push(DATA, name, fqn=path, etl_args=self._etl_args))

    async def _websocket(self, name: str) -> int:
        socket: DriverSocket
        async with self._driver.websocket() as socket:
            await socket.send(name, self._target.read(DATA, name), etl_args=self._etl_args)
            message: Message = await socket.receive()
        if message.kind != "binary":
            raise RuntimeError(f"{message.kind} {message.code or ''} {message.reason or message.data!r}")
        return len(message.data)

    async def _pipeline(self, name: str) -> int:
        stages = [self._echo_url, self._target.destination(OUT, name)]
        reply = await self._driver.push_retrying(
            DATA, name, data=self._target.read(DATA, name), etl_args=self._etl_args, pipeline=stages
        )
        if reply.delivered is None:
            raise RuntimeError(_failure(reply))
        stored = self._target.path(OUT, name).stat().st_size
        if stored != reply.delivered:
            raise RuntimeError(f"{reply.delivered} bytes acknowledged, {stored} stored")
        return stored


def _content(reply: Reply) -> int:
    if reply.status != 200:
        raise RuntimeError(_failure(reply))
    return len(reply.body)


def _failure(reply: Reply) -> str:
    text = reply.body[:300].decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(reply.body)["detail"]
    return f"{reply.status} {text}"


class _ServerProcess:
    """A running `etl-server serve`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self.url = url

    async def ready(self, driver: Driver) -> None:
        """Wait until it serves. What keeps it from that, it has said on stderr."""
        waiting = asyncio.create_task(driver.wait_until_ready(600))
        try:
            while not waiting.done():
                if self._process.poll() is not None:
                    raise ConfigError(f"the server ended with exit code {self._process.returncode} before it was ready")
                await asyncio.wait((waiting,), timeout=0.1)
            await waiting
        finally:
            waiting.cancel()


@contextlib.contextmanager
def _server(spec: str, port: int, environment: dict[str, str]) -> Iterator[_ServerProcess]:
    command = [sys.executable, "-m", "etl_server", "serve", spec, "--host", "127.0.0.1", "--port", str(port)]
    defaults = {"ETL_WORKERS": "1", "ETL_LOG_LEVEL": "warning"}
    process = subprocess.Popen(command, env={**defaults, **os.environ, **environment})  # noqa: S603
    try:
        yield _ServerProcess(process, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until(stopped: asyncio.Event, work: Awaitable[Any]) -> Any:
    """The result of `work`, or None if Ctrl-C comes first."""
    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(rows: AsyncIterator[Row], count: int, as_json: bool) -> bool:
    """Show the rows as they come; returns whether one failed."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    shown: list[Row] = []
    progress = iter(track(range(count), "Transforming", console=Console(stderr=True), transient=True))
    plain = as_json or not console.is_terminal
    async for row in rows:
        next(progress, None)
        shown.append(row)
        if as_json:
            print(json.dumps(asdict(row)), flush=True)
        elif plain:
            print(*_cells(row), sep="\t", flush=True)
    next(progress, None)
    failed = [row for row in shown if not row.ok]
    if not as_json:
        if not plain:
            console.print(_table(shown))
        total = sum(row.bytes_in for row in shown), sum(row.bytes_out for row in shown)
        print(f"{len(shown)} rows, {len(failed)} failed, {total[0]:,} bytes in, {total[1]:,} bytes out", flush=True)
    return bool(failed)


def _cells(row: Row) -> tuple[str, ...]:
    outcome = "ok" if row.ok else f"FAILED {row.error}"
    return row.object, row.way, f"{row.bytes_in:,}", f"{row.bytes_out:,}", f"{row.ms:.1f}", outcome


def _table(rows: list[Row]) -> Any:
    from rich.table import Table

    table = Table("object", "way")
    for title in ("bytes in", "bytes out", "ms"):
        table.add_column(title, justify="right")
    table.add_column("ok")
    previous = ""
    for row in rows:
        if previous and row.object != previous:
            table.add_section()
        name, *cells = _cells(row)
        table.add_row("" if row.object == previous else name, *cells, style="" if row.ok else "red")
        previous = row.object
    return table


def _explain(url: str, target: Target, name: str, out: Path, etl_args: str) -> None:
    from urllib.parse import quote_plus

    from ..wire.names import encode_object_path, encode_uname

    query = f"?etl_args={quote_plus(etl_args)}" if etl_args else ""
    pushed = shlex.quote(f"{url}/{encode_object_path(f'{DATA}/{name}')}{query}")
    pulled = shlex.quote(f"{url}/{encode_uname(target.uname(DATA, name))}{query}")
    file = shlex.quote(str(target.path(DATA, name)))
    destination = shlex.quote(f"ais-node-url: {target.destination(OUT, name)}")
    print(
        f"\nServing until Ctrl-C. Try:\n\n"
        f"  push         curl -sS -T {file} {pushed} -o result\n"
        f"  pull         curl -sS {pulled} -o result\n"
        f"  direct put   curl -sS -i -T {file} -H {destination} {pushed}\n"
        f"               … which stores it below {out}\n"
        f"  health       curl -sS {url}/health\n",
        flush=True,
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
