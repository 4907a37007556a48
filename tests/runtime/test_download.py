"""POST /download: the server fetches any URL, and transforms what it answers."""

from __future__ import annotations

import json
import os
from urllib.parse import quote

import pytest

from etl_server import ETLServer
from etl_server.testing import Target
from tests.conftest import Live, Serve
from tests.raw_client import RawAnswer, RawClient
from tests.stages import Stage, answering, hanging_up, refusing, resetting, response, saying, stalling

from .transforms import ALL_TOLD, ALL_UPPER, STREAMS, Upper


async def download(live: Live, original_url: str, object_to: str, more: str = "", headers: str = "") -> RawAnswer:
    query = f"original_url={quote(original_url, safe='')}&object_to={quote(object_to, safe='')}{more}"
    return await post(live, f"/download?{query}", headers)


async def post(live: Live, path: str, headers: str = "") -> RawAnswer:
    async with RawClient(live.port) as client:
        await client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 0\r\n\r\n")
        return await client.answer()


@pytest.mark.parametrize("cls", ALL_UPPER)
async def test_a_url_is_fetched_and_transformed(serve: Serve, cls: type[ETLServer]) -> None:
    large = os.urandom(2 << 20)
    async with Stage(answering(response(200, b"content"), response(200, large, chunked=True), response(200))) as origin:
        live = serve(cls)
        for content in (b"content", large, b""):
            answer = await download(live, f"{origin.url}/a%20b?c=d&e=%2F", "bck/obj")
            assert (answer.status, answer.body, answer.whole) == (200, content.upper(), True)
        assert "content-length" not in answer.headers
    assert [request.target for request in origin.requests] == ["/a%20b?c=d&e=%2F"] * 3


@pytest.mark.parametrize("cls", ALL_TOLD)
async def test_the_transform_is_told_the_destination_and_the_arguments(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(answering(response(200, b"12345"))) as origin:
        answer = await download(serve(cls), origin.url, "bck/a b.jpg", "&etl_args=%7B%22a%22%3A1%7D")
    assert json.loads(answer.body) == [5, "bck/a b.jpg", '{"a":1}']


async def test_redirects_are_followed(serve: Serve) -> None:
    async with Stage(answering(response(302, b"", {"Location": "/there"}), response(200, b"content"))) as origin:
        assert (await download(serve(Upper), f"{origin.url}/here", "bck/obj")).body == b"CONTENT"
    assert [request.target for request in origin.requests] == ["/here", "/there"]


async def test_the_token_stays_here(serve: Serve, target: Target) -> None:
    async with Stage(answering(response(200, b"x"))) as origin:
        live = serve(Upper, host_target=target.url, authn_token="t0ken")
        assert (await download(live, origin.url, "bck/obj")).status == 200
    assert "authorization" not in origin.requests[0].headers


async def test_a_download_goes_on_to_the_next_stage(serve: Serve) -> None:
    async with Stage(answering(response(200, b"content"))) as origin, Stage(answering(response(200))) as stage:
        live = serve(Upper)
        answer = await download(live, origin.url, "bck/a b", "&etl_args=x", f"ais-node-url: {stage.url}\r\n")
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "7")
    assert (stage.requests[0].target, bytes(stage.requests[0].body)) == ("/bck/a%20b?etl_args=x", b"CONTENT")


async def test_both_parameters_are_required(serve: Serve) -> None:
    live = serve(Upper)
    for query in ("", "?original_url=http%3A%2F%2Fhost%2F", "?object_to=bck%2Fobj", "?original_url=&object_to=x"):
        answer = await post(live, f"/download{query}")
        assert answer.status == 400, query
        detail = json.loads(answer.body)["detail"]
        assert "original_url" in detail
        assert "object_to" in detail


NO_URLS = [
    "nonsense",
    "/etc/passwd",
    "file:///etc",
    "ftp://h/x",
    "http://",
    "http:///x",
    "http://[::1/x",
    "http://a..b/",
]


@pytest.mark.parametrize("url", NO_URLS)
async def test_what_is_no_url_is_a_bad_request(serve: Serve, url: str) -> None:
    answer = await download(serve(Upper), url, "bck/obj")
    assert answer.status == 400
    assert "original_url" in json.loads(answer.body)["detail"]


async def test_other_methods_are_not_allowed(serve: Serve) -> None:
    async with RawClient(serve(Upper).port) as client:
        for method in ("GET", "PUT", "DELETE", "HEAD"):
            await client.send(f"{method} /download?original_url=http://x/&object_to=y HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await client.answer(method)
            assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_the_origins_error_is_passed_on(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(answering(response(404, b"gone", {"Content-Type": "text/x-why"}))) as origin:
        answer = await download(serve(cls), origin.url, "bck/obj")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (404, b"gone", "text/x-why")


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_an_origin_that_refuses_is_a_bad_gateway(serve: Serve, cls: type[ETLServer]) -> None:
    with refusing() as netloc:
        assert (await download(serve(cls), f"http://{netloc}/x", "bck/obj")).status == 502


FAULTS = {
    "resets": resetting,
    "hangs up": hanging_up,
    "stalls": stalling,
    "no HTTP": saying(b"220 mail.example ESMTP\r\n"),
    "half a head": saying(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "cut": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
    "chunks cut": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
}


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_an_origin_that_fails_is_never_an_object(serve: Serve, cls: type[ETLServer]) -> None:
    live = serve(cls, io_timeout=0.3)
    for fault, script in FAULTS.items():
        async with Stage(script) as origin:
            answer = await download(live, origin.url, "bck/obj")
            assert answer.status == 502 or not answer.whole, fault
        async with RawClient(live.port) as client:
            await client.put("/src/a", b"x")
            assert (await client.answer()).body == b"X"
