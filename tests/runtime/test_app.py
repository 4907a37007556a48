"""`.app` on ASGI servers that know nothing of us: uvicorn with h11, httpx's transport, inside another application."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, BinaryIO

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from etl_server import ETLServer, Settings
from etl_server.testing import Driver, Target
from etl_server.wire.names import encode_object_path, encode_uname
from tests.raw_client import RawClient
from tests.stages import STORED, Stage, answering
from tests.testing.odd_names import ODD_NAMES

from .transforms import ALL_TOLD, ALL_UPPER, AsyncUpper, EagerStream, Upper, UpperStream

Start = Callable[..., int]


@pytest.fixture
def h11() -> Iterator[Start]:
    """Serve an ASGI application by uvicorn with h11 on asyncio's own loop; returns the port."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any, **config: Any) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, loop="asyncio", http="h11", log_config=None, **config))
        started = threading.Event()
        startup = server.startup

        async def tell(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            started.set()

        server.startup = tell  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running.append((server, thread))
        assert started.wait(20)
        port: int = listener.getsockname()[1]
        return port

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def made(cls: type[ETLServer], **settings: Any) -> ETLServer:
    return cls(settings=Settings.load(**settings))


def client_of(app: Any) -> httpx.AsyncClient:
    """A client without a socket; it runs no lifespan."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


# uvicorn with h11


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_objects_are_served_by_any_server(h11: Start, target: Target, lifespan: str) -> None:
    target.path("src", "a").parent.mkdir()
    target.path("src", "a").write_bytes(b"content")
    for cls in ALL_UPPER:
        port = h11(made(cls, host_target=target.url).app, lifespan=lifespan)
        async with Driver(f"http://127.0.0.1:{port}", target) as driver:
            await driver.wait_until_ready()
            assert (await driver.push("src", "a")).body == b"CONTENT"
            assert (await driver.pull("src", "a")).body == b"CONTENT"
            assert (await driver.push("src", "a", pipeline=target.destination("dst", "a"))).delivered == 7
            assert target.read("dst", "a") == b"CONTENT"


async def test_every_name_is_understood(h11: Start, target: Target) -> None:
    async with Stage(answering(STORED)) as stage:
        port = h11(made(Upper).app)
        async with Driver(f"http://127.0.0.1:{port}", target) as driver:
            for name in ODD_NAMES:
                assert (await driver.push("src", name, data=b"x", pipeline=stage.url)).status == 204
    assert [request.target for request in stage.requests] == [
        "/" + encode_object_path(f"src/{name}") for name in ODD_NAMES
    ]


async def test_half_an_object_is_cut_by_any_server(h11: Start) -> None:
    class Breaking(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            yield b"half"
            reader.read()
            raise ValueError("bad frame")

    async with RawClient(h11(made(Breaking).app)) as client:
        await client.start_chunked("/src/a")
        await client.chunk(b"x")
        assert (await client.head())[0] == 200
        assert await client.next_chunk() == b"half"
        await client.chunk(b"")
        assert await client.closed() == b""


async def test_a_client_that_goes_away_ends_the_transform_on_any_server(h11: Start) -> None:
    closed = threading.Event()

    class Watched(ETLServer):
        def transform_stream(self, reader: Any, path: str, etl_args: str) -> Iterator[bytes]:
            try:
                yield reader.read1(100)
                reader.read()
            finally:
                closed.set()

    async with RawClient(h11(made(Watched).app)) as client:
        await client.start_chunked("/src/a")
        await client.chunk(b"x")
        assert (await client.head())[0] == 200
        client.go_away()
        assert await asyncio.to_thread(closed.wait, 10)


async def test_an_empty_result_is_chunked_by_any_server(h11: Start) -> None:
    async with RawClient(h11(made(Upper).app)) as client:
        await client.put("/src/a", b"")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.whole) == (200, b"", True)
        assert answer.headers["transfer-encoding"] == "chunked"


# Without a server


@pytest.mark.parametrize("cls", ALL_TOLD)
async def test_without_a_lifespan_the_first_request_sets_up(cls: type[ETLServer]) -> None:
    setups: list[str] = []

    class Set(cls):  # type: ignore[misc, valid-type]
        def setup(self) -> None:
            setups.append("setup")

    async with client_of(made(Set).app) as client:
        answers = await asyncio.gather(*(client.put("/src/a%20b", content=b"12345") for _ in range(5)))
        assert [answer.json() for answer in answers] == [[5, "src/a b", ""]] * 5
    assert setups == ["setup"]


async def test_health_and_methods(h11: Start) -> None:
    async with client_of(made(Upper).app) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.text) == (200, "Running")
        assert (await client.head("/health")).status_code == 200
        assert (await client.put("/health", content=b"x")).status_code == 405
        for method in ("POST", "DELETE", "PATCH", "HEAD"):
            answer = await client.request(method, "/src/a")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PUT")
        answer = await client.get("/download")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await client.post("/download")).status_code == 400
        assert (await client.put("/", content=b"x")).status_code == 400
        assert (await client.get("/src/a")).status_code == 503


async def test_an_answer_that_broke_off_is_told_to_the_server() -> None:
    class Breaking(ETLServer):
        async def transform_stream(self, reader: Any, path: str, etl_args: str) -> AsyncIterator[bytes]:
            yield b"half"
            await reader.read()
            raise ValueError("bad frame")

    sent: list[dict[str, Any]] = []
    app = made(Breaking).app

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        async def record(message: Any) -> None:
            sent.append(message)
            await send(message)

        await app(scope, receive, record)

    async with client_of(recording) as client:
        with pytest.raises(ConnectionAbortedError):
            await client.put("/src/a", content=b"x")
    assert [message.get("more_body") for message in sent] == [None, True]


async def test_a_setup_that_fails_is_no_object() -> None:
    class Unready(Upper):
        def setup(self) -> None:
            raise RuntimeError("no model")

    transport = httpx.ASGITransport(made(Unready).app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for _ in range(2):
            assert (await client.put("/src/a", content=b"x")).status_code >= 500


# Lifespan


async def test_the_lifespan_sets_up_and_tears_down_once() -> None:
    calls: list[str] = []

    class Counted(Upper):
        async def setup(self) -> None:
            calls.append("setup")

        async def teardown(self) -> None:
            calls.append("teardown")

    app: Any = made(Counted).app
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert calls == ["setup"]
        assert (await client.put("/src/a", content=b"x")).content == b"X"
        assert calls == ["setup"]
    assert calls == ["setup", "teardown"]


async def test_the_clients_of_the_instance_are_closed_with_it(target: Target) -> None:
    class Using(ETLServer):
        async def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            answer = await self.client.get(f"{self.host_target}/{encode_uname('ais/@#/src/a')}")
            return answer.content + self.session.get(str(answer.url)).content

    target.path("src", "a").parent.mkdir()
    target.path("src", "a").write_bytes(b"content")
    server = made(Using, host_target=target.url, authn_token="t0ken")
    app: Any = server.app
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.put("/src/b", content=b"x")).content == b"contentcontent"
    assert server.client.is_closed
    assert [request.headers.get("authorization") for request in target.requests] == ["Bearer t0ken"] * 2


# Inside other applications, and with other routes


async def test_routes_of_ones_own_are_served_too() -> None:
    app: Any = made(Upper).app

    async def version() -> dict[str, int]:
        return {"version": 3}

    async def model() -> dict[str, str]:
        return {"model": "set"}

    app.get("/version")(version)
    app.put("/model")(model)
    async with client_of(app) as client:
        assert (await client.get("/version")).json() == {"version": 3}
        assert (await client.put("/model")).json() == {"model": "set"}
        assert (await client.get("/model")).status_code == 405
        assert (await client.put("/src/version", content=b"x")).content == b"X"
        assert (await client.get("/health")).text == "Running"


async def test_it_may_be_mounted_in_another_application(target: Target) -> None:
    async def home(request: Any) -> PlainTextResponse:
        return PlainTextResponse("home")

    server = made(Upper, host_target=target.url)
    outer = Starlette(routes=[Route("/home", home), Mount("/etl", server.app)])
    target.path("src", "a b").parent.mkdir()
    target.path("src", "a b").write_bytes(b"content")
    async with Stage(answering(STORED)) as stage, client_of(outer) as client:
        assert (await client.get("/home")).text == "home"
        assert (await client.get("/etl/health")).text == "Running"
        assert (
            await client.put("/etl/src/a%2Fb", content=b"x", headers={"ais-node-url": stage.url})
        ).status_code == 204
        assert (await client.get(f"/etl/{encode_uname('ais/@#/src/a b')}")).content == b"CONTENT"
        assert (await client.post("/etl/download")).status_code == 400
    assert stage.requests[0].target == "/src/a/b"


async def test_a_server_without_raw_path_is_served_too() -> None:
    """It is optional in ASGI; what is lost is how a name was escaped, not the name."""
    app = made(ALL_TOLD[0]).app

    async def without(scope: Any, receive: Any, send: Any) -> None:
        scope.pop("raw_path", None)
        await app(scope, receive, send)

    async with client_of(without) as client:
        assert (await client.put("/src/a%20b%25%E6%97%A5", content=b"x")).json() == [1, "src/a b%日", ""]


async def test_a_body_may_come_in_any_pieces() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"", b"bc", b""):
            yield piece

    for cls in (Upper, AsyncUpper, UpperStream, EagerStream):
        async with client_of(made(cls).app) as client:
            assert (await client.put("/src/a", content=pieces())).content.upper() == b"ABC"
