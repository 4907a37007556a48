"""What the tests share: servers of real classes on real sockets, and targets for them."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import botocore.loaders
import pytest
import uvicorn

from etl_server import ETLServer, Settings
from etl_server.config import available_cpus
from etl_server.runtime.app import ETLApp, create_app
from etl_server.runtime.serve import uvicorn_config
from etl_server.runtime.worker import Worker
from etl_server.testing import Target

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

CLUSTER_TESTS = "tests/jobs/test_ray.py"


class Live:
    """A server of one instance, on its own event loop and thread, as `etl-server serve` runs it in a process."""

    def __init__(self, server: ETLServer, transport: Transport = "protocol") -> None:
        self.server = server
        self.app: ETLApp = create_app(server)
        self.worker: Worker = self.app.worker
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn_config(self.app)
        if transport == "asgi":
            config.http, config.ws, config.ws_per_message_deflate = "httptools", "websockets-sansio", False
        config.timeout_graceful_shutdown = 2
        self._uvicorn = uvicorn.Server(config)
        self._started = threading.Event()
        startup = self._uvicorn.startup

        async def tell_startup(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            self._started.set()

        self._uvicorn.startup = tell_startup  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._listener],), daemon=True)

    def start(self) -> Live:
        self._thread.start()
        assert self._started.wait(30), "the server did not start"
        return self

    def leave(self) -> None:
        """Tell it to stop, and do not wait for that."""
        self._uvicorn.should_exit = True

    @property
    def stopped(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self.leave()
        self._thread.join(30)
        assert self.stopped, "the server did not stop"


Serve = Callable[..., Live]
Transport = Literal["protocol", "asgi"]
"""`protocol` is what `etl-server serve` runs; `asgi` is `.app` under a server that knows nothing of us."""


def pytest_xdist_auto_num_workers() -> int:
    """Almost half of the time of these tests is waiting."""
    return 2 * available_cpus()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in tuple(os.environ):
        if name.startswith(
            (
                "AIS_",
                "ETL_",
                "DIRECT_PUT",
                "NUM_WORKERS",
                "PACKAGES",
                "OS_PACKAGES",
                "MAX_CONN",
                "MAX_KEEPALIVE",
                "KEEPALIVE_",
                "PROMETHEUS_",
            )
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _botocore_reads_once() -> None:
    """Every client of S3 would read the same megabytes of JSON about it again: a third of what its creation takes."""
    reader = botocore.loaders.JSONFileLoader
    reader.load_file = staticmethod(functools.cache(reader().load_file))  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, and so would be every process of the tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["protocol", "asgi"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Every test that serves runs over both transports."""
    name: Transport = request.param
    return name


@pytest.fixture
def serve(transport: Transport) -> Iterator[Serve]:
    """Serve a class: `serve(cls, host_target=…, direct_fqn=True, …)`, with settings by their Python names."""
    running: list[Live] = []

    def start(cls: type[ETLServer], **settings: Any) -> Live:
        live = Live(cls(settings=Settings.load(**settings)), transport).start()
        running.append(live)
        return live

    yield start
    for live in running:
        live.leave()
    _leaving[:] = [live for live in (*_leaving, *running) if not live.stopped]


_leaving: list[Live] = []


@pytest.fixture(scope="session", autouse=True)
def _all_servers_stop() -> Iterator[None]:
    """Every server stops in the end; a test does not wait for its own."""
    yield
    for live in _leaving:
        live.stop()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A target with the buckets `src` and `dst`."""
    with Target({"src": tmp_path / "src", "dst": tmp_path / "dst"}, secret="s3cr3t-0f-test") as running:
        yield running


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Spread the tests as ever, but those that share a cluster, which takes long to start, over one process."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneClusterScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return CLUSTER_TESTS if nodeid.startswith(CLUSTER_TESTS) else nodeid

    return OneClusterScheduling(config, log)
