"""What a second run does, for everything that may have happened since the first."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from .conftest import UPPER, Bench

WORKERS = 1


@pytest.fixture
def done(bench: Bench) -> Bench:
    """A job that has run once."""
    bench.fill(a="one", b="two", c="three")
    assert bench.events()["done"] == 3
    assert bench.outputs == {"a": "ONE", "b": "TWO", "c": "THREE"}
    return bench


def counts(bench: Bench, *options: str, code: int = 0) -> tuple[int, int, int]:
    end = bench.events(*options, code=code)
    return end["done"], end["skipped"], end["failed"]


def test_what_is_done_is_skipped(done: Bench) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in done.sink.iterdir()}
    assert counts(done) == (0, 3, 0)
    assert {file.name: file.stat().st_mtime_ns for file in done.sink.iterdir()} == before


def test_a_new_object_is_done(done: Bench) -> None:
    done.put("d", "four")
    assert counts(done) == (1, 3, 0)
    assert done.outputs["d"] == "FOUR"


def test_a_changed_object_is_done_again(done: Bench) -> None:
    done.put("b", "2nd")
    assert counts(done) == (1, 2, 0)
    assert done.outputs["b"] == "2ND"


def test_a_deleted_object_keeps_its_output_unless_told_otherwise(done: Bench) -> None:
    (done.source / "b").unlink()
    assert counts(done) == (0, 2, 0)
    assert "b" in done.outputs
    assert done.events("--sync")["deleted"] == 1
    assert done.outputs == {"a": "ONE", "c": "THREE"}
    done.put("b", "again")
    assert counts(done) == (1, 2, 0)


def test_sync_deletes_no_output_of_an_object_that_is_only_not_selected(done: Bench) -> None:
    assert done.events("--sync", "--match", "a")["deleted"] == 0
    assert done.events("--sync", "--prefix", "b")["deleted"] == 0
    assert len(done.outputs) == 3


def test_sync_from_an_empty_source_deletes_nothing(done: Bench) -> None:
    for file in done.source.iterdir():
        file.unlink()
    refused = done.run("--sync")
    assert refused.returncode == 2
    assert "no object at all" in refused.stderr
    assert len(done.outputs) == 3


def test_sync_leaves_alone_what_no_job_wrote(done: Bench) -> None:
    (done.sink / "mine").write_text("kept")
    (done.source / "a").unlink()
    done.events("--sync")
    assert done.outputs["mine"] == "kept"


def test_everything_is_done_again_when_the_transform_changed(done: Bench) -> None:
    done.spec.write_text(UPPER.replace("data.upper()", "data.title()"))
    assert counts(done) == (3, 0, 0)
    assert done.outputs["a"] == "One"


def test_a_comment_is_no_change(done: Bench) -> None:
    done.spec.write_text("# a comment\n" + UPPER)
    assert counts(done) == (0, 3, 0)


def test_everything_is_done_again_when_a_module_that_it_uses_changed(bench: Bench) -> None:
    bench.fill(a="one")
    helper = bench.spec.with_name("helper.py")
    helper.write_text("def suffix():\n    return b'!'\n")
    bench.spec.write_text("import helper\n" + UPPER.replace("etl_args.encode()", "helper.suffix()"))
    assert counts(bench) == (1, 0, 0)
    helper.write_text("def suffix():\n    return b'?'\n")
    assert counts(bench) == (1, 0, 0)
    assert bench.outputs == {"a": "ONE?"}


def test_everything_is_done_again_when_the_arguments_changed(done: Bench) -> None:
    assert counts(done, "--etl-args", "!") == (3, 0, 0)
    assert done.outputs["a"] == "ONE!"
    assert counts(done, "--etl-args", "!") == (0, 3, 0)


def test_what_failed_is_tried_again(bench: Bench) -> None:
    bench.fill(a="one", b="bad")
    assert counts(bench, code=1) == (1, 0, 1)
    assert counts(bench, code=1) == (0, 1, 1)
    bench.put("b", "good")
    assert counts(bench) == (1, 1, 0)
    assert bench.outputs == {"a": "ONE", "b": "GOOD"}


def test_only_failed_does_nothing_else(bench: Bench) -> None:
    bench.fill(a="one", b="bad")
    counts(bench, code=1)
    bench.fill(b="good", new="new", a="changed")
    assert counts(bench, "--only-failed") == (1, 0, 0)
    assert bench.outputs == {"a": "ONE", "b": "GOOD"}


def test_an_output_that_was_deleted_or_changed_is_made_again(done: Bench) -> None:
    (done.sink / "a").unlink()
    (done.sink / "b").write_text("something else")
    assert counts(done) == (2, 1, 0)
    assert done.outputs == {"a": "ONE", "b": "TWO", "c": "THREE"}


def test_force_does_everything_again(done: Bench) -> None:
    assert counts(done, "--force") == (3, 0, 0)


def test_a_source_of_the_same_size_that_was_touched_counts_as_changed(done: Bench) -> None:
    os.utime(done.source / "a", (1, 1))
    assert counts(done) == (1, 2, 0)


def test_two_jobs_with_other_names_do_not_undo_each_other(done: Bench) -> None:
    options = ("--prepend", "loud-", "--etl-args", "!")
    assert counts(done, *options) == (3, 0, 0)
    assert counts(done) == (0, 3, 0)
    assert counts(done, *options) == (0, 3, 0)


def test_a_failure_keeps_the_output_that_was_there(done: Bench) -> None:
    done.put("a", "bad")
    assert counts(done, code=1) == (0, 2, 1)
    assert done.outputs["a"] == "ONE"


def test_what_was_never_done_is_not_chosen_rather_than_skipped(bench: Bench, tmp_path: Path) -> None:
    bench.fill(a="one", b="bad")
    bench.events(code=1)
    bench.fill(c="three")
    end = bench.events("--only-failed", "--report", str(tmp_path / "report.csv"), code=1)
    assert (end["skipped"], end["failed"], end["not_chosen"]) == (1, 1, 1)
    with (tmp_path / "report.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["skipped", "failed", "not chosen"]
    assert "1 skipped, 1 failed, 1 not chosen;" in bench.run("--only-failed").stdout
