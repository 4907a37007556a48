"""PUT of an object: the result is the answer."""

from __future__ import annotations

from etl_server import ETLServer
from etl_server.testing import Driver, Target
from tests.conftest import Serve


class Upper(ETLServer):
    def transform(self, data: bytes, path: str, etl_args: str) -> bytes:
        return data.upper()


async def test_a_pushed_object_is_answered_transformed(serve: Serve, target: Target) -> None:
    live = serve(Upper)
    async with Driver(live.url, target) as driver:
        reply = await driver.push("src", "a.txt", data=b"hello")
    assert (reply.status, reply.body) == (200, b"HELLO")
    assert reply.headers["content-length"] == "5"
    assert reply.headers["content-type"] == "application/octet-stream"
