"""Serve with uvicorn: in this process, or in several that share a socket."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from ..config import Settings
from ..errors import ConfigError, ETLError
from ..server import ETLServer
from .app import ETLApp, create_app
from .http import ObjectProtocol
from .logs import configure_logging
from .stores import check_stores
from .ws import LARGEST_MESSAGE

MakeServer = Callable[[], ETLServer]
"""Makes the instance that a process serves. For several processes it must be picklable."""

STARTUP_FAILURE = 3
KEEP_ALIVE = 120
"""Seconds that an idle connection is kept: longer than a target keeps its own, so that it is the one to close it."""
BACKLOG = 4096
SWITCH_INTERVAL = 0.0005
"""Seconds for which a thread that computes keeps the interpreter while the event loop wants it."""
POLL_INTERVAL = 0.2
"""Seconds between two looks at whether the workers live."""
STOP_GRACE = 5.0
"""Seconds beyond `ETL_DRAIN_TIMEOUT` after which a worker is killed."""
MOST_KEPT = 128 * 1024**2
"""Bytes of freed memory that a process keeps at the most; never more than a quarter of what objects may take up."""
LARGEST_KEPT = 32 * 1024**2
"""Bytes from which a block goes back to the system at once; glibc takes no larger value."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The parameters of glibc's mallopt(3)."""
RESPAWN_DELAY = 1.0
"""Seconds to wait before a worker that died is started again."""

logger = logging.getLogger("etl_server.serve")


def serve_instance(server: ETLServer, host: str | None = None, port: int | None = None) -> None:
    """Serve an instance in this process. With `ETL_WORKERS` above 1, further processes make their own of its class."""
    settings = server.settings.model_copy(
        update={name: value for name, value in (("host", host), ("port", port)) if value is not None}
    )
    if settings.workers == 1:
        code = run(lambda: server, settings)
    else:
        from ..payload import serialize_class

        code = run(functools.partial(_from_payload, serialize_class(type(server))), settings)
    if code:
        sys.exit(code)


def _from_payload(text: str) -> ETLServer:
    from ..payload import deserialize_class

    return deserialize_class(text)()


def run(make: MakeServer, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        ConfigError: the address cannot be listened on, `ETL_SOURCE` or `ETL_SINK` names no store.
    """
    configure_logging(settings)
    check_stores(settings)
    _raise_file_limit()
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    logger.info("listening on http://%s:%d with %s", f"[{host}]" if ":" in host else host, port, workers)
    if settings.workers == 1:
        return _serve(make, settings, listener)
    return _Supervisor(make, settings, listener).run()


def _serve(make: MakeServer, settings: Settings, listener: socket.socket) -> int:
    """Serve in this process; returns the exit code."""
    try:
        app = create_app(make())
    except ETLError as error:
        logger.error("%s", error)
        return STARTUP_FAILURE
    except Exception as error:
        logger.error("the transform's class cannot be instantiated: %s", error, exc_info=True)
        return STARTUP_FAILURE
    sys.setswitchinterval(SWITCH_INTERVAL)
    _keep_freed_memory(settings)
    server = _Server(uvicorn_config(app), app, settings.drain_timeout)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application did not start
        logger.error("setup() failed: %s", app.worker.start_error)
        return STARTUP_FAILURE
    return 0


def uvicorn_config(app: ETLApp) -> uvicorn.Config:
    """How uvicorn is to serve objects."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=ObjectProtocol,
        ws="websockets-sansio",
        ws_max_size=LARGEST_MESSAGE,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )


class _Server(uvicorn.Server):
    """A uvicorn server that finishes what is in flight before it stops listening, and then exits with 0."""

    def __init__(self, config: uvicorn.Config, app: ETLApp, drain_timeout: float) -> None:
        super().__init__(config)
        self._worker = app.worker
        self._drain_timeout = drain_timeout
        self._drain_until: float | None = None
        self._interrupts = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._interrupts += sig == signal.SIGINT
        if self._interrupts > 1:
            self.should_exit = self.force_exit = True
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._drain_timeout

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None and not self.should_exit:
            left = self._drain_until - time.monotonic()
            admission = self._worker.admission
            if not admission.draining.is_set():
                logger.info("stopping: %d in flight", admission.in_flight)
            admission.drain()
            if admission.drained or left <= 0:
                self.config.timeout_graceful_shutdown = max(1, round(left))
                self.should_exit = True
        return await super().on_tick(counter)


class _Supervisor:
    """Several worker processes on one socket. One that dies is started again; a failing start ends them all."""

    def __init__(self, make: MakeServer, settings: Settings, listener: socket.socket) -> None:
        self._job = pickle.dumps((sys.path, make, settings, listener.fileno()))
        self._settings = settings
        self._listener = listener
        self._stopping = threading.Event()
        self._workers: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        with _signals(lambda *_: self._stopping.set()):
            self._workers = [self._spawn() for _ in range(self._settings.workers)]
            code = 0
            while not code and not self._stopping.wait(POLL_INTERVAL):
                code = self._replace_dead()
            self._terminate()
            return code

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A fresh interpreter, and not multiprocessing's, which would run the user's script a second time.
        worker = subprocess.Popen(
            [sys.executable, "-c", "from etl_server.runtime.serve import work; work()"],
            stdin=subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
        )
        if worker.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(self._job)
                worker.stdin.flush()
        return worker

    def _replace_dead(self) -> int:
        for index, worker in enumerate(self._workers):
            code = worker.poll()
            if code is None or self._stopping.is_set():
                continue
            if code == STARTUP_FAILURE:
                return STARTUP_FAILURE
            logger.error("worker %d died with exit code %d; starting another", worker.pid, code)
            if self._stopping.wait(RESPAWN_DELAY):
                return 0
            self._workers[index] = self._spawn()
        return 0

    def _terminate(self) -> None:
        for worker in self._workers:
            worker.terminate()
        deadline = time.monotonic() + self._settings.drain_timeout + STOP_GRACE
        for worker in self._workers:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("worker %d did not stop in time", worker.pid)
                worker.kill()
                worker.wait()


def work() -> None:
    """The life of a worker process: what to serve comes on standard input, whose end is that of the supervisor."""
    sys.path[:], make, settings, descriptor = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the supervisor
    configure_logging(settings)
    threading.Thread(target=_stop_with_supervisor, daemon=True).start()
    sys.exit(_serve(make, settings, socket.socket(fileno=descriptor)))


def _stop_with_supervisor() -> None:
    # Not through sys.stdin, whose lock this thread would still hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {sig: signal.signal(sig, handler) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for sig, old in previous.items():
            signal.signal(sig, old)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"ETL_HOST={settings.host}, ETL_PORT={settings.port}: expected an address that is free: {error.strerror}"
        ) from None
    return listener


def _keep_freed_memory(settings: Settings) -> None:
    """Have the allocator keep what objects were in for the next ones.

    By default, glibc gives the memory of a large object back to the system, which is to find, clear and map it again
    for the next: at 1 MiB, half of the time that an object takes. Where the C library has no `mallopt`, nothing
    changes.
    """
    kept = min(MOST_KEPT, settings.max_memory // settings.workers // 4)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, min(LARGEST_KEPT, kept))
        mallopt(M_TRIM_THRESHOLD, kept)


def _raise_file_limit() -> None:
    """Connections are files: take as many as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
