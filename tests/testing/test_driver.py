from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import ClientError, web

from etl_server.testing import Driver, Target, pipeline
from etl_server.wire.names import encode_object_path, encode_uname

from .odd_names import NOT_UTF8, ODD_NAMES
from .upper_server import UpperServer


def transient() -> web.Response:
    return web.Response(status=503, headers={"ais-etl-retry-reason": "direct-put-transient"})


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def running(_: web.BaseRequest) -> web.Response:
    return web.Response(text="Running")


# Push


async def test_push_sends_the_target_s_object_with_its_length(
    driver: Driver, server: UpperServer, target: Target
) -> None:
    target.path("src", "obj").write_bytes(b"content")
    reply = await driver.push("src", "obj")
    assert (reply.status, reply.body) == (200, b"CONTENT")
    assert reply.headers["Transfer-Encoding"] == "chunked"
    assert (reply.delivered, reply.transient) == (None, False)
    (seen,) = server.seen
    assert (seen.method, seen.raw_path, seen.raw_query, seen.body) == ("PUT", "/src/obj", "", b"content")
    assert seen.headers.pop("Host") in server.url
    assert seen.headers == {"Content-Length": "7"}


async def test_push_sends_an_empty_object_with_its_length(driver: Driver, server: UpperServer, target: Target) -> None:
    target.path("src", "obj").touch()
    assert (await driver.push("src", "obj")).body == b""
    assert (await driver.push("src", "obj", data=b"")).body == b""
    assert [seen.headers["Content-Length"] for seen in server.seen] == ["0", "0"]


async def test_push_streams_an_object_larger_than_a_piece(driver: Driver, server: UpperServer, target: Target) -> None:
    content = os.urandom(5 << 20)
    target.path("src", "obj").write_bytes(content)
    assert (await driver.push("src", "obj")).body == content.upper()
    assert server.seen[0].headers["Content-Length"] == str(5 << 20)


async def test_push_sends_given_bytes_with_their_length(driver: Driver, server: UpperServer) -> None:
    assert (await driver.push("src", "obj", data=b"given")).body == b"GIVEN"
    assert server.seen[0].headers["Content-Length"] == "5"
    assert "Transfer-Encoding" not in server.seen[0].headers


async def test_push_sends_an_iterable_chunked(driver: Driver, server: UpperServer) -> None:
    assert (await driver.push("src", "obj", data=in_pieces(b"one ", b"two"))).body == b"ONE TWO"
    assert server.seen[0].headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in server.seen[0].headers


async def test_push_of_an_object_that_is_not_there_is_an_error(driver: Driver, server: UpperServer) -> None:
    with pytest.raises(FileNotFoundError):
        await driver.push("src", "none")
    with pytest.raises(KeyError):
        await driver.push("none", "obj")
    assert server.seen == []


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_push_escapes_an_odd_name_once(driver: Driver, server: UpperServer, name: str) -> None:
    await driver.push("src", name, data=b"")
    assert server.seen[0].raw_path == "/src/" + encode_object_path(name)


async def test_push_sends_arguments_escaped(driver: Driver, server: UpperServer) -> None:
    args = '{"a": "b&c=d+e %2F #é"}'
    await driver.push("src", "obj", data=b"", etl_args=args)
    assert server.seen[0].raw_query == "etl_args=" + quote_plus(args)


@pytest.mark.parametrize("file_name", ["plain", "a b%2F+&#?é", NOT_UTF8.replace("/", "-")])
async def test_push_names_a_file_escaped_twice_and_sends_no_content(
    driver: Driver, server: UpperServer, tmp_path: Path, file_name: str
) -> None:
    file = tmp_path / file_name
    file.write_bytes(b"from the file")
    reply = await driver.push("src", "obj", fqn=str(file), etl_args="x")
    assert reply.body == b"FROM THE FILE"
    (seen,) = server.seen
    escaped = quote(str(file), safe="", errors="surrogateescape")
    assert seen.raw_query == f"etl_args=x&etl_fqn={quote_plus(escaped)}"
    assert (seen.body, seen.headers["Content-Length"]) == (b"", "0")


async def test_push_sends_content_beside_a_file_when_it_is_given(
    driver: Driver, server: UpperServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"file")
    await driver.push("src", "obj", data=b"content", fqn=str(tmp_path / "file"))
    assert server.seen[0].body == b"content"


async def test_an_answer_is_not_decompressed(driver: Driver, server: UpperServer) -> None:
    server.answers.append(web.Response(body=b"not gzip at all", headers={"Content-Encoding": "gzip"}))
    assert (await driver.push("src", "obj", data=b"")).body == b"not gzip at all"


async def test_a_redirect_is_not_followed(driver: Driver, server: UpperServer) -> None:
    server.answers.append(web.Response(status=307, headers={"Location": "/elsewhere"}))
    assert (await driver.push("src", "obj", data=b"")).status == 307
    assert len(server.seen) == 1


async def test_an_error_comes_back_with_its_status_and_body(driver: Driver, server: UpperServer) -> None:
    server.answers.append(web.Response(status=500, text="Processing error: no"))
    reply = await driver.push("src", "obj", data=b"")
    assert (reply.status, reply.body, reply.delivered, reply.transient) == (500, b"Processing error: no", None, False)


async def test_only_a_204_is_an_acknowledgement(driver: Driver, server: UpperServer) -> None:
    server.answers.append(web.Response(headers={"ais-direct-put-length": "7"}))
    server.answers.append(web.Response(status=204))
    server.answers.append(web.Response(status=204, headers={"ais-direct-put-length": "7"}))
    replies = [await driver.push("src", "obj", data=b"content") for _ in range(3)]
    assert [reply.delivered for reply in replies] == [None, None, 7]


@pytest.mark.parametrize("way", ["bytes", "pieces", "file", "pull"])
async def test_a_lost_connection_is_an_error_and_nothing_is_sent_again(
    driver: Driver, server: UpperServer, target: Target, way: str
) -> None:
    target.path("src", "obj").write_bytes(b"content")
    await driver.push("src", "obj")
    server.answers.append(None)
    sending = {
        "bytes": lambda: driver.push("src", "obj", data=b"content"),
        "pieces": lambda: driver.push("src", "obj", data=in_pieces(b"content")),
        "file": lambda: driver.push("src", "obj"),
        "pull": lambda: driver.pull("src", "obj"),
    }
    with pytest.raises(ClientError):
        await sending[way]()
    assert len(server.seen) == 2


async def test_as_many_objects_as_are_pushed_are_on_their_way_at_once(driver: Driver) -> None:
    begun, all_begun = 0, asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        if begun == 128:
            all_begun.set()
        await all_begun.wait()
        yield b"content"

    replies = await asyncio.gather(*(driver.push("src", f"obj{number}", data=content()) for number in range(128)))
    assert {reply.body for reply in replies} == {b"CONTENT"}


async def test_an_object_that_takes_too_long_is_a_timeout(target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with Driver(url, target, object_timeout=0.05) as driver:
            with pytest.raises(asyncio.TimeoutError):
                await driver.push("src", "obj", data=b"")


# Retries


async def test_push_retrying_repeats_the_whole_put_while_it_is_asked_to(
    driver: Driver, server: UpperServer, target: Target
) -> None:
    target.path("src", "obj").write_bytes(b"content")
    server.answers.extend([transient(), transient()])
    reply = await driver.push_retrying("src", "obj", etl_args="x", pipeline=[target.destination("dst", "obj")])
    assert reply.delivered == 7
    assert [seen.body for seen in server.seen] == [b"content"] * 3
    assert len({(seen.raw_path, seen.raw_query, seen.headers["ais-node-url"]) for seen in server.seen}) == 1
    assert target.read("dst", "obj") == b"CONTENT"


async def test_push_retrying_gives_up_after_so_many_attempts(driver: Driver, server: UpperServer) -> None:
    server.answers.extend([transient() for _ in range(5)])
    reply = await driver.push_retrying("src", "obj", data=b"content", attempts=2)
    assert (reply.status, reply.transient) == (503, True)
    assert len(server.seen) == 2


async def test_push_retrying_takes_any_other_error_for_an_answer(driver: Driver, server: UpperServer) -> None:
    server.answers.extend([web.Response(status=503), None])
    assert (await driver.push_retrying("src", "obj", data=b"content")).status == 503
    with pytest.raises(ClientError):
        await driver.push_retrying("src", "obj", data=b"content")
    assert len(server.seen) == 2


# Pull


async def test_pull_lets_the_server_fetch_the_object(driver: Driver, server: UpperServer, target: Target) -> None:
    target.path("src", "obj").write_bytes(b"content")
    reply = await driver.pull("src", "obj", etl_args="x y")
    assert (reply.status, reply.body) == (200, b"CONTENT")
    (seen,) = server.seen
    assert (seen.method, seen.raw_path) == ("GET", "/ais%2F@%23%2Fsrc%2Fobj")
    assert (seen.raw_query, seen.body) == ("etl_args=x+y", b"")
    assert [(record.method, record.uname) for record in target.requests] == [("GET", "ais/@#/src/obj")]


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_pull_escapes_an_odd_name_into_one_segment(
    driver: Driver, server: UpperServer, target: Target, name: str
) -> None:
    file = target.path("src", name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"content")
    assert (await driver.pull("src", name)).body == b"CONTENT"
    assert server.seen[0].raw_path == "/" + encode_uname(f"ais/@#/src/{name}")


async def test_pull_asks_for_the_latest_version(driver: Driver, server: UpperServer) -> None:
    assert (await driver.pull("src", "none", latest=True)).status == 404
    assert server.seen[0].raw_query == "latest-ver=true"


async def test_pull_names_a_file(driver: Driver, server: UpperServer, target: Target, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from the file")
    assert (await driver.pull("src", "obj", fqn=str(tmp_path / "file"))).body == b"FROM THE FILE"
    assert target.requests == []


# Pipelines


async def test_a_pipeline_delivers_through_every_stage_to_the_target(
    driver: Driver, server: UpperServer, target: Target
) -> None:
    name = "dir/a b#c?d%e+f&g é"
    async with AsyncExitStack() as stack:
        second, third = [await stack.enter_async_context(UpperServer(target.url, name=n)) for n in ("2", "3")]
        stages = pipeline(second.url, third.url, destination=target.destination("dst", name))
        reply = await driver.push("src", name, data=b"content", etl_args="x", pipeline=stages)
        assert (reply.status, reply.body, reply.delivered) == (204, b"", 9)
        assert target.read("dst", name) == b"32CONTENT"
        first_seen, second_seen, third_seen = server.seen[0], second.seen[0], third.seen[0]
    assert first_seen.headers["ais-node-url"] == stages
    assert second_seen.headers["ais-node-url"] == stages.partition(",")[2]
    assert third_seen.headers["ais-node-url"] == stages.rpartition(",")[2]
    assert first_seen.raw_path == second_seen.raw_path == third_seen.raw_path
    assert target.requests[-1].query.endswith("&etl_args=x")


async def test_a_pipeline_without_a_destination_comes_back(driver: Driver, target: Target) -> None:
    async with UpperServer(target.url, name="2") as second:
        reply = await driver.push("src", "obj", data=b"content", pipeline=[second.url])
    assert (reply.status, reply.body, reply.delivered) == (200, b"2CONTENT", None)


async def test_pull_goes_through_a_pipeline_too(driver: Driver, target: Target) -> None:
    target.path("src", "obj").write_bytes(b"content")
    reply = await driver.pull("src", "obj", pipeline=(target.destination("dst", "new"),))
    assert reply.delivered == 7
    assert target.read("dst", "new") == b"CONTENT"


async def test_an_empty_object_is_delivered(driver: Driver, target: Target) -> None:
    reply = await driver.push("src", "obj", data=b"", pipeline=[target.destination("dst", "obj")])
    assert reply.delivered == 0
    assert target.read("dst", "obj") == b""


async def test_a_pipeline_header_may_be_given_as_it_is_to_go_out(driver: Driver, server: UpperServer) -> None:
    server.answers.append(web.Response(status=400))
    await driver.push("src", "obj", data=b"", pipeline="http://a:1,,http://b:2")
    assert server.seen[0].headers["ais-node-url"] == "http://a:1,,http://b:2"


def test_a_pipeline_is_its_stages_and_then_its_destination() -> None:
    assert pipeline("http://a:1", "http://b:2", destination="http://t:3/obj") == "http://a:1,http://b:2,http://t:3/obj"
    assert pipeline(destination="http://t:3/obj") == "http://t:3/obj"
    assert pipeline("http://a:1") == "http://a:1"
    assert pipeline() == ""


# WebSocket


async def test_a_websocket_takes_objects_ahead_and_answers_in_their_order(driver: Driver) -> None:
    contents = [b"one", b"", os.urandom(5 << 20), b"four"]
    async with driver.websocket() as ws:
        for number, content in enumerate(contents):
            await ws.send(f"obj{number}", content)
        answers = [await ws.receive() for _ in contents]
    assert [answer.kind for answer in answers] == ["binary"] * 4
    assert [answer.data for answer in answers] == [content.upper() for content in contents]


async def test_a_websocket_says_what_the_object_is(driver: Driver, server: UpperServer, target: Target) -> None:
    name = "dir/a b#c?d%e é"
    destination = target.destination("dst", name)
    async with driver.websocket() as ws:
        await ws.send(name, b"content", etl_args='{"a": 1}', pipeline=[destination])
        answer = await ws.receive()
    assert (answer.kind, answer.data) == ("text", "7")
    assert target.read("dst", name) == b"CONTENT"
    upgrade, control = server.seen
    assert upgrade.raw_path == "/ws"
    assert "Sec-WebSocket-Extensions" not in upgrade.headers
    assert json.loads(control.body) == {"path": name, "etl_args": '{"a": 1}', "pipeline": destination}


async def test_a_websocket_goes_through_a_pipeline(driver: Driver, target: Target) -> None:
    async with UpperServer(target.url, name="2") as second, driver.websocket() as ws:
        await ws.send("obj", b"content", pipeline=pipeline(second.url))
        assert (await ws.receive()).data == b"2CONTENT"


async def test_a_websocket_names_a_file_and_sends_no_content(
    driver: Driver, server: UpperServer, tmp_path: Path
) -> None:
    file = tmp_path / "a b%2F"
    file.write_bytes(b"from the file")
    async with driver.websocket() as ws:
        await ws.send("obj", None, fqn=str(file))
        await ws.send("next", b"content")
        assert [(await ws.receive()).data for _ in range(2)] == [b"FROM THE FILE", b"CONTENT"]
    assert json.loads(server.seen[1].body) == {"path": "obj", "fqn": str(file)}


async def test_a_websocket_carries_a_name_that_is_no_utf_8(driver: Driver, server: UpperServer) -> None:
    async with driver.websocket() as ws:
        await ws.send(NOT_UTF8, b"x")
        await ws.receive()
    assert json.loads(server.seen[1].body)["path"] == NOT_UTF8


async def test_a_websocket_wants_either_content_or_a_file(driver: Driver) -> None:
    async with driver.websocket() as ws:
        with pytest.raises(ValueError, match="either"):
            await ws.send("obj", None)
        with pytest.raises(ValueError, match="either"):
            await ws.send("obj", b"content", fqn="/file")
        await ws.send("obj", b"still open")
        assert (await ws.receive()).data == b"STILL OPEN"


async def test_a_websocket_tells_how_it_was_closed(driver: Driver) -> None:
    async with driver.websocket() as ws:
        await ws.send("obj", b"one")
        await ws.send("obj", b"close")
        assert (await ws.receive()).data == b"ONE"
        closed = await ws.receive()
        assert (closed.kind, closed.code, closed.reason) == ("close", 1011, "broken on purpose")
        again = await ws.receive()
        assert (again.kind, again.code) == ("close", 1011)
        with pytest.raises(ConnectionError):
            await ws.send("obj", b"too late")


async def test_a_websocket_that_is_cut_is_closed_abnormally(driver: Driver) -> None:
    async with driver.websocket() as ws:
        await ws.send("obj", b"cut")
        lost = await ws.receive()
        assert (lost.kind, lost.code) == ("close", 1006)


async def test_a_websocket_that_does_not_answer_is_a_timeout(server: UpperServer, target: Target) -> None:
    async with Driver(server.url, target, object_timeout=0.05) as driver, driver.websocket() as ws:
        with pytest.raises(asyncio.TimeoutError):
            await ws.receive()


async def test_several_websockets_work_side_by_side(driver: Driver) -> None:
    async def one(number: int) -> list[bytes | str]:
        async with driver.websocket() as ws:
            for letter in "abc":
                await ws.send("obj", f"{letter}{number}".encode())
            return [(await ws.receive()).data for _ in range(3)]

    answers = await asyncio.gather(*(one(number) for number in range(4)))
    assert answers == [[f"{letter}{number}".encode() for letter in "ABC"] for number in range(4)]


# Getting ready


async def test_waiting_until_ready_ends_with_the_first_200(driver: Driver, server: UpperServer) -> None:
    server.health.extend([503, 503])
    await driver.wait_until_ready()
    assert not server.health


async def test_waiting_until_ready_outlasts_a_server_that_is_not_there_yet(target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with Driver(f"http://127.0.0.1:{port}", target) as driver:
        waiting = asyncio.create_task(driver.wait_until_ready())
        await asyncio.sleep(0)
        runner = web.ServerRunner(web.Server(running))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await waiting
        await runner.cleanup()


async def test_a_server_that_does_not_get_ready_is_a_timeout(driver: Driver, server: UpperServer) -> None:
    server.health.extend([503] * 1000)
    with pytest.raises(TimeoutError, match=r"/health did not answer 200 within 0\.2 s"):
        await driver.wait_until_ready(0.2)


async def test_a_driver_is_to_be_entered(target: Target) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Driver("http://127.0.0.1:1", target).pull("src", "obj")
