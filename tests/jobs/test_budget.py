"""What a job's process takes up at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from etl_server import ETLServer
from etl_server.jobs.ledger import Task
from etl_server.jobs.naming import Naming
from etl_server.jobs.transfer import READ_MEMORY, Budget, Grant, Transfer
from etl_server.storage import Owner, open_store

from ..raw_client import PATIENCE
from ..storage.conftest import bucket, s3, s3_server
from ..storage.s3_servers import RcloneServer, set_credentials

__all__ = ["bucket", "s3", "s3_server"]

MIB = 1 << 20


def test_what_an_object_takes_up_beyond_its_grant_keeps_others_waiting() -> None:
    budget = Budget(100)
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with budget.grant(40):
            entered.set()
            leave.wait(PATIENCE)

    waiting = threading.Thread(target=second)
    with budget.grant(50) as grant:
        grant.reach(40)
        grant.reach(70)
        waiting.start()
        assert not entered.wait(0.1)
    assert entered.wait(PATIENCE)
    leave.set()
    waiting.join()
    assert budget._used == 0


def test_what_is_larger_than_all_of_it_goes_alone() -> None:
    budget = Budget(100)
    with budget.grant(1000):
        pass
    with budget.grant(100):
        pass


class Inflate(ETLServer):
    """Makes a large object of a small one."""

    def transform_stream(self, reader: BinaryIO, path: str, etl_args: str) -> Iterator[bytes]:
        reader.read()
        for _ in range(40):
            yield bytes(MIB)


async def test_a_stream_is_counted_with_the_parts_that_its_store_keeps(
    tmp_path: Path, s3_server: RcloneServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"small")
    sink = f"s3://{bucket}?endpoint_url={s3_server.url}"
    reached: list[int] = []
    reach = Grant.reach

    def watched(grant: Grant, size: int) -> None:
        reach(grant, size)
        reached.append(grant.size)

    monkeypatch.setattr(Grant, "reach", watched)
    owner = Owner("0" * 32, tmp_path / "journal")
    transfer = Transfer(Inflate(), str(source), sink, owner, Naming(), "", Budget(1 << 30))
    outcome = await asyncio.to_thread(transfer.run, Task(1, "a", "a", 5), lambda since: None)
    assert (outcome.error, outcome.bytes_out) == ("", 40 * MIB)
    with open_store(sink) as store:
        assert reached[0] < READ_MEMORY + store.stream_memory()
        assert reached[-1] == READ_MEMORY + store.stream_memory(40 * MIB) > READ_MEMORY + store.stream_memory()
    await asyncio.to_thread(transfer.close)
