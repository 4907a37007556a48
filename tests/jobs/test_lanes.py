"""How many objects a worker works on at once: as many as help, and as its memory and its class allow."""

from __future__ import annotations

import json
import threading
import time

import pytest

from etl_server.jobs.transfer import Budget

from .conftest import Bench

WORKERS = 1

WAITING = """
import threading, time
from etl_server import ETLServer

class Waiting(ETLServer):
    LIMIT
    at_once = most = 0
    lock = threading.Lock()

    def transform(self, data, path, etl_args):
        with self.lock:
            Waiting.at_once += 1
            Waiting.most = max(Waiting.most, Waiting.at_once)
        time.sleep(0.05)
        with self.lock:
            Waiting.at_once -= 1
        return data

    def teardown(self):
        with open(etl_args_file, "w") as file:
            file.write(str(Waiting.most))
"""


def most_at_once(bench: Bench, limit: str = "", *, seconds: float = 0.05, objects: int = 120) -> int:
    told = bench.spec.with_name("told")
    spec = WAITING.replace("LIMIT", limit).replace("etl_args_file", json.dumps(str(told)))
    bench.spec.write_text(spec.replace("0.05", str(seconds)))
    bench.fill(**{f"{number:03}": "content" for number in range(objects)})
    assert bench.events()["done"] == objects
    return int(told.read_text())


def test_lanes_are_added_while_transforms_wait(bench: Bench) -> None:
    assert most_at_once(bench) > 2


def test_a_class_that_wants_one_call_at_a_time_gets_one(bench: Bench) -> None:
    assert most_at_once(bench, "max_concurrency = 1") == 1


def test_a_class_that_wants_two_calls_at_a_time_gets_no_more(bench: Bench) -> None:
    assert most_at_once(bench, "max_concurrency = 2") == 2


def test_what_is_large_waits_for_memory_and_what_is_larger_than_all_of_it_goes_alone() -> None:
    budget = Budget(100)
    used: list[int] = []
    seen: list[list[int]] = []
    lock = threading.Lock()

    def work(size: int) -> None:
        with budget.grant(size):
            with lock:
                used.append(size)
                seen.append(list(used))
            time.sleep(0.002)
            with lock:
                used.remove(size)

    sizes = [30, 60, 500, 10, 100, 45] * 20
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(seen) == len(sizes)
    assert all(sum(together) <= 100 for together in seen if 500 not in together)
    assert all(together == [500] for together in seen if 500 in together)


def test_a_job_with_little_memory_goes_on_one_by_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETL_MAX_MEMORY", str(1 << 20))
    bench.fill(**{f"{number:02}": "ab" * 400_000 for number in range(8)})
    assert bench.events()["done"] == 8
    assert set(bench.outputs.values()) == {"AB" * 400_000}
