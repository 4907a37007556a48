"""Direct put: what the server makes of every answer that a next stage may give, or fail to give."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from etl_server import ETLServer
from etl_server.testing import Driver, Reply, Target
from etl_server.wire.checksum import CHECKSUM_TYPES, ChecksumType, checksum_of
from tests.conftest import Live, Serve
from tests.raw_client import RawAnswer, RawClient
from tests.stages import (
    STORED,
    Script,
    Stage,
    StageConnection,
    answering,
    deaf,
    hanging_up,
    refusing,
    resetting,
    resetting_at_once,
    resetting_midway,
    response,
    saying,
    saying_early,
    stalling,
)

from .conftest import Drive
from .transforms import EAGER_STREAMS, STREAMS, AsyncUpperStream, EagerStream, Upper, UpperStream

LARGE = os.urandom(8 << 20)
"""More than fits between two sockets."""


async def push(live: Live, url: str, body: bytes = b"content") -> RawAnswer:
    """PUT an object that has to go on to `url`; how the answer ends shows."""
    async with RawClient(live.port) as client:
        sending = asyncio.create_task(client.put("/src/a", body, f"ais-node-url: {url}\r\n"))
        answer = await client.answer()
        await asyncio.wait([sending])
        return answer


# The answers of the contract


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_204_is_passed_back_with_its_length(serve: Serve, cls: type[ETLServer]) -> None:
    live = serve(cls)
    async with Stage(answering(response(204, headers={"Ais-Direct-Put-Length": "42"}), response(204))) as stage:
        answer = await push(live, stage.url)
        assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "42")
        answer = await push(live, stage.url)
        assert answer.status == 204
        assert "ais-direct-put-length" not in answer.headers


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
@pytest.mark.parametrize("content", [b"", b"content", LARGE], ids=["empty", "small", "large"])
async def test_an_empty_200_is_a_targets_acknowledgement(serve: Serve, cls: type[ETLServer], content: bytes) -> None:
    async with Stage(answering(STORED)) as stage:
        answer = await push(serve(cls), stage.url, content)
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, str(len(content)))
    assert (bytes(stage.requests[0].body), stage.requests[0].complete) == (content.upper(), True)


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("content", [b"transformed on", LARGE], ids=["small", "large"])
async def test_200_with_content_is_passed_back(
    serve: Serve, cls: type[ETLServer], chunked: bool, content: bytes
) -> None:
    async with Stage(answering(response(200, content, {"Content-Type": "image/x"}, chunked=chunked))) as stage:
        answer = await push(serve(cls), stage.url)
    assert (answer.status, answer.whole, answer.headers["content-type"]) == (200, True, "image/x")
    assert answer.body == content
    assert bytes(stage.requests[0].body) == b"CONTENT"


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_an_empty_200_that_is_chunked_is_an_empty_object(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(answering(response(200, chunked=True))) as stage:
        answer = await push(serve(cls), stage.url)
    assert (answer.status, answer.body, answer.whole) == (200, b"", True)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_error_is_passed_back_and_not_tried_again(
    serve: Serve, backoffs: list[float], cls: type[ETLServer], chunked: bool
) -> None:
    live = serve(cls)
    for status in (400, 404, 409, 416, 429, 500, 503, 507):
        reason = b"reason %d" % status
        async with Stage(answering(response(status, reason, {"Content-Type": "text/why"}, chunked=chunked))) as stage:
            answer = await push(live, stage.url)
            assert (answer.status, answer.body, answer.headers["content-type"]) == (status, reason, "text/why")
            assert len(stage.requests) == 1
    assert backoffs == []


async def test_a_next_stage_that_asks_for_the_whole_put_again_is_heard(serve: Serve) -> None:
    reason = {"ais-etl-retry-reason": "direct-put-transient"}
    async with Stage(answering(response(503, b"{}", reason))) as stage:
        answer = await push(serve(Upper), stage.url)
    assert (answer.status, answer.headers["ais-etl-retry-reason"]) == (503, "direct-put-transient")


async def test_a_redirect_is_neither_followed_nor_taken_for_success(serve: Serve) -> None:
    live = serve(Upper)
    async with Stage(answering(STORED)) as elsewhere:
        async with Stage(answering(response(307, b"", {"Location": f"{elsewhere.url}/x"}))) as stage:
            assert (await push(live, stage.url)).status == 502
        assert elsewhere.connections == 0


async def test_an_interim_answer_is_passed_over(serve: Serve) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 99\r\nLink: x\r\n\r\n"
    async with Stage(answering(interim + response(200, b"content"))) as stage:
        answer = await push(serve(Upper), stage.url)
    assert (answer.status, answer.body) == (200, b"content")


async def test_connections_to_the_next_stage_are_kept(serve: Serve) -> None:
    answers = [STORED, response(204), response(200, b"x"), response(200, chunked=True), response(500, b"x")]
    live = serve(Upper)
    async with Stage(answering(*answers)) as stage:
        for _ in answers:
            await push(live, stage.url)
        assert stage.connections == 1


async def test_a_next_stage_may_close_after_its_answer(serve: Serve) -> None:
    live = serve(Upper)
    async with Stage(saying(response(200, b"", {"Connection": "close"}))) as stage:
        for _ in range(3):
            assert (await push(live, stage.url)).status == 204
        assert stage.connections == 3


# Refused


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_is_not_tried_again(
    serve: Serve, backoffs: list[float], cls: type[ETLServer], host: str
) -> None:
    with refusing() as netloc:
        url = f"http://{host}:{netloc.rpartition(':')[2]}"
        live = serve(cls)
        for body in (b"content", LARGE):
            answer = await push(live, url, body)
            assert answer.status == 502
            assert "refused" in json.loads(answer.body)["detail"]
            assert "ais-etl-retry-reason" not in answer.headers
    assert backoffs == []


async def test_refused_after_a_reset_is_not_tried_again(serve: Serve, backoffs: list[float]) -> None:
    async def close_the_door(connection: StageConnection) -> None:
        await connection.request()
        connection.stage.stop_listening()
        connection.reset()

    async with Stage(close_the_door) as stage:
        assert (await push(serve(Upper), stage.url)).status == 502
        assert stage.connections == 1
    assert backoffs == [1]


# Lost


FAULTS: dict[str, Script] = {
    "resets": resetting,
    "resets at once": resetting_at_once,
    "resets midway": resetting_midway,
    "hangs up": hanging_up,
    "stalls": stalling,
    "no HTTP": saying(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "half a head": saying(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a 204": saying(b"HTTP/1.1 204 No Content\r\n"),
    "no body": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
    "no chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "half an error": saying(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf of the rea"),
    "no framing": saying(b"HTTP/1.1 200 OK\r\n\r\n"),
    "no framing but a body": saying(b"HTTP/1.0 200 OK\r\n\r\nperhaps all of it"),
    "bad chunk": saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "bad length": saying(b"HTTP/1.1 200 OK\r\nContent-Length: few\r\n\r\n"),
    "two framings": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two lengths": saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"),
    "only an interim answer": saying(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an upgrade": saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
}


async def test_a_lost_delivery_is_tried_again(serve: Serve, backoffs: list[float]) -> None:
    live = serve(Upper, io_timeout=0.3)
    for fault, script in FAULTS.items():
        backoffs.clear()
        async with Stage(script, answering(STORED)) as stage:
            answer = await push(live, stage.url)
            assert (answer.status, answer.headers.get("ais-direct-put-length")) == (204, "7"), fault
            assert (stage.connections, backoffs) == (2, [1]), fault
            assert (bytes(stage.requests[-1].body), stage.requests[-1].complete) == (b"CONTENT", True), fault


async def test_when_all_tries_are_lost_it_is_a_bad_gateway(serve: Serve, backoffs: list[float]) -> None:
    live = serve(Upper, io_timeout=0.3, direct_put_retries=2)
    for fault, script in FAULTS.items():
        backoffs.clear()
        async with Stage(script) as stage:
            answer = await push(live, stage.url)
            assert answer.status == 502, fault
            assert "detail" in json.loads(answer.body)
            assert "ais-etl-retry-reason" not in answer.headers
            assert (stage.connections, backoffs) == (3, [1, 2]), fault
        async with Stage(answering(STORED)) as stage:
            assert (await push(live, stage.url)).status == 204


async def test_a_next_stage_that_does_not_read_is_lost(serve: Serve, backoffs: list[float]) -> None:
    async with Stage(deaf, answering(STORED)) as stage:
        answer = await push(serve(Upper, io_timeout=0.3), stage.url, LARGE)
        assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, str(len(LARGE)))
        assert stage.connections == 2


async def test_the_waits_double_up_to_thirty_seconds(serve: Serve, backoffs: list[float]) -> None:
    async with Stage(resetting) as stage:
        assert (await push(serve(Upper, direct_put_retries=7), stage.url)).status == 502
        assert stage.connections == 8
    assert backoffs == [1, 2, 4, 8, 16, 30, 30]


async def test_without_retries_there_is_one_try(serve: Serve, backoffs: list[float]) -> None:
    async with Stage(resetting) as stage:
        assert (await push(serve(Upper, direct_put_retries=0), stage.url)).status == 502
        assert stage.connections == 1
    assert backoffs == []


async def test_by_default_there_are_three_retries(serve: Serve, backoffs: list[float]) -> None:
    async with Stage(resetting) as stage:
        assert (await push(serve(Upper), stage.url)).status == 502
        assert stage.connections == 4
    assert backoffs == [1, 2, 4]


async def test_an_error_after_a_reset_is_passed_back(serve: Serve, backoffs: list[float]) -> None:
    async with Stage(resetting, answering(response(409, b"conflict"))) as stage:
        answer = await push(serve(Upper), stage.url)
    assert (answer.status, answer.body) == (409, b"conflict")
    assert backoffs == [1]


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_half_of_a_result_is_never_passed_back_as_a_whole(
    serve: Serve, backoffs: list[float], cls: type[ETLServer]
) -> None:
    live = serve(cls, direct_put_retries=1)
    for half in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n4\r\n",
    ):
        async with Stage(saying(half)) as stage:
            answer = await push(live, stage.url)
            assert answer.status >= 500 or not answer.whole


# Lost, and what it takes to send the object again


ONE_SHOT_FAULTS = [
    "resets",
    "resets midway",
    "hangs up",
    "stalls",
    "no HTTP",
    "half a head",
    "no body",
    "half an error",
]


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_the_target_is_to_repeat_what_only_it_has(
    serve: Serve, backoffs: list[float], cls: type[ETLServer]
) -> None:
    live = serve(cls, io_timeout=0.5)
    for fault in ONE_SHOT_FAULTS:
        async with Stage(FAULTS[fault]) as stage, RawClient(live.port) as client:
            await client.start_chunked("/src/a", f"ais-node-url: {stage.url}\r\n")
            await client.chunk(b"first")
            await stage.asked()
            await client.chunk(b"last")
            await client.chunk(b"")
            answer = await client.answer()
            assert answer.status == 503, fault
            assert answer.headers["ais-etl-retry-reason"] == "direct-put-transient", fault
            assert "detail" in json.loads(answer.body)
            assert stage.connections == 1
    assert backoffs == []


async def test_a_repeated_put_arrives_whole(serve: Serve, target: Target) -> None:
    live = serve(UpperStream, host_target=target.url)
    target.path("src", "a").parent.mkdir()
    target.path("src", "a").write_bytes(LARGE)
    async with Stage(resetting_midway, answering(STORED)) as stage, Driver(live.url, target) as driver:
        reply = await driver.push_retrying("src", "a", pipeline=stage.url)
        assert reply.delivered == len(LARGE)
        assert bytes(stage.requests[-1].body) == LARGE.upper()


@pytest.mark.parametrize("cls", STREAMS)
async def test_a_file_is_read_again(
    serve: Serve, backoffs: list[float], drive: Drive, tmp_path: Path, cls: type[ETLServer]
) -> None:
    (tmp_path / "obj").write_bytes(LARGE)
    driver = await drive(serve(cls, fqn_roots=(tmp_path,), direct_put_retries=1))
    async with Stage(resetting_midway, answering(STORED)) as stage:
        reply = await driver.push("src", "a", fqn=str(tmp_path / "obj"), pipeline=stage.url)
        assert reply.delivered == len(LARGE)
        assert (bytes(stage.requests[-1].body), stage.connections) == (LARGE.upper(), 2)


@pytest.mark.parametrize("cls", STREAMS)
async def test_an_object_of_the_target_is_read_again(
    serve: Serve, backoffs: list[float], target: Target, drive: Drive, cls: type[ETLServer]
) -> None:
    target.path("src", "a").parent.mkdir()
    target.path("src", "a").write_bytes(LARGE)
    driver = await drive(serve(cls, host_target=target.url))
    async with Stage(resetting_midway, resetting, answering(STORED)) as stage:
        reply = await driver.pull("src", "a", pipeline=stage.url)
        assert reply.delivered == len(LARGE)
        assert (bytes(stage.requests[-1].body), stage.connections) == (LARGE.upper(), 3)
    assert [request.method for request in target.requests] == ["GET"] * 3
    assert backoffs == [1, 2]


async def test_a_buffered_result_is_sent_again_without_transforming_again(serve: Serve, backoffs: list[float]) -> None:
    calls: list[str] = []

    class Counted(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            calls.append(path)
            return data

    async with Stage(resetting, resetting, answering(STORED)) as stage:
        assert (await push(serve(Counted), stage.url)).status == 204
    assert calls == ["src/a"]


@pytest.mark.parametrize("cls", STREAMS)
async def test_when_the_object_cannot_be_read_again_that_is_the_answer(
    serve: Serve, backoffs: list[float], target: Target, cls: type[ETLServer]
) -> None:
    origin = Stage(saying(response(200, LARGE)), answering(response(404, b"deleted meanwhile")))
    async with origin, Stage(resetting_midway) as stage:
        live = serve(cls, host_target=f"{origin.url}/v1/etl/_object/dev/s3cr3t")
        async with Driver(live.url, target) as driver:
            reply = await driver.pull("src", "a", pipeline=stage.url)
    assert (reply.status, reply.body) == (404, b"deleted meanwhile")


# Streams


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_a_result_is_on_its_way_while_the_object_still_comes(serve: Serve, cls: type[ETLServer]) -> None:
    async with Stage(answering(STORED)) as stage, RawClient(serve(cls).port) as client:
        await client.start_chunked("/src/a", f"ais-node-url: {stage.url}\r\n")
        await client.chunk(b"first")
        await stage.until(lambda: bool(stage.requests) and stage.requests[0].body == b"first")
        await client.chunk(b"last")
        await client.chunk(b"")
        answer = await client.answer()
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "9")


@pytest.mark.parametrize("cls", EAGER_STREAMS)
async def test_the_answer_of_the_next_stage_streams_back_while_the_object_still_goes(
    serve: Serve, cls: type[ETLServer]
) -> None:
    async def echoing(connection: StageConnection) -> None:
        request = await connection.head()
        assert request is not None
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await connection.reader.read(65536):  # chunks come back as they came
            await connection.send(piece)

    async with Stage(echoing) as stage, RawClient(serve(cls).port) as client:
        await client.start_chunked("/src/a", f"ais-node-url: {stage.url}\r\n")
        await client.chunk(b"first")
        assert (await client.head())[0] == 200
        assert await client.next_chunk() == b"first"
        await client.chunk(b"last")
        assert await client.next_chunk() == b"last"
        await client.chunk(b"")
        assert await client.next_chunk() == b""


@pytest.mark.parametrize("cls", STREAMS)
async def test_a_large_object_streams_through_two_servers_and_back(
    serve: Serve, drive: Drive, cls: type[ETLServer]
) -> None:
    driver = await drive(serve(cls))
    reply = await driver.push("src", "a", data=LARGE, pipeline=serve(cls).url)
    assert (reply.status, reply.body) == (200, LARGE.upper())


@pytest.mark.parametrize("cls", [UpperStream, AsyncUpperStream])
async def test_a_client_is_held_up_while_the_next_stage_does_not_read(serve: Serve, cls: type[ETLServer]) -> None:
    size = 256 << 20
    async with Stage(deaf) as stage, RawClient(serve(cls).port) as client:
        await client.send(
            f"PUT /src/a HTTP/1.1\r\nHost: x\r\nais-node-url: {stage.url}\r\nContent-Length: {size}\r\n\r\n"
        )
        sent = 0
        while sent < size:
            client.writer.write(bytes(1 << 20))
            sent += 1 << 20
            try:
                await asyncio.wait_for(client.writer.drain(), 0.3)
            except asyncio.TimeoutError:
                break
    assert sent < size // 2


# Answers before the object was sent


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_an_early_error_is_passed_back(serve: Serve, backoffs: list[float], cls: type[ETLServer]) -> None:
    async with Stage(saying_early(response(507, b"bucket is full"))) as stage:
        answer = await push(serve(cls), stage.url, LARGE)
        assert (answer.status, answer.body) == (507, b"bucket is full")
        assert stage.connections == 1


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_an_acknowledgement_before_the_object_was_sent_is_none(
    serve: Serve, backoffs: list[float], cls: type[ETLServer]
) -> None:
    async def rash(connection: StageConnection) -> None:
        await connection.head()
        await connection.send(STORED)
        await connection.stage.until(lambda: connection.stage.connections > 1 or done.is_set())

    done = asyncio.Event()
    async with Stage(rash) as stage:
        answer = await push(serve(cls, direct_put_retries=0), stage.url, LARGE)
        done.set()
        stage.tell()
    assert answer.status in (502, 503)


@pytest.mark.parametrize("cls", STREAMS)
async def test_a_next_stage_may_be_content_with_the_beginning(serve: Serve, cls: type[ETLServer]) -> None:
    """As an ETL server is whose own transform reads no more, and whose result is delivered."""
    async with Stage(saying_early(response(204, headers={"ais-direct-put-length": "5"}))) as stage:
        answer = await push(serve(cls), stage.url, LARGE)
    assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "5")


@pytest.mark.parametrize("extra", [b"garbage", response(200, b"another"), STORED])
async def test_what_comes_behind_an_answer_is_no_part_of_it(serve: Serve, backoffs: list[float], extra: bytes) -> None:
    live = serve(Upper, direct_put_retries=0)
    for first in (response(200, b"content"), response(200, b"content", chunked=True)):
        async with Stage(answering(first + extra)) as stage:
            for _ in range(3):
                answer = await push(live, stage.url)
                assert answer.status == 502 or not answer.whole or answer.body == b"content"


# Checksums


@pytest.mark.parametrize("checksum", CHECKSUM_TYPES)
async def test_a_checksum_goes_along(serve: Serve, target: Target, drive: Drive, checksum: ChecksumType) -> None:
    driver = await drive(serve(Upper, host_target=target.url, checksum=checksum))
    for content in (b"", b"content", LARGE):
        reply = await driver.push("src", "a", data=content, pipeline=target.destination("dst", "a"))
        assert reply.delivered == len(content)
        assert target.read("dst", "a") == content.upper()
        headers = target.requests[-1].headers
        assert headers["ais-checksum-type"] == checksum
        assert headers["ais-checksum-value"] == checksum_of(checksum, content.upper())


async def test_by_default_no_checksum_goes_along(serve: Serve, target: Target, drive: Drive) -> None:
    driver = await drive(serve(Upper, host_target=target.url))
    assert (await driver.push("src", "a", data=b"x", pipeline=target.destination("dst", "a"))).delivered == 1
    assert not [name for name in target.requests[-1].headers if name.lower().startswith("ais-checksum")]


@pytest.mark.parametrize("cls", STREAMS)
async def test_a_stream_has_no_checksum(serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]) -> None:
    driver = await drive(serve(cls, host_target=target.url, checksum="md5"))
    reply: Reply = await driver.push("src", "a", data=LARGE, pipeline=target.destination("dst", "a"))
    assert reply.delivered == len(LARGE)
    assert target.read("dst", "a") == LARGE.upper()
    assert not [name for name in target.requests[-1].headers if name.lower().startswith("ais-checksum")]


# A real target


@pytest.mark.parametrize("cls", [Upper, *STREAMS])
async def test_a_target_stores_what_it_is_sent(
    serve: Serve, target: Target, drive: Drive, cls: type[ETLServer]
) -> None:
    target.path("src", "a").parent.mkdir()
    target.path("src", "a").write_bytes(LARGE)
    driver = await drive(serve(cls, host_target=target.url))
    replies = [
        await driver.push("src", "a", pipeline=target.destination("dst", "pushed")),
        await driver.pull("src", "a", pipeline=target.destination("dst", "pulled")),
    ]
    assert [reply.delivered for reply in replies] == [len(LARGE)] * 2
    assert target.read("dst", "pushed") == target.read("dst", "pulled") == LARGE.upper()


async def test_a_target_that_refuses_the_secret_says_so(serve: Serve, target: Target, drive: Drive) -> None:
    driver = await drive(serve(Upper, host_target=target.url + "-not"))
    reply = await driver.push("src", "a", data=b"x", pipeline=target.destination("dst", "a"))
    assert reply.status == 403
    assert target.names("dst") == []


# What breaks off


@pytest.mark.parametrize("cls", EAGER_STREAMS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_object_that_breaks_off_never_arrives_as_a_whole(
    serve: Serve, cls: type[ETLServer], chunked: bool
) -> None:
    framing = "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n" if chunked else "Content-Length: 10\r\n\r\nfirst"
    async with Stage(answering(STORED)) as stage:
        async with RawClient(serve(cls).port) as client:
            await client.send(f"PUT /src/a HTTP/1.1\r\nHost: x\r\nais-node-url: {stage.url}\r\n{framing}")
            await stage.until(lambda: bool(stage.requests) and stage.requests[0].body == b"first")
        await stage.left()
        assert not stage.requests[0].complete
        assert stage.connections == 1


async def test_a_client_that_goes_away_ends_its_delivery(serve: Serve) -> None:
    async with Stage(stalling) as stage:
        async with RawClient(serve(EagerStream).port) as client:
            await client.put("/src/a", b"content", f"ais-node-url: {stage.url}\r\n")
            await stage.until(lambda: bool(stage.requests) and stage.requests[0].complete)
        await stage.left()
