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
import sys
import threading
from collections.abc import Callable

import uvicorn

from ..config import Settings
from ..errors import ConfigError, ETLError, StartError, one_line
from ..server import ETLServer
from .app import ETLApp, create_app
from .http import ObjectProtocol
from .lifecycle import Server, leave, stop_signals
from .listen import BACKLOG, bind, url_of
from .logs import configure_logging
from .stores import check_stores
from .supervise import STARTUP_FAILURE, Channel, Supervisor
from .threads import SWITCH_INTERVAL, tame
from .ws import LARGEST_MESSAGE

MakeServer = Callable[[], ETLServer]
"""Makes the instance that a process serves. For several processes it must be picklable."""

KEEP_ALIVE = 120
"""Seconds that an idle connection is kept: longer than a target keeps its own, so that it is the one to close it."""
MOST_KEPT = 128 * 1024**2
"""Bytes of freed memory that a process keeps at the most; never more than a quarter of what objects may take up."""
LARGEST_KEPT = 32 * 1024**2
"""Bytes from which a block goes back to the system at once; glibc takes no larger value."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The parameters of glibc's mallopt(3)."""

logger = logging.getLogger("etl_server.serve")


def serve_instance(server: ETLServer, host: str | None = None, port: int | None = None) -> None:
    """Serve an instance in this process. With `ETL_WORKERS` above 1, further processes make their own of its class."""
    settings = server.settings.model_copy(
        update={name: value for name, value in (("host", host), ("port", port)) if value is not None}
    )
    if settings.workers == 1:
        code = run(lambda: server, settings)
    else:
        from ..payload import make_server, serialize_class

        configure_logging(settings)
        if own := sorted(vars(server).keys() - vars(ETLServer).keys()):
            logger.warning(
                "ETL_WORKERS=%d: each worker makes a %s() of its own, without what this one was given or has set (%s); "
                "ETL_WORKERS=1 serves this one",
                settings.workers,
                type(server).__name__,
                ", ".join(own),
            )
        code = run(functools.partial(make_server, serialize_class(type(server))), settings)
    signal.setitimer(signal.ITIMER_REAL, 0)  # it has ended in time, and the caller goes on
    if code:
        sys.exit(code)


def run(make: MakeServer, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code: 0, or `lifecycle.UNFINISHED`, or `STARTUP_FAILURE`.

    Raises:
        ConfigError: the address cannot be listened on, `ETL_SOURCE` or `ETL_SINK` names no store, or
            `PROMETHEUS_MULTIPROC_DIR` no directory.
    """
    configure_logging(settings)
    check_stores(settings)
    _check_metrics_directory(settings)
    _raise_file_limit()
    listener = bind(settings)
    if settings.workers > 1:
        return Supervisor(make, settings, listener).run()
    url = url_of(listener)
    try:
        with stop_signals(leave):
            server = _server(make, settings, listener)
            server.on_ready = lambda: logger.info("listening on %s with 1 worker", url)
            server.run(sockets=[listener])
    except StartError as error:
        logger.error("%s", one_line(error))
        return STARTUP_FAILURE
    return server.exit_code


def _server(make: MakeServer, settings: Settings, listener: socket.socket) -> Server:
    """What serves in this process.

    Raises:
        StartError: the user's class cannot be instantiated.
    """
    try:
        app = create_app(make())
    except ETLError as error:
        raise StartError(str(error)) from None
    except (Exception, SystemExit) as error:
        logger.error("%s raised", getattr(make, "__name__", "the class"), exc_info=error)
        raise StartError(f"the transform's class cannot be instantiated: {tame(error)}") from None
    sys.setswitchinterval(SWITCH_INTERVAL)
    _keep_freed_memory(settings)
    return Server(uvicorn_config(app), app, listener)


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


def work(place: int | None) -> None:
    """The life of a worker process: what to serve comes on standard input, whose end says that all are to stop.

    `place`: its number among the workers, where they count what they do.
    """
    if place is not None:
        from .metrics import join

        join(place)
    sys.path[:], make, settings, *descriptors = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the supervisor
    configure_logging(settings)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    listener, channel = socket.socket(fileno=descriptors[0]), Channel(descriptors[1])
    made: list[Server] = []
    try:
        with stop_signals(leave):
            threading.Thread(target=_stop_with_all, args=(made,), daemon=True).start()
            server = _server(make, settings, listener)
            server.on_ready = channel.ready
            server.shares_listener = True
            made.append(server)
            server.run(sockets=[listener])
    except StartError as error:
        channel.failed(error)
        sys.exit(STARTUP_FAILURE)
    sys.exit(server.exit_code)


def _stop_with_all(made: list[Server]) -> None:
    """Stop this process when the supervisor says so, or is gone. `made`: its server, once there is one."""
    # Not through sys.stdin, whose lock this thread would still hold when the interpreter ends.
    while os.read(0, 1):
        pass
    for server in made:
        server.shares_listener = False
    os.kill(os.getpid(), signal.SIGTERM)


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


def _check_metrics_directory(settings: Settings) -> None:
    """Raises `ConfigError` where the directory that this process is told cannot be used. Of several, we make one."""
    directory = settings.metrics_directory
    if settings.metrics and settings.workers == 1 and directory and not _is_writable(directory):
        raise ConfigError(f"PROMETHEUS_MULTIPROC_DIR={directory}: expected a directory that can be written to")


def _is_writable(directory: str) -> bool:
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)  # noqa: PTH112


def _raise_file_limit() -> None:
    """Connections are files: take as many as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
