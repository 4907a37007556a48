"""Objects that wait for one answer and for nothing else: they end as all others do, whatever that answer is."""

from __future__ import annotations

import asyncio
import json

import pytest

from etl_server import ETLServer
from etl_server.runtime.hop import Hop
from tests.conftest import Live, Serve, Transport
from tests.helpers import eventually
from tests.raw_client import RawAnswer, RawClient
from tests.stages import STORED, Script, Stage, StageConnection, answering, refusing, response, saying, stalling

from .test_at_once import Inline
from .test_direct_put import FAULTS

OBJECT = response(200, b"object", {"Content-Type": "x/y"})
BROKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


class Hops:
    """How many objects have gone without a coroutine."""

    def __init__(self) -> None:
        self.begun = 0


@pytest.fixture
def transport() -> Transport:
    """The other transport knows nothing of hops."""
    return "protocol"


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> Hops:
    hops = Hops()
    begin = Hop.begin

    def counted(hop: Hop) -> bool:
        begun = begin(hop)
        hops.begun += begun
        return begun

    monkeypatch.setattr(Hop, "begin", counted)
    return hops


def then(answer: bytes, script: Script) -> Script:
    """Answer the first request of a connection, so that it is kept; then do what the script does."""

    async def both(connection: StageConnection) -> None:
        if await connection.request() is not None:
            await connection.send(answer)
            await script(connection)

    return both


async def deliver(client: RawClient, url: str, body: bytes = b"content") -> RawAnswer:
    """PUT an object that has to go on to `url`."""
    await client.put("/src/a", body, f"ais-node-url: {url}\r\n")
    return await client.answer()


async def begin_delivery(client: RawClient, stage: Stage) -> None:
    """Deliver one object, so that its connection is kept, and send another one, until `stage` has that."""
    await deliver(client, stage.url)
    await client.put("/src/a", b"content", f"ais-node-url: {stage.url}\r\n")
    await stage.until(lambda: len(stage.requests) == 2)


async def pull(client: RawClient) -> RawAnswer:
    """GET an object of the target."""
    await client.get("/a%2Fb")
    return await client.answer()


async def idle(live: Live) -> None:
    """Wait until nothing is in flight; nothing may be held for an object then."""
    admission = live.worker.admission
    await eventually(lambda: admission.in_flight == 0 and not live._uvicorn.server_state.tasks)
    assert admission.memory.used == 0
    assert [place.used for place in live.worker.outbound._places.values()] == [0, 0]


# As usual


async def test_a_delivery_over_a_kept_connection_is_a_hop(serve: Serve, hops: Hops) -> None:
    live = serve(Inline)
    async with Stage(answering(STORED, STORED, response(204, headers={"Ais-Direct-Put-Length": "42"}))) as stage:
        async with RawClient(live.port) as client:
            for length in ("7", "7", "42"):
                answer = await deliver(client, stage.url)
                assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, length)
        assert (stage.connections, hops.begun) == (1, 2)
        assert {bytes(request.body) for request in stage.requests} == {b"CONTENT"}
    assert live.worker.counts.direct_puts["delivered"] == 3
    assert live.worker.counts.push.outcomes[204] == 3
    await idle(live)


async def test_a_pull_over_a_kept_connection_is_a_hop(serve: Serve, hops: Hops) -> None:
    async with Stage(answering(OBJECT)) as stage:
        live = serve(Inline, host_target=f"{stage.url}/base")
        async with RawClient(live.port) as client:
            for _ in range(3):
                answer = await pull(client)
                assert (answer.status, answer.body) == (200, b"OBJECT")
        assert (stage.connections, hops.begun) == (1, 2)
        assert {request.target for request in stage.requests} == {"/base/a%2Fb"}
    assert live.worker.counts.pull.outcomes[200] == 3
    await idle(live)


async def test_of_pipelined_requests_every_one_gets_its_answer_in_its_turn(serve: Serve, hops: Hops) -> None:
    async def echo(connection: StageConnection) -> None:
        while (request := await connection.request()) is not None:
            await connection.send(response(200, request.target.encode()))

    async with Stage(echo) as stage:
        live = serve(Inline, host_target=stage.url)
        async with RawClient(live.port) as client:
            await pull(client)
            names = [f"/{number}" for number in range(100)]
            await client.send(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % name.encode() for name in names))
            assert [(await client.answer()).body for _ in names] == [name.encode() for name in names]
    assert hops.begun == 100
    await idle(live)


async def test_many_hops_at_once_do_not_mix(serve: Serve, hops: Hops) -> None:
    async def echo(connection: StageConnection) -> None:
        while (request := await connection.request()) is not None:
            await asyncio.sleep(0.001)
            await connection.send(response(200, request.target.encode()))

    async with Stage(echo) as stage:
        live = serve(Inline, host_target=stage.url)

        async def ask(number: int) -> None:
            async with RawClient(live.port) as client:
                for count in range(20):
                    await client.get(f"/{number}-{count}")
                    assert (await client.answer()).body == b"/%d-%d" % (number, count)

        await asyncio.gather(*(ask(number) for number in range(20)))
    assert hops.begun > 300
    await idle(live)


async def test_hops_keep_to_the_connections_that_are_allowed(serve: Serve, hops: Hops) -> None:
    asked = most = 0

    async def echo(connection: StageConnection) -> None:
        nonlocal asked, most
        while (request := await connection.request()) is not None:
            asked += 1
            most = max(most, asked)
            await asyncio.sleep(0.001)
            asked -= 1
            await connection.send(response(200, request.target.encode()))

    async with Stage(echo) as stage:
        live = serve(Inline, host_target=stage.url, max_connections=3, max_keepalive_connections=2)

        async def ask(number: int) -> None:
            async with RawClient(live.port) as client:
                for count in range(10):
                    await client.get(f"/{number}-{count}")
                    assert (await client.answer()).body == b"/%d-%d" % (number, count)

        for clients in (10, 2):  # ten wait for each other, two have a connection at hand
            await asyncio.gather(*(ask(number) for number in range(clients)))
        await stage.until(lambda: stage.open <= 2)
        outbound = live.worker.outbound
        assert (len(outbound._open), outbound._idle_count) == (stage.open, stage.open)
    assert most <= 3
    assert hops.begun >= 20
    await idle(live)


# What is not as usual goes on as it would have without a hop


@pytest.mark.parametrize("status", [400, 404, 409, 416, 429, 500, 503, 507])
async def test_an_error_of_the_next_stage_is_passed_back(
    serve: Serve, hops: Hops, backoffs: list[float], status: int
) -> None:
    live = serve(Inline)
    error = response(status, b"why", {"Content-Type": "text/why", "ais-etl-retry-reason": "busy"})
    async with Stage(answering(STORED, error)) as stage, RawClient(live.port) as client:
        assert (await deliver(client, stage.url)).status == 204
        answer = await deliver(client, stage.url)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (status, b"why", "text/why")
        assert answer.headers["ais-etl-retry-reason"] == "busy"
        assert len(stage.requests) == 2
    assert hops.begun == 1
    assert live.worker.counts.direct_puts["rejected"] == 1
    assert backoffs == []
    await idle(live)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("content", [b"", b"passed on", b"x" * (1 << 20)], ids=["empty", "small", "large"])
async def test_what_the_next_stage_answers_is_passed_back(
    serve: Serve, hops: Hops, content: bytes, chunked: bool
) -> None:
    live = serve(Inline)
    body = response(200, content, chunked=chunked)
    async with Stage(answering(STORED, body, STORED)) as stage, RawClient(live.port) as client:
        assert (await deliver(client, stage.url)).status == 204
        answer = await deliver(client, stage.url)
        acknowledged = not content and not chunked
        assert (answer.status, answer.body, answer.whole) == (204 if acknowledged else 200, content, True)
        assert (await deliver(client, stage.url)).status == 204
        assert stage.connections == 1
    assert hops.begun == 2
    await idle(live)


async def test_an_interim_answer_is_no_answer(serve: Serve, hops: Hops) -> None:
    live = serve(Inline)
    interim = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n"
    async with Stage(answering(STORED, interim + STORED)) as stage, RawClient(live.port) as client:
        for _ in range(3):
            assert (await deliver(client, stage.url)).headers["ais-direct-put-length"] == "7"
    assert hops.begun == 2


async def test_a_delivery_over_a_connection_that_went_stale_is_made_on_a_new_one(
    serve: Serve, hops: Hops, backoffs: list[float]
) -> None:
    async def taking_no_more(connection: StageConnection) -> None:
        await connection.head()
        connection.reset()

    live = serve(Inline)
    async with Stage(then(STORED, taking_no_more), answering(STORED)) as stage, RawClient(live.port) as client:
        for _ in range(2):
            assert (await deliver(client, stage.url)).headers["ais-direct-put-length"] == "7"
        assert stage.connections == 2
        assert bytes(stage.requests[-1].body) == b"CONTENT"
    assert (hops.begun, backoffs) == (1, [])
    assert live.worker.counts.retries == 0
    await idle(live)


async def test_a_pull_over_a_connection_that_went_stale_is_made_on_a_new_one(serve: Serve, hops: Hops) -> None:
    async with Stage(then(OBJECT, saying(b"")), answering(OBJECT)) as stage:
        live = serve(Inline, host_target=stage.url)
        async with RawClient(live.port) as client:
            for _ in range(2):
                assert (await pull(client)).body == b"OBJECT"
        assert stage.connections == 2
    assert hops.begun == 1
    await idle(live)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_lost_delivery_is_tried_again(serve: Serve, hops: Hops, backoffs: list[float], fault: str) -> None:
    live = serve(Inline, io_timeout=0.3)
    async with Stage(then(STORED, FAULTS[fault]), answering(STORED)) as stage, RawClient(live.port) as client:
        assert (await deliver(client, stage.url)).status == 204
        answer = await deliver(client, stage.url)
        assert (answer.status, answer.headers["ais-direct-put-length"]) == (204, "7")
        assert stage.connections == 2
        assert (bytes(stage.requests[-1].body), stage.requests[-1].complete) == (b"CONTENT", True)
    assert hops.begun == 1 or fault == "resets at once"  # which may be seen before the connection is wanted again
    await idle(live)


async def test_a_delivery_that_stays_lost_is_a_bad_gateway(serve: Serve, hops: Hops, backoffs: list[float]) -> None:
    live = serve(Inline, io_timeout=0.3, direct_put_retries=2)
    async with Stage(then(STORED, stalling), stalling) as stage, RawClient(live.port) as client:
        assert (await deliver(client, stage.url)).status == 204
        assert (await deliver(client, stage.url)).status == 502
        assert stage.connections == 3
    assert (hops.begun, backoffs) == (1, [1, 2])
    assert live.worker.counts.direct_puts == {"delivered": 1, "unreachable": 1}
    await idle(live)


async def test_a_stage_that_is_gone_is_reported_as_such(serve: Serve, hops: Hops) -> None:
    live = serve(Inline)
    with refusing() as netloc:
        async with RawClient(live.port) as client:
            answer = await deliver(client, f"http://{netloc}")
            assert answer.status == 502
    assert hops.begun == 0
    await idle(live)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (answering(response(404, b"no such object")), 404),
        (answering(response(302, headers={"Location": "/"})), 502),
        (saying(BROKEN), 502),
        (saying(b"no HTTP\r\n\r\n"), 502),
        (stalling, 502),
    ],
    ids=["missing", "redirect", "broken", "no HTTP", "stalls"],
)
async def test_a_pull_that_fails_fails_its_object_alone(serve: Serve, hops: Hops, script: Script, status: int) -> None:
    async with Stage(then(OBJECT, script), answering(OBJECT)) as stage:
        live = serve(Inline, host_target=stage.url, io_timeout=0.3)
        async with RawClient(live.port) as client:
            assert (await pull(client)).body == b"OBJECT"
            answer = await pull(client)
            assert answer.status == status
            assert answer.body == b"no such object" or "detail" in json.loads(answer.body)
    assert hops.begun == 1
    await idle(live)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_object_is_pulled_as_well(serve: Serve, hops: Hops, chunked: bool) -> None:
    large = b"x" * (8 << 20)
    async with Stage(answering(OBJECT, response(200, large, chunked=chunked), OBJECT)) as stage:
        live = serve(Inline, host_target=stage.url)
        async with RawClient(live.port) as client:
            for body in (b"OBJECT", large.upper(), b"OBJECT"):
                answer = await pull(client)
                assert (answer.status, answer.whole) == (200, True)
                assert answer.body == body
        assert stage.connections == 1
    assert hops.begun == 2
    await idle(live)


async def test_an_object_over_the_limit_is_refused(serve: Serve, hops: Hops) -> None:
    async with Stage(answering(OBJECT, response(200, b"x" * 11), OBJECT)) as stage:
        live = serve(Inline, host_target=stage.url, max_body=10)
        async with RawClient(live.port) as client:
            assert [(await pull(client)).status for _ in range(3)] == [200, 413, 200]
    assert hops.begun >= 1
    await idle(live)


async def test_a_large_result_takes_up_memory_until_it_is_taken(serve: Serve, hops: Hops) -> None:
    size = 48 << 20  # more than all the buffers between a server and its client

    class Grow(Inline):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return bytes(size) if path == "large" else data

    async with Stage(answering(OBJECT)) as stage:
        live = serve(Grow, host_target=stage.url)
        async with RawClient(live.port) as client:
            await pull(client)
            await client.get("/large")
            assert (await client.head())[0] == 200
            assert live.worker.admission.memory.used >= size
    assert hops.begun == 1
    await idle(live)


def parts(*answers: bytes) -> list[bytes]:
    """Answers, cut off at every byte."""
    return [answer[:end] for answer in answers for end in range(len(answer) + 1)]


ODD = [
    *parts(STORED, response(200, b"con"), response(200, b"con", chunked=True), response(404, b"why")),
    response(204),
    response(204, headers={"Ais-Direct-Put-Length": "42"}),
    response(204) + b"behind",
    STORED + b"behind",
    STORED + STORED,
    response(200, chunked=True),
    response(200, headers={"Connection": "close"}),
    response(200, b"content", {"Connection": "close", "Content-Type": "x/y"}),
    *(response(status, body) for status in (201, 202, 206, 301, 304, 413, 500) for body in (b"", b"content")),
    response(503, b"later", {"ais-etl-retry-reason": "direct-put-transient"}),
    b"HTTP/1.1 100 Continue\r\n\r\n" + response(200, b"content"),
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\n" + STORED,
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + STORED,
    b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\ncontent",
    b"HTTP/1.0 200 OK\r\n\r\ncontent",
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ncontent\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\ncontent!",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7;x=y\r\ncontent\r\n0\r\nx-more: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
]
"""What a stage may say before it closes the connection."""


def odd(usual: bytes) -> Script:
    """Answer as usual, but say number n of `ODD` to the first request whose name ends in /n, and close."""
    said: set[str] = set()

    async def script(connection: StageConnection) -> None:
        while (request := await connection.request()) is not None:
            name = request.target.rpartition("/")[2]
            if name.isdigit() and name not in said:
                said.add(name)
                await connection.send(ODD[int(name)])
                return
            await connection.send(usual)

    return script


@pytest.mark.parametrize("way", ["delivery", "pull"])
async def test_whatever_is_answered_it_is_told_as_without_a_hop(
    serve: Serve, hops: Hops, backoffs: list[float], caplog: pytest.LogCaptureFixture, way: str
) -> None:
    async def told(live: Live, stage: Stage) -> list[tuple[object, ...]]:
        answers: list[tuple[object, ...]] = []
        for number in range(len(ODD)):
            async with RawClient(live.port) as client:
                for name in ("/usual", f"/{number}"):
                    if way == "pull":
                        await client.get(name)
                    else:
                        await client.put(name, b"object", f"ais-node-url: {stage.url}\r\n")
                    answer = await client.answer()
                headers = {key: value for key, value in answer.headers.items() if key != "date"}
                body = answer.body.replace(stage.netloc.encode(), b"stage") if answer.whole else b""
                answers.append((ODD[number], answer.status, answer.whole, body, headers))
        await idle(live)
        counts = live.worker.counts
        return [*answers, (counts.direct_puts, counts.retries, counts.push.outcomes, counts.pull.outcomes)]

    outcomes = []
    for access_log in (False, True):  # what is logged is no hop
        begun = hops.begun
        async with Stage(odd(OBJECT if way == "pull" else STORED)) as stage:
            live = serve(Inline, host_target=stage.url, access_log=access_log)
            outcomes.append(await told(live, stage))
        assert hops.begun == begun if access_log else hops.begun >= len(ODD)
    for with_hop, without in zip(*outcomes, strict=True):
        assert with_hop == without
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize("way", ["delivery", "pull"])
async def test_whatever_the_transform_does_is_answered(serve: Serve, hops: Hops, way: str) -> None:
    bodies = [b"x", b"raise", b"y", b"later"]
    async with Stage(answering(*(response(200, body if way == "pull" else b"") for body in bodies))) as stage:
        live = serve(Inline, host_target=stage.url)
        async with RawClient(live.port) as client:
            answers = [await (pull(client) if way == "pull" else deliver(client, stage.url, body)) for body in bodies]
        assert [answer.status for answer in answers] == (
            [200, 500, 200, 200] if way == "pull" else [204, 500, 204, 204]
        )
        assert b"cannot do" in answers[1].body
        made = [answers[0].body, answers[2].body, answers[3].body]
        if way == "delivery":
            made = [bytes(request.body) for request in stage.requests]
        assert made == [b"X", b"Y", b"finished"]
    await idle(live)


async def test_a_slow_transform_does_not_hold_up_the_loop(serve: Serve, hops: Hops) -> None:
    class Auto(ETLServer):
        def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
            return data.upper()

    async with Stage(answering(OBJECT)) as stage:
        live = serve(Auto, host_target=stage.url)
        async with RawClient(live.port) as client:
            for _ in range(5):  # in threads, as nothing is known of it yet
                assert (await pull(client)).body == b"OBJECT"
    assert hops.begun == 4
    assert sum(live.worker.counts.pull.thread_times.counts) == 5
    await idle(live)


# Who leaves


@pytest.mark.parametrize("way", ["delivery", "pull"])
async def test_a_client_that_goes_away_takes_its_hop_along(serve: Serve, hops: Hops, way: str) -> None:
    async with Stage(then(OBJECT if way == "pull" else STORED, stalling), answering(OBJECT)) as stage:
        live = serve(Inline, host_target=stage.url)
        async with RawClient(live.port) as client:
            if way == "pull":
                await pull(client)
                await client.get("/a%2Fb")
                await stage.until(lambda: len(stage.requests) == 2)
            else:
                await begin_delivery(client, stage)
            client.reset()
            await stage.left()
        await idle(live)
        counts = live.worker.counts
        assert (counts.pull if way == "pull" else counts.push).outcomes["gone"] == 1
        assert hops.begun == 1


async def test_a_server_that_has_to_stop_cuts_its_hops(
    serve: Serve, hops: Hops, caplog: pytest.LogCaptureFixture
) -> None:
    async with Stage(then(STORED, stalling)) as stage:
        live = serve(Inline)
        async with RawClient(live.port) as client:
            await begin_delivery(client, stage)
            live.leave()
            answer = await client.answer()
            assert (answer.status, answer.whole) == (0, False)
            await stage.left()
    assert hops.begun == 1
    await idle(live)
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_server_that_stops_finishes_its_hops(serve: Serve, hops: Hops) -> None:
    ready = asyncio.Event()

    async def late(connection: StageConnection) -> None:
        await connection.request()
        await ready.wait()
        await connection.send(STORED)

    async with Stage(then(STORED, late)) as stage:
        live = serve(Inline)
        async with RawClient(live.port) as client:
            await begin_delivery(client, stage)
            live.leave()
            await asyncio.sleep(0.1)
            ready.set()
            assert (await client.answer()).status == 204
    assert hops.begun == 1
