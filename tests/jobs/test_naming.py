"""Names of outputs are those that AIStore's own bucket transform gives."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from etl_server.errors import ConfigError, JobError
from etl_server.jobs.ledger import Ledger, Planned
from etl_server.jobs.naming import Naming, Selection, parse_extensions
from etl_server.jobs.plan import check_apart, plan_objects
from etl_server.storage import open_store

from .conftest import Bench

WORKERS = 1


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("a.jpg", "a.webp"),
        ("a/b.c/d.jpg", "a/b.c/d.webp"),
        ("a.png", "a.png"),
        ("jpg", "jpg"),
        ("a.JPG", "a.JPG"),
        (".jpg", ".webp"),
        ("a.jpg/b", "a.jpg/b"),
        ("a.jpg.jpg", "a.jpg.webp"),
        ("ünïcode #1?.jpg", "ünïcode #1?.webp"),
    ],
)
def test_a_mapped_extension_is_replaced_and_others_stay(source: str, output: str) -> None:
    assert Naming({"jpg": "webp"}).output(source) == output
    assert Naming({"jpg": "webp"}, "thumbs-").output(source) == "thumbs-" + output


def test_extensions_are_given_as_pairs() -> None:
    assert parse_extensions(["jpg:webp", ".png:.avif", "{a:b,c:d}"]) == {
        "jpg": "webp",
        "png": "avif",
        "a": "b",
        "c": "d",
    }


@pytest.mark.parametrize("pair", ["jpg", "jpg:", ":webp", "a:b:c"])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match="--ext"):
        parse_extensions([pair])
    with pytest.raises(ConfigError, match="mapped to b"):
        parse_extensions(["a:b", "a:c"])


def test_globs_and_a_prefix_select() -> None:
    selection = Selection("raw/", ["*.jpg", "*.png"], ["*/tmp/*"])
    assert selection.takes("raw/x/y.jpg")
    assert not selection.takes("raw/tmp/y.jpg")
    assert not selection.takes("raw/y.txt")
    assert not selection.takes("done/y.jpg")


def test_two_sources_of_one_output_stop_the_job_before_it_starts(bench: Bench) -> None:
    bench.put("a.jpg", "1")
    bench.put("a.jpeg", "2")
    done = bench.run("--ext", "jpeg:jpg")
    assert done.returncode == 2
    assert "a.jpeg and a.jpg would both be a.jpg" in done.stderr
    assert not bench.sink.exists()


def test_an_output_that_would_be_a_source_stops_the_job(bench: Bench) -> None:
    bench.put("a.txt", "one")
    bench.sink = bench.source
    refused = bench.run()
    assert refused.returncode == 2
    assert (bench.source / "a.txt").read_text() == "one"
    assert bench.events("--match", "*.txt", "--ext", "txt:up")["done"] == 1
    assert bench.outputs == {"a.txt": "one", "a.up": "ONE"}
    assert bench.events("--match", "*.txt", "--ext", "txt:up")["skipped"] == 1


def test_outputs_are_named_by_their_content(bench: Bench) -> None:
    bench.put("a.txt", "same")
    bench.put("b.txt", "same")
    bench.put("c.txt", "other")
    assert bench.events("--router", "content-hash", "--prepend", "by-hash/")["done"] == 3
    assert bench.outputs == {
        f"by-hash/{hashlib.sha256(text.encode()).hexdigest()}.txt": text for text in ("SAME", "OTHER")
    }
    assert bench.events("--router", "content-hash", "--prepend", "by-hash/")["skipped"] == 3
    (bench.source / "a.txt").unlink()
    assert bench.events("--router", "content-hash", "--prepend", "by-hash/", "--sync")["deleted"] == 0
    assert sorted(bench.outputs.values()) == ["OTHER", "SAME"]


def test_two_sources_whose_extensions_become_one_keep_an_output_each(bench: Bench) -> None:
    bench.put("a.jpg", "one")
    bench.put("a.png", "two")
    options = ("--router", "content-hash", "--ext", "jpg:webp", "--ext", "png:webp")
    assert bench.events(*options)["done"] == 2
    assert bench.outputs == {f"{hashlib.sha256(text.encode()).hexdigest()}.webp": text for text in ("ONE", "TWO")}
    assert bench.events(*options)["skipped"] == 2
    assert bench.events(*options, "--ext", "other:kind")["done"] == 2
    (bench.source / "a.png").unlink()
    assert bench.events(*options, "--sync")["deleted"] == 1
    assert list(bench.outputs.values()) == ["ONE"]


@pytest.mark.parametrize("spelling", ["uri", "dots", "link", "nested"])
def test_a_sink_that_is_the_source_by_another_name_stops_the_job(bench: Bench, spelling: str, tmp_path: Path) -> None:
    bench.put("a.txt", "one")
    bench.put("down/b.txt", "two")
    (tmp_path / "link").symlink_to(bench.source)
    sink = {
        "uri": f"file://{bench.source}",
        "dots": f"{bench.source}/../{bench.source.name}",
        "link": str(tmp_path / "link"),
        "nested": str(tmp_path / "link" / "down"),
    }[spelling]
    command = bench.command()
    command[command.index(str(bench.sink))] = sink
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "would be one of the job's own sources" in done.stderr
    assert (bench.source / "a.txt").read_text() == "one"
    assert (bench.source / "down" / "b.txt").read_text() == "two"


def test_names_in_percent_escapes_are_the_same_place(tmp_path: Path) -> None:
    with (
        open_store("s3://bucket/a b?endpoint_url=http://127.0.0.1:9") as source,
        open_store("s3://bucket/a%20b/?endpoint_url=http://127.0.0.1:9") as sink,
        Ledger(None, "source", "sink") as ledger,
    ):
        ledger.plan([Planned("x", "x", 1, "1", True)])
        with pytest.raises(JobError, match="own sources"):
            check_apart(source, sink, ledger, Selection(), Naming())


def test_a_list_names_the_objects(bench: Bench) -> None:
    bench.fill(a="one", b="two")
    done = bench.run("--list", "-", stdin="b\nb\nnot there\n")
    assert done.returncode == 1
    assert bench.outputs == {"b": "TWO"}
    assert "  not there: FileNotFoundError" in done.stdout


def test_odd_names_arrive(bench: Bench) -> None:
    names = ["ünï/cöde", "100% #1?&=+", "a b", "-dash", "ends.", "日本語.txt"]
    for name in names:
        bench.put(name, "x")
    assert bench.events()["done"] == len(names)
    assert sorted(bench.outputs) == sorted(names)


def test_a_dry_run_writes_nothing(bench: Bench) -> None:
    bench.fill(a="one", b="three")
    done = bench.run("--dry-run", "--prepend", "p-")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == ["2 objects, 8 bytes, would be transformed:", "  a -> p-a", "  b -> p-b"]
    assert not bench.sink.exists()
    assert not bench.ledger.exists()


def test_an_inspection_transforms_and_keeps_nothing(bench: Bench) -> None:
    bench.fill(a="one", b="bad")
    assert bench.events("--inspect", code=1)["failed"] == 1
    assert not bench.sink.exists()
    assert not bench.ledger.exists()


def test_an_inspection_of_what_failed_is_refused_for_it_knows_nothing(bench: Bench) -> None:
    bench.fill(a="bad")
    assert "--only-failed" not in bench.run("--inspect").stdout
    refused = bench.run("--inspect", "--only-failed")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_a_list_with_a_nul_is_refused_in_one_line(bench: Bench) -> None:
    bench.fill(a="one")
    refused = bench.run("--list", "-", stdin="a\0b\n")
    assert refused.returncode == 2
    assert refused.stderr == "etl-server: --list -: expected a name a line, not one with a NUL character in it\n"


def test_a_name_that_its_store_cannot_have_fails_alone() -> None:
    with (
        open_store("ais://bucket?endpoint=http://127.0.0.1:9") as source,
        Ledger(None, "source", "sink") as ledger,
    ):
        plan_objects(ledger, source, Selection(), Naming(), ["a/../b"])
        assert ledger.selected().objects == 1
