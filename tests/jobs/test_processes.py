"""Processes that start before it is known what they are for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from etl_server.jobs.engines.local import EARLY, Processes


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_some_start_early_and_those_that_are_not_needed_end() -> None:
    before = children()
    with Processes(2 * EARLY, -1) as processes:
        assert len(children() - before) == EARLY
        taken = processes.take()
        assert len(children() - before) == EARLY
    assert len(children() - before) == 1
    taken.kill()
    assert taken.end()[0] == "was killed by SIGKILL"
    assert children() == before


def test_they_end_where_no_plan_can_be_made() -> None:
    before = children()
    with pytest.raises(RuntimeError), Processes(2, -1):
        raise RuntimeError
    assert children() == before


def test_one_that_is_left_alone_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with Processes(0, -1) as processes:
        process = processes.take()
    process.pipe.close()
    assert process.end(10)[0].startswith("ended")
    assert capfd.readouterr() == ("", "")
