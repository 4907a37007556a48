"""The pooled client, against servers on raw sockets; on both event loops that it may run on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from etl_server import Settings
from etl_server.errors import BodyTooLargeError, UpstreamRefusedError, UpstreamUnreachableError
from etl_server.runtime import outbound as outbound_module
from etl_server.runtime.outbound import MOST_ORIGINS, Outbound, Response
from tests.raw_client import PATIENCE
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
    response,
    saying,
    saying_early,
    stalling,
)

Make = Callable[..., Outbound]


@pytest.fixture
async def outbound() -> AsyncIterator[Make]:
    """Clients with settings by their Python names."""
    made: list[Outbound] = []

    def make(**settings: Any) -> Outbound:
        made.append(Outbound(Settings.load(**settings)))
        return made[-1]

    yield make
    for client in made:
        client.close()


async def get(client: Outbound, url: str) -> bytes:
    """The body that a GET is answered with."""
    return await taken(await client.request("GET", url))


async def put(client: Outbound, url: str, body: bytes | AsyncIterator[list[bytes]]) -> int:
    """The status that a PUT is answered with."""
    answer = await client.request("PUT", url, (), body)
    await taken(answer)
    return answer.status


async def taken(answer: Response) -> bytes:
    try:
        return await answer.body.read()
    finally:
        answer.close()


async def stream(*batches: list[bytes]) -> AsyncIterator[list[bytes]]:
    for batch in batches:
        yield batch


# Requests and answers


async def test_a_request_goes_out_as_it_is(outbound: Make) -> None:
    lines: list[bytes] = []

    async def read_all(connection: StageConnection) -> None:
        while not lines or lines[-1] != b"\r\n":
            lines.append(await connection.reader.readline())
        await connection.send(STORED)

    async with Stage(read_all) as stage:
        await taken(await outbound().request("GET", f"{stage.url}/a%2Fb?c=%20&d", [("one", "1"), ("two", "")]))
    assert lines == [
        b"GET /a%2Fb?c=%20&d HTTP/1.1\r\n",
        f"host: {stage.netloc}\r\n".encode(),
        b"one: 1\r\n",
        b"two: \r\n",
        b"\r\n",
    ]


async def test_a_known_body_has_a_length_and_a_stream_is_chunked(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(STORED)) as stage:
        large = bytes(range(256)) * 4096
        for body in (b"", b"x", large):
            assert await put(client, f"{stage.url}/x", body) == 200
        assert await put(client, f"{stage.url}/x", stream([b"a", b""], [], [b""], [large, b"b"])) == 200
        assert await put(client, f"{stage.url}/x", stream()) == 200
    assert [request.headers.get("content-length") for request in stage.requests] == ["0", "1", str(1 << 20), None, None]
    assert [bytes(request.body) for request in stage.requests] == [b"", b"x", large, b"a" + large + b"b", b""]
    assert all(request.complete for request in stage.requests)


async def test_an_answer_comes_with_status_headers_and_length(outbound: Make) -> None:
    client = outbound()
    async with Stage(
        answering(response(409, b"content", {"Content-Type": "Type"}), response(200, b"x", chunked=True), response(204))
    ) as stage:
        answers = [await client.request("GET", stage.url) for _ in range(1)]
        assert (answers[0].status, answers[0].headers["content-type"], answers[0].length) == (409, "Type", 7)
        assert await taken(answers[0]) == b"content"
        for status, length, body in ((200, None, b"x"), (204, None, b"")):
            answer = await client.request("GET", stage.url)
            assert (answer.status, answer.length) == (status, length)
            assert await taken(answer) == body


async def test_a_head_may_come_byte_by_byte(outbound: Make) -> None:
    async def slowly(connection: StageConnection) -> None:
        await connection.request()
        for byte in response(200, b"content", {"X": "y"}):
            await connection.send(bytes([byte]))
            await asyncio.sleep(0)

    async with Stage(slowly) as stage:
        assert await get(outbound(), stage.url) == b"content"


async def test_an_answer_is_read_up_to_a_limit(outbound: Make) -> None:
    client = outbound(max_connections=1)
    async with Stage(answering(response(200, bytes(1 << 20)))) as stage:
        answer = await client.request("GET", stage.url)
        with pytest.raises(BodyTooLargeError):
            await answer.body.read(1000)
        answer.close()
        answer = await client.request("GET", stage.url)
        assert 1000 <= len(await answer.read_start(1000)) < 1 << 20
        answer.close()
        assert len(await get(client, stage.url)) == 1 << 20


async def test_a_url_may_have_its_scheme_in_capitals(outbound: Make, tls: Tls) -> None:
    async with Stage(answering(response(200, b"x")), tls=tls.server) as stage:
        assert await get(outbound(client_ca=tls.ca), stage.url.replace("https", "HTTPS")) == b"x"


# Connections


async def test_a_connection_is_used_again(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(response(200, b"x"))) as stage:
        for _ in range(10):
            assert await get(client, stage.url) == b"x"
        assert await put(client, stage.url, stream([b"x"])) == 200
        assert stage.connections == 1


async def test_concurrent_requests_have_a_connection_each(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(response(200, b"x"))) as stage:
        assert await asyncio.gather(*(get(client, stage.url) for _ in range(20))) == [b"x"] * 20
        assert stage.connections <= 20
        opened = stage.connections
        assert await asyncio.gather(*(get(client, stage.url) for _ in range(opened))) == [b"x"] * opened
        assert stage.connections == opened


async def test_there_are_never_more_connections_than_allowed(outbound: Make) -> None:
    most = 0

    async def counting(connection: StageConnection) -> None:
        nonlocal most
        while await connection.request() is not None:
            most = max(most, connection.stage.open)
            await asyncio.sleep(0.001)
            await connection.send(response(200, b"x"))

    client = outbound(max_connections=3)
    async with Stage(counting) as stage:
        assert await asyncio.gather(*(get(client, stage.url) for _ in range(30))) == [b"x"] * 30
        assert (stage.connections, most) == (3, 3)


async def test_whatever_happens_a_place_is_given_back(outbound: Make) -> None:
    client = outbound(max_connections=1, io_timeout=0.3)
    scripts: list[Script] = [hanging_up, resetting, stalling, saying(b"no HTTP\r\n\r\n"), saying(response(200)[:-2])]
    with refusing() as netloc:
        for _ in range(3):
            with pytest.raises(UpstreamRefusedError):
                await get(client, f"http://{netloc}/")
    for script in scripts:
        async with Stage(script) as stage:
            for body in (b"", stream([b"x"])):
                with pytest.raises(UpstreamUnreachableError):
                    await put(client, stage.url, body)
    async with Stage(stalling) as stage:
        request = asyncio.create_task(get(client, stage.url))
        waiting = asyncio.create_task(get(client, stage.url))
        await stage.asked()
        waiting.cancel()
        request.cancel()
        await stage.left()
    async with Stage(answering(response(200, b"x" * 100_000))) as stage:
        answer = await client.request("GET", stage.url)
        answer.close()
        answer.close()
        assert len(await asyncio.wait_for(get(client, stage.url), 5)) == 100_000


async def test_no_more_idle_connections_are_kept_than_allowed(outbound: Make) -> None:
    client = outbound(max_keepalive_connections=2)
    answers = [response(200, b"x")]
    async with Stage(answering(*answers)) as stage:
        opened = [await client.request("GET", stage.url) for _ in range(5)]
        assert stage.open == 5
        for answer in opened:
            await taken(answer)
        await stage.until(lambda: stage.open == 2)


async def test_places_that_no_connection_leads_to_are_forgotten(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(STORED)) as stage:
        await get(client, stage.url)
        for number in range(3 * MOST_ORIGINS):
            client._locate(f"http://h{number}/")
        assert len(client._origins) <= MOST_ORIGINS
        await get(client, stage.url)
        assert stage.connections == 1


async def test_an_idle_connection_expires(outbound: Make) -> None:
    client = outbound(keepalive_expiry=0.05)
    async with Stage(answering(response(200, b"x"))) as stage:
        await get(client, stage.url)
        await asyncio.sleep(0.1)
        assert stage.open == 1  # nobody has looked yet
        await get(client, stage.url)
        assert stage.connections == 2
        await stage.left()


async def test_closing_the_client_closes_what_is_idle_and_fails_what_is_not(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(STORED), stalling) as stage:
        await get(client, stage.url)
        opened = [client.request("GET", stage.url), client.request("GET", stage.url)]
        tasks = [asyncio.create_task(request) for request in opened]
        await stage.until(lambda: len(stage.requests) == 3)
        for task in tasks:
            if task.done():
                task.result().close()
        client.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, UpstreamUnreachableError) for result in results)
        await stage.left()


async def test_a_cancelled_request_cuts_its_connection(outbound: Make) -> None:
    client = outbound()
    async with Stage(stalling, answering(response(200, b"x"))) as stage:
        request = asyncio.create_task(get(client, stage.url))
        await stage.until(lambda: bool(stage.requests) and stage.requests[0].complete)
        request.cancel()
        await stage.left()
        assert await get(client, stage.url) == b"x"


async def test_an_answer_that_was_left_alone_cuts_its_connection(outbound: Make) -> None:
    client = outbound()
    async with Stage(answering(response(200, bytes(32 << 20)))) as stage:
        answer = await client.request("GET", stage.url)
        answer.close()
        await stage.left()


async def test_an_answer_that_came_whole_and_was_left_alone_does_no_harm(outbound: Make) -> None:
    client = outbound(io_timeout=2)
    for size in (100, 262_144, 262_145, 300_000, 400_000):
        async with Stage(answering(response(200, bytes(size)))) as stage:
            for _ in range(3):
                answer = await asyncio.wait_for(client.request("GET", stage.url), 5)
                await asyncio.sleep(0.02)  # the rest comes meanwhile
                answer.close()
            assert len(await asyncio.wait_for(get(client, stage.url), 5)) == size


async def test_what_comes_behind_an_answer_is_no_part_of_it(outbound: Make) -> None:
    client = outbound()
    another = response(200, b"another")
    headers = {"Content-Type": "first"}
    for extra in (another, another[:-3], STORED, b"garbage", b"HTTP/1.1 2"):
        for chunked in (False, True):
            first = response(200, b"content", headers, chunked=chunked)
            async with Stage(answering(first + extra)) as stage:
                for _ in range(3):
                    answer = await client.request("GET", stage.url)
                    assert (answer.status, answer.headers["content-type"]) == (200, "first")
                    assert answer.length == (None if chunked else 7)
                    assert await taken(answer) == b"content"
                assert stage.connections == 3


async def test_a_connection_on_which_something_came_unasked_is_not_used_again(outbound: Make) -> None:
    gossip = asyncio.Event()

    async def chatty(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(response(200, b"first"))
        await gossip.wait()
        await connection.send(response(200, b"not asked for"))
        await connection.ended()

    client = outbound()
    async with Stage(chatty, answering(response(200, b"second"))) as stage:
        assert await get(client, stage.url) == b"first"
        gossip.set()
        await stage.left()
        assert await get(client, stage.url) == b"second"


# Kept connections that turn out to be closed


def closing_on_the_second(last_words: bytes = b"") -> Script:
    async def script(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(response(200, b"first"))
        await connection.request()
        await connection.send(last_words)

    return script


async def test_a_request_that_a_kept_connection_lost_is_sent_once_more(outbound: Make) -> None:
    client = outbound()
    async with Stage(closing_on_the_second(), answering(response(200, b"second"))) as stage:
        assert await get(client, stage.url) == b"first"
        assert await get(client, stage.url) == b"second"
        assert (stage.connections, len(stage.requests)) == (2, 3)
    async with Stage(closing_on_the_second(), answering(STORED)) as stage:
        await put(client, stage.url, b"body")
        await put(client, stage.url, b"body")
        assert [bytes(request.body) for request in stage.requests] == [b"body"] * 3


async def test_it_is_sent_only_once_more(outbound: Make) -> None:
    client = outbound()
    async with Stage(closing_on_the_second(), hanging_up) as stage:
        await get(client, stage.url)
        with pytest.raises(UpstreamUnreachableError):
            await get(client, stage.url)
        assert stage.connections == 2


async def test_a_request_whose_answer_had_begun_is_not_sent_again(outbound: Make) -> None:
    client = outbound()
    async with Stage(closing_on_the_second(b"HTTP/1.1 2")) as stage:
        await get(client, stage.url)
        with pytest.raises(UpstreamUnreachableError):
            await get(client, stage.url)
        assert stage.connections == 1


async def test_a_request_that_timed_out_is_not_sent_again(outbound: Make) -> None:
    async def stalling_on_the_second(connection: StageConnection) -> None:
        await connection.request()
        await connection.send(STORED)
        await connection.request()
        await connection.ended()

    client = outbound(io_timeout=0.3)
    async with Stage(stalling_on_the_second) as stage:
        await get(client, stage.url)
        with pytest.raises(UpstreamUnreachableError, match="ETL_IO_TIMEOUT"):
            await get(client, stage.url)
        assert stage.connections == 1


async def test_a_stream_that_a_kept_connection_lost_is_not_sent_again(outbound: Make) -> None:
    client = outbound()
    taken_batches = 0

    async def counted() -> AsyncIterator[list[bytes]]:
        nonlocal taken_batches
        for _ in range(3):
            taken_batches += 1
            yield [b"x"]

    async with Stage(closing_on_the_second(), answering(STORED)) as stage:
        await get(client, stage.url)
        with pytest.raises(UpstreamUnreachableError):
            await put(client, stage.url, counted())
        assert (stage.connections, taken_batches) == (1, 3)


async def test_a_stream_is_not_trusted_to_a_connection_that_has_been_idle(
    outbound: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound_module, "FRESH", 0.0)
    client = outbound()
    async with Stage(answering(STORED)) as stage:
        await get(client, stage.url)
        await asyncio.sleep(0.01)
        assert await put(client, stage.url, stream([b"x"])) == 200
        assert stage.connections == 2


async def test_a_connection_that_was_closed_while_idle_is_not_used(outbound: Make) -> None:
    client = outbound()
    async with Stage(saying(STORED)) as stage:
        for _ in range(3):
            await get(client, stage.url)
            await stage.left()
        assert len(stage.requests) == 3


# Bodies that are sent while the answer comes


async def test_an_answer_may_come_before_the_request_was_sent(outbound: Make) -> None:
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[list[bytes]]:
        yield [b"first"]
        await go_on.wait()
        yield [b"last"]

    async with Stage(saying_early(response(200, b"early"))) as stage:
        answer = await outbound().request("PUT", stage.url, (), slow())
        assert (answer.status, answer.sent) == (200, None)
        assert await answer.body.read() == b"early"
        go_on.set()
        await stage.until(lambda: stage.requests[0].complete)
        assert bytes(stage.requests[0].body) == b"firstlast"
        answer.close()


async def test_closing_an_early_answer_cuts_the_request(outbound: Make) -> None:
    async def endless() -> AsyncIterator[list[bytes]]:
        while True:
            yield [bytes(1000)]
            await asyncio.sleep(0)

    async with Stage(saying_early(response(500, b"no"))) as stage:
        answer = await outbound().request("PUT", stage.url, (), endless())
        answer.close()
        await stage.left()
        assert not stage.requests[0].complete


async def test_a_body_that_fails_cuts_the_connection(outbound: Make) -> None:
    async def failing() -> AsyncIterator[list[bytes]]:
        yield [b"first"]
        raise ValueError("no more")

    client = outbound(max_connections=1)
    async with Stage(answering(STORED)) as stage:
        with pytest.raises(ValueError, match="no more"):
            await client.request("PUT", stage.url, (), failing())
        await stage.left()
        assert not stage.requests[0].complete
    go_on = asyncio.Event()

    async def failing_late() -> AsyncIterator[list[bytes]]:
        yield [b"first"]
        await go_on.wait()
        raise ValueError("no more")

    async def echoing(connection: StageConnection) -> None:
        request = await connection.head()
        assert request is not None
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
        await connection.body(request)

    async with Stage(echoing) as stage:
        answer = await client.request("PUT", stage.url, (), failing_late())
        assert await answer.receive() == [b"early"]
        go_on.set()
        with pytest.raises(ValueError, match="no more"):
            await answer.receive()
        answer.close()
        assert not stage.requests[0].complete


async def test_a_body_waits_for_who_takes_it(outbound: Make) -> None:
    made = 0

    async def endless() -> AsyncIterator[list[bytes]]:
        nonlocal made
        while True:
            made += 1
            yield [bytes(1 << 20)]

    async with Stage(deaf) as stage:
        with pytest.raises(UpstreamUnreachableError, match="ETL_IO_TIMEOUT"):
            await outbound(io_timeout=0.5).request("PUT", stage.url, (), endless())
    assert made < 100


# Time


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_ends_its_side_and_takes_no_more_is_lost(outbound: Make, streamed: bool) -> None:
    async def half_closing(connection: StageConnection) -> None:
        await connection.head()
        connection.writer.write_eof()
        await asyncio.Event().wait()

    pieces = [[bytes(1 << 20)]] * 64
    async with Stage(half_closing) as stage:
        putting = put(outbound(io_timeout=0.3), stage.url, stream(*pieces) if streamed else bytes(64 << 20))
        with pytest.raises(UpstreamUnreachableError):
            await asyncio.wait_for(putting, PATIENCE)


async def test_slow_but_steady_is_no_stall(outbound: Make) -> None:
    async def steady(connection: StageConnection) -> None:
        await connection.request()
        for byte in response(200, b"content"[:3]):
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)

    async with Stage(steady) as stage:
        assert await get(outbound(io_timeout=0.6), stage.url) == b"con"


async def test_an_answer_nobody_takes_is_no_stall(outbound: Make) -> None:
    client = outbound(io_timeout=0.2)
    size = 32 << 20
    async with Stage(answering(response(200, bytes(size)))) as stage:
        answer = await client.request("GET", stage.url)
        await asyncio.sleep(0.6)
        assert len(await taken(answer)) == size


# Unreachable


async def test_refused_is_told_from_unreachable(outbound: Make) -> None:
    client = outbound()
    with refusing() as netloc:
        port = netloc.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(UpstreamRefusedError, match=port):
                await get(client, f"http://{host}:{port}/")
    with pytest.raises(UpstreamUnreachableError) as raised:
        await get(client, "http://no-such-host.invalid/")
    assert not isinstance(raised.value, UpstreamRefusedError)


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "."])
async def test_a_name_that_cannot_be_is_unreachable(outbound: Make, host: str) -> None:
    client = outbound(max_connections=1)
    for _ in range(2):
        with pytest.raises(UpstreamUnreachableError):
            await get(client, f"http://{host}:1/")


# TLS


class Tls:
    """An authority of our own, a server's certificate and a client's, and files of them."""

    def __init__(self, folder: Path) -> None:
        authority, self._stranger = trustme.CA(), trustme.CA()
        self.ca = folder / "ca.pem"
        self.other_ca = folder / "other.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self._stranger.cert_pem.write_to_path(str(self.other_ca))
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(self.server)
        self.elsewhere = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("elsewhere.example").configure_cert(self.elsewhere)
        self.demanding = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca))
        self.demanding.verify_mode = ssl.CERT_REQUIRED
        authority.issue_cert("127.0.0.1").configure_cert(self.demanding)
        client = authority.issue_cert("client.example")
        self.key, self.crt, self.both = folder / "client.key", folder / "client.crt", folder / "client.pem"
        client.private_key_pem.write_to_path(str(self.key))
        client.cert_chain_pems[0].write_to_path(str(self.crt))
        client.private_key_and_cert_chain_pem.write_to_path(str(self.both))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


async def test_a_targets_certificate_is_verified_by_the_authority(outbound: Make, tls: Tls) -> None:
    content = bytes(range(256)) * 8192
    async with Stage(answering(response(200, content)), tls=tls.server) as stage:
        client = outbound(client_ca=tls.ca)
        for _ in range(3):
            assert await get(client, stage.url) == content
        assert await put(client, stage.url, stream([content], [content])) == 200
        assert stage.connections == 1
        assert len(stage.requests[-1].body) == 2 * len(content)


async def test_a_certificate_of_a_stranger_is_refused(outbound: Make, tls: Tls) -> None:
    async with Stage(answering(STORED), tls=tls.server) as stage:
        for client in (outbound(client_ca=tls.other_ca), outbound()):
            with pytest.raises(UpstreamUnreachableError):
                await get(client, stage.url)
    async with Stage(answering(STORED), tls=tls.elsewhere) as stage:
        with pytest.raises(UpstreamUnreachableError):
            await get(outbound(client_ca=tls.ca), stage.url)
        assert stage.requests == []


async def test_verifying_can_be_switched_off(outbound: Make, tls: Tls) -> None:
    async with Stage(answering(response(200, b"x")), tls=tls.elsewhere) as stage:
        assert await get(outbound(skip_verify=True), stage.url) == b"x"
        assert await get(outbound(skip_verify=True, client_ca=tls.other_ca), stage.url) == b"x"


async def test_a_client_certificate_is_shown(outbound: Make, tls: Tls) -> None:
    async with Stage(answering(response(200, b"x")), tls=tls.demanding) as stage:
        assert await get(outbound(client_ca=tls.ca, client_crt=tls.crt, client_key=tls.key), stage.url) == b"x"
        assert await get(outbound(client_ca=tls.ca, client_crt=tls.both), stage.url) == b"x"
        with pytest.raises(UpstreamUnreachableError):
            await get(outbound(client_ca=tls.ca), stage.url)


async def test_a_server_without_tls_is_unreachable_by_it(outbound: Make, tls: Tls) -> None:
    async def plain(connection: StageConnection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Stage(plain) as stage:
        with pytest.raises(UpstreamUnreachableError):
            await get(outbound(client_ca=tls.ca), stage.url.replace("http:", "https:"))
