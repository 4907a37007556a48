"""The `ais-node-url` header: where results are PUT to, byte for byte, and through several servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import pytest

from etl_server import ETLServer
from etl_server.testing import Driver, Target, pipeline
from tests.conftest import Serve
from tests.raw_client import RawClient
from tests.stages import STORED, Stage, answering, refusing, response
from tests.testing.odd_names import ODD_NAMES

from .conftest import Drive
from .transforms import ALL_EMPTY, STREAMS, AsyncUpperStream, Upper, UpperStream

ETL_PATH = "/v1/etl/_object/dev/s3cr3t"


class Append(ETLServer):
    """Appends the arguments, to tell that they came."""

    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data + b"|" + etl_args.encode()


class AppendStream(ETLServer):
    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        yield from iter(lambda: reader.read(1000), b"")
        yield b"|" + etl_args.encode()


# Malformed


MALFORMED = [
    ",",
    "http://host,",
    ",http://host",
    "http://a,,http://b",
    "http://a, ,http://b",
    "nonsense",
    "host:8000",
    "//host/path",
    "/path",
    "ftp://host/",
    "http://",
    "http:///path",
    "http://:80/",
    "http://host:port/",
    "http://host:99999/",
    "http://[::1/",
    "http://ho st/",
    "http://host/a b",
    "http://host/\xe9",
    "http://host/a#b",
    "http://good,nonsense",
]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_malformed_pipeline_is_refused_before_any_work(serve: Serve, stream: bool) -> None:
    calls: list[str] = []

    class Counted(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            calls.append(path)
            return data

    class CountedStream(ETLServer):
        def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
            calls.append(path)
            yield reader.read()

    async with RawClient(serve(CountedStream if stream else Counted).port) as client:
        for header in MALFORMED:
            await client.put("/src/a", b"body", f"ais-node-url: {header}\r\n")
            answer = await client.answer()
            assert answer.status == 400, header
            assert json.loads(answer.body)["detail"].startswith("Invalid pipeline header: "), header
        assert calls == []
        await client.put("/src/a", b"body")
        assert (await client.answer()).body == b"body"
        assert calls == ["src/a"]


async def test_a_malformed_pipeline_is_refused_by_every_way(serve: Serve, target: Target) -> None:
    live = serve(Upper, host_target=target.url)
    async with RawClient(live.port) as client:
        for request in ("GET /ais%2F@%23%2Fsrc%2Fa", "POST /download?original_url=http%3A%2F%2F[::1]/&object_to=b"):
            await client.send(f"{request} HTTP/1.1\r\nHost: x\r\nais-node-url: http://a,,b\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 400
            assert json.loads(answer.body)["detail"].startswith("Invalid pipeline header: ")
    assert target.requests == []


@pytest.mark.parametrize("header", ["", " ", "\t "])
async def test_a_blank_pipeline_is_none(serve: Serve, header: str) -> None:
    async with RawClient(serve(Upper).port) as client:
        await client.put("/src/a", b"body", f"ais-node-url: {header}\r\n")
        assert (await client.answer())[::2] == (200, b"BODY")


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example", ".", "*"])
async def test_a_host_that_cannot_be_is_no_internal_error(serve: Serve, backoffs: list[float], host: str) -> None:
    async with RawClient(serve(Upper).port) as client:
        await client.put("/src/a", b"body", f"ais-node-url: http://{host}:1\r\n")
        assert (await client.answer()).status in (400, 502)


# What goes to the next stage


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_every_name_reaches_another_etl_server_escaped(serve: Serve, target: Target, way: str) -> None:
    async with Stage(answering(response(200, b"content"))) as source, Stage(answering(STORED)) as stage:
        live = serve(Upper, host_target=source.url + ETL_PATH)
        async with Driver(live.url, target) as driver:
            for name in ODD_NAMES:
                if way == "push":
                    reply = await driver.push("src", name, data=b"content", pipeline=stage.url)
                else:
                    reply = await driver.pull("src", name, pipeline=stage.url)
                assert reply.delivered == 7, name
        prefix = "src/" if way == "push" else "ais/@#/src/"
        targets = [request.target for request in stage.requests]
    assert targets == ["/" + quote(prefix + name, safe="/@", errors="surrogateescape") for name in ODD_NAMES]


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_url_without_a_path_is_another_etl_server(serve: Serve, drive: Drive, slash: str) -> None:
    async with Stage(answering(STORED)) as stage:
        driver = await drive(serve(Upper))
        await driver.push("src", "a", data=b"x", pipeline=f"{stage.url}{slash}")
        await driver.push("src", "a", data=b"x", pipeline=f"{stage.url}{slash}?key=value", etl_args="b")
    assert [request.target for request in stage.requests] == ["/src/a", "/src/a?key=value&etl_args=b"]
    assert [request.method for request in stage.requests] == ["PUT", "PUT"]
    assert stage.requests[0].headers["host"] == stage.netloc


ESCAPED_PATHS = [
    "/ais%2F@%23%2Fdst%2Fobj",
    "/ais%2f%40%23%2fdst%2fobj",
    "/ais%2F@%23%2Fdst%2Fa%20b%2Bc%26d%25e%3Ff%23g",
    "/ais%2F@%23%2Fdst%2F%2Fleading",
    "/ais%2F@%23%2Fdst%2F..%2Fup",
    "/ais/@%23/dst/../obj/./x//y/",
    "/ais%2F@%23%2Fdst%2F%E6%97%A5%F0%9F%98%80%FF%41",
    "/a;b=c/~!$&'()*+:@-._",
    "/%",
    "/%zz",
]
"""Not all of them are how one would escape that; none is to be touched."""


async def test_an_escaped_path_that_arrives_is_passed_on_untouched(serve: Serve, drive: Drive) -> None:
    queries = ["", "?uuid=xyz&owt=5", "?a=%2f%2F+%20&b&=c&a=d", "?q=//?"]
    async with Stage(answering(STORED)) as stage:
        driver = await drive(serve(Upper, host_target=f"http://elsewhere:1{ETL_PATH}"))
        wanted = [path + query for path in ESCAPED_PATHS for query in queries]
        for tail in wanted:
            assert (await driver.push("src", "a", data=b"x", pipeline=stage.url + tail)).delivered == 1
    assert [request.target for request in stage.requests] == [ETL_PATH + tail for tail in wanted]


async def test_scheme_and_base_path_are_those_of_the_target(serve: Serve, drive: Drive) -> None:
    async with Stage(answering(STORED)) as stage:
        driver = await drive(serve(Upper, host_target=f"http://elsewhere:1{ETL_PATH}/"))
        await driver.push("src", "a", data=b"x", pipeline=f"https://{stage.netloc}/obj")
    assert stage.requests[0].target == f"{ETL_PATH}/obj"
    assert stage.requests[0].headers["host"] == stage.netloc


ARGUMENTS = '{"size": [1, 2], "q": "a&b=c+d %20#é/?"}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "etl_args=%s"),
        ("uuid=1&owt=5", "uuid=1&owt=5&etl_args=%s"),
        ("etl_args=old", "etl_args=%s"),
        ("a=%2f+&etl_args=old&b&etl_args=older&c=%20", "a=%2f+&b&c=%20&etl_args=%s"),
        ("my_etl_args=1&etl_argsx=2", "my_etl_args=1&etl_argsx=2&etl_args=%s"),
        ("etl%5Fargs=old&a=1", "a=1&etl_args=%s"),
    ],
)
async def test_the_arguments_are_carried_along(serve: Serve, drive: Drive, before: str, after: str) -> None:
    driver = await drive(serve(Upper, host_target=f"http://elsewhere:1{ETL_PATH}"))
    async with Stage(answering(STORED)) as stage:
        for tail in ("", "/obj"):
            url = f"{stage.url}{tail}?{before}" if before else stage.url + tail
            await driver.push("src", "a", data=b"x", pipeline=url, etl_args=ARGUMENTS)
            query = urlsplit(stage.requests[-1].target).query
            head, _, encoded = query.rpartition("etl_args=")
            assert head + "etl_args=%s" == after
            assert encoded == quote(ARGUMENTS, safe="").replace("%20", "+")


async def test_without_arguments_the_query_stays_as_it_is(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Upper))
    async with Stage(answering(STORED)) as stage:
        await driver.push("src", "a", data=b"x", pipeline=f"{stage.url}?etl_args=its%20own&a=1")
    assert stage.requests[0].target == "/src/a?etl_args=its%20own&a=1"


async def test_the_rest_of_the_pipeline_goes_on_in_the_same_header(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Upper))
    async with Stage(answering(STORED)) as stage:
        await driver.push("src", "a", data=b"x", pipeline=stage.url)
        await driver.push("src", "a", data=b"x", pipeline=f"{stage.url},http://b:1/c%2Fd?e=f")
        await driver.push("src", "a", data=b"x", pipeline=f" {stage.url} , http://b:1 ,http://c/d ")
    assert [request.headers.get("ais-node-url") for request in stage.requests] == [
        None,
        "http://b:1/c%2Fd?e=f",
        "http://b:1,http://c/d",
    ]


async def test_a_known_size_goes_as_content_length(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Upper))
    async with Stage(answering(STORED)) as stage:
        for size in (0, 1, 100_000, 2 << 20):
            await driver.push("src", "a", data=bytes(size), pipeline=stage.url)
            request = stage.requests[-1]
            assert (request.headers["content-length"], len(request.body)) == (str(size), size)
            assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("cls", STREAMS)
async def test_an_unknown_size_goes_chunked(serve: Serve, drive: Drive, cls: type[ETLServer]) -> None:
    driver = await drive(serve(cls))
    content = bytes(range(256)) * 8192
    async with Stage(answering(STORED)) as stage:
        reply = await driver.push("src", "a", data=content, pipeline=stage.url)
    request = stage.requests[0]
    assert reply.delivered == len(content)
    assert request.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in request.headers
    assert (bytes(request.body), request.complete) == (content.upper(), True)


async def test_the_token_goes_to_targets_only(serve: Serve, drive: Drive) -> None:
    async with Stage(answering(STORED)) as stage:
        driver = await drive(serve(Upper, host_target=f"http://elsewhere:1{ETL_PATH}", authn_token="t0ken"))
        await driver.push("src", "a", data=b"x", pipeline=stage.url)
        await driver.push("src", "a", data=b"x", pipeline=f"{stage.url}/obj")
    assert [request.headers.get("authorization") for request in stage.requests] == [None, "Bearer t0ken"]


async def test_without_a_target_a_destination_says_what_is_missing(serve: Serve, drive: Drive) -> None:
    driver = await drive(serve(Upper))
    with refusing() as netloc:
        reply = await driver.push("src", "a", data=b"x", pipeline=f"http://{netloc}/obj")
    assert reply.status == 503
    assert "AIS_TARGET_URL" in json.loads(reply.body)["detail"]


# Several servers, and a target at the end


@pytest.mark.parametrize("first", [Append, AppendStream])
@pytest.mark.parametrize("second", [Append, AppendStream])
async def test_a_result_comes_back_through_all_servers(
    serve: Serve, drive: Drive, first: type[ETLServer], second: type[ETLServer]
) -> None:
    lives = [serve(first), serve(second), serve(first)]
    driver = await drive(lives[0])
    stages = pipeline(*(live.url for live in lives[1:]))
    for content in (b"", b"content", bytes(1 << 20)):
        reply = await driver.push("src", "a", data=content, pipeline=stages, etl_args="x y")
        assert (reply.status, reply.body) == (200, content + b"|x y" * 3)


@pytest.mark.parametrize("last", ALL_EMPTY)
async def test_an_empty_result_at_the_end_is_an_empty_object(
    serve: Serve, target: Target, drive: Drive, last: type[ETLServer]
) -> None:
    first, second = serve(UpperStream, host_target=target.url), serve(last, host_target=target.url)
    async with RawClient(first.port) as client:
        await client.put("/src/a", b"x", f"ais-node-url: {second.url}\r\n")
        answer = await client.answer()
    assert (answer.status, answer.body, answer.whole) == (200, b"", True)
    assert answer.headers["transfer-encoding"] == "chunked"
    driver = await drive(first)
    reply = await driver.push("src", "a", data=b"x", pipeline=[second.url, target.destination("dst", "empty")])
    assert reply.delivered == 0
    assert target.read("dst", "empty") == b""


@pytest.mark.parametrize("cls", [Append, AppendStream])
async def test_every_name_is_stored_as_it_is(serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]) -> None:
    names = [name for name in ODD_NAMES if name not in (".", "..")]  # the folders of others
    first, second = serve(cls, host_target=target.url), serve(Append, host_target=target.url)
    driver = await drive(first)
    for name in names:
        stages = [second.url, target.destination("dst", name)]
        reply = await driver.push("src", name, data=b"content", pipeline=stages, etl_args="x")
        assert (reply.status, reply.delivered) == (204, 11), name
    assert target.names("dst") == sorted(names)
    assert {target.read("dst", name) for name in names} == {b"content|x|x"}


async def test_the_error_of_the_last_reaches_the_first(serve: Serve, target: Target, drive: Drive) -> None:
    class Failing(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            raise ValueError("not an image")

    lives = [serve(cls, host_target=target.url) for cls in (Upper, AsyncUpperStream, Failing)]
    driver = await drive(lives[0])
    stages = [lives[1].url, lives[2].url, target.destination("dst", "a")]
    reply = await driver.push("src", "a", data=b"x", pipeline=stages)
    assert (reply.status, json.loads(reply.body)) == (500, {"detail": "Processing error: not an image"})
    assert target.names("dst") == []


async def test_what_goes_out_does_not_wait_for_what_wants_to_come_in(serve: Serve, target: Target) -> None:
    """One connection each way, and less memory than the objects need: whoever has memory can always deliver."""
    target.path("src", "0").parent.mkdir(exist_ok=True)
    for number in range(6):
        target.path("src", str(number)).write_bytes(bytes(600_000))
    live = serve(Upper, host_target=target.url, max_connections=1, max_memory=1 << 20, workers=1)
    async with Driver(live.url, target, object_timeout=15) as driver:
        replies = await asyncio.gather(
            *(driver.pull("src", str(n), pipeline=target.destination("dst", str(n))) for n in range(6))
        )
    assert [reply.delivered for reply in replies] == [600_000] * 6
