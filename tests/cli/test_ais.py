"""`etl-server ais`, run as a user runs it, against a cluster on real sockets."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from etl_server import deserialize_class
from etl_server.cli import app
from etl_server.cli.ais import transform
from etl_server.control import Job
from etl_server.control.models import JobProgress
from etl_server.errors import ETLNotRunningError
from etl_server.payload import Meta

from ..control.fake_cluster import FakeCluster, cut
from ..helpers import ServerProcess
from ..raw_client import RawClient

NAME = "thumbnails"
UPPER = """
from etl_server import ETLServer

class Upper(ETLServer):
    def transform(self, data, path, etl_args):
        return data.upper()
"""


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as running:
        running.buckets = {"src": {"a.jpg": b"one", "b.jpg": b"three"}}
        yield running


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    file = tmp_path / "upper.py"
    file.write_text(UPPER)
    return file


def command(cluster: FakeCluster, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "etl_server", "ais", *map(str, arguments), "--url", cluster.url]


def ais(cluster: FakeCluster, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(cluster, *arguments), capture_output=True, text=True, timeout=60, cwd=cwd)


def jsons(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# init


def test_init_starts_the_class_and_says_when_it_runs(cluster: FakeCluster, upper: Path) -> None:
    cluster.init_polls = 1
    done = ais(cluster, "init", NAME, upper, "--image", "registry/etl:1")
    assert (done.returncode, done.stdout) == (0, f"{NAME} is running, as job etl-{NAME}\n"), done.stderr
    assert done.stderr.splitlines() == [f"{NAME}: Initializing", f"{NAME}: Running"]
    spec = cluster.etls[NAME].spec
    environment = {variable["name"]: variable["value"] for variable in spec["runtime"]["env"]}
    payload = environment["ETL_CLASS_PAYLOAD"]
    assert deserialize_class(payload).__name__ == "Upper"
    Meta.parse(environment["ETL_CLASS_META"]).check(base64.b64decode(payload))
    assert spec["runtime"]["image"] == "registry/etl:1"
    assert spec["runtime"]["command"] == ["python", "-m", "etl_server.bootstrap"]


async def test_what_init_sends_is_what_a_pod_serves(cluster: FakeCluster, upper: Path) -> None:
    assert ais(cluster, "init", NAME, upper, "--workers", "1", "--env", "ETL_HOST=127.0.0.1").returncode == 0
    upper.unlink()
    runtime = cluster.etls[NAME].spec["runtime"]
    environment = {variable["name"]: variable["value"] for variable in runtime["env"]}
    python, *arguments = runtime["command"]
    assert python == "python"
    with ServerProcess(*arguments, environment={"ETL_PORT": "0", **environment}).wait_until_listening() as server:
        async with RawClient(server.port) as client:
            await client.send(b"PUT /bucket/name HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
            assert (await client.answer()).body == b"HELLO"


def test_init_passes_its_options_on(cluster: FakeCluster, upper: Path) -> None:
    options = ["--comm", "ws", "--direct-put", "--direct-fqn", "--init-timeout", "1m", "--object-timeout", "10s"]
    options += ["--package", "numpy>=1,<3", "--package", "pillow", "--os-package", "ffmpeg", "--workers", "2"]
    options += ["--env", "A=1=2", "--env", "B="]
    done = ais(cluster, "init", NAME, f"{upper}:Upper", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert jsons(done)[0]["stage"] == "Running"
    spec = cluster.etls[NAME].spec
    assert (spec["communication"], spec["support_direct_put"]) == ("ws://", True)
    assert (spec["init_timeout"], spec["obj_timeout"]) == ("1m", "10s")
    environment = {variable["name"]: variable["value"] for variable in spec["runtime"]["env"]}
    assert environment["PACKAGES"] == "numpy>=1,<3,pillow"
    assert environment["OS_PACKAGES"] == "ffmpeg"
    assert (environment["NUM_WORKERS"], environment["ETL_DIRECT_FQN"]) == ("2", "true")
    assert (environment["A"], environment["B"]) == ("1=2", "")


def test_an_etl_that_does_not_get_to_run_says_why_and_what_to_do(cluster: FakeCluster, upper: Path) -> None:
    cluster.init_error = "pod thumbnails-t1: ImagePullBackOff"
    done = ais(cluster, "init", NAME, upper)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ImagePullBackOff" in done.stderr.splitlines()[-1]
    assert f"remove it: etl-server ais rm {NAME}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pods_of_an_etl_that_does_not_get_to_run_are_heard(cluster: FakeCluster, upper: Path) -> None:
    async def crash(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith("/health"):
            return web.json_response([{"target_id": "t1", "health_status": "CrashLoopBackOff"}])
        if request.path.endswith("/logs"):
            return web.json_response([{"target_id": "t1", "logs": "bm8gbW9kdWxlIG51bXB5Cg=="}])
        return None

    cluster.init_error, cluster.on_request = "timed out", crash
    done = ais(cluster, "init", NAME, upper)
    assert done.returncode == 1
    assert "pod on t1: CrashLoopBackOff" in done.stderr
    assert "t1: no module numpy" in done.stderr


def test_init_refuses_a_name_that_is_taken(cluster: FakeCluster, upper: Path) -> None:
    cluster.running(NAME)
    done = ais(cluster, "init", NAME, upper)
    assert done.returncode == 1
    assert f"etl job {NAME} already exists" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init-timeout", "5 minutes"], "--init-timeout '5 minutes': expected a duration such as 45s, 5m or 1h30m"),
        (["--object-timeout", "45"], "--object-timeout '45': expected a duration such as 45s, 5m or 1h30m"),
        (["--comm", "udp"], "--comm 'udp': expected one of hpush, hpull, ws"),
        (["--comm", "ws"], "communication 'ws': AIStore knows it with direct put only"),
        (["--env", "A"], "--env 'A': expected NAME=VALUE"),
        (["--env", "NUM_WORKERS=2", "--workers", "3"], "environment variable NUM_WORKERS: it is set already"),
        (["--package", "a,b"], "package 'a,b': expected one name or requirement"),
        (["--workers", "0"], "Invalid value for '--workers'"),
        (["--url", "proxy:51080"], "--url 'proxy:51080': expected the URL of the cluster's proxy"),
    ],
)
def test_wrong_options_of_init_name_option_value_and_what_was_expected(
    cluster: FakeCluster, upper: Path, options: list[str], message: str
) -> None:
    arguments = command(cluster, "init", NAME, upper)
    arguments = arguments[:-2] if "--url" in options else arguments
    done = subprocess.run([*arguments, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in re.sub(r"[\s│]+", " ", done.stderr)
    assert cluster.seen == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["init", "short", "upper.py"],
        ["show", "Upper_Case"],
        ["transform", "no", "ais://src", "ais://dst"],
        ["get", "x" * 33, "ais://src/a"],
        ["rm", "-".join(["a"] * 20)],
    ],
)
def test_names_that_aistore_would_refuse_are_refused(cluster: FakeCluster, arguments: list[str]) -> None:
    done = ais(cluster, *arguments)
    assert done.returncode == 2
    assert re.search(r"ETL name '.*': expected 6 to 32 characters", done.stderr)
    assert cluster.seen == []


def test_init_of_a_class_without_a_transform_is_refused(cluster: FakeCluster, upper: Path) -> None:
    upper.write_text("from etl_server import ETLServer\nclass Mute(ETLServer): pass\n")
    done = ais(cluster, "init", NAME, upper)
    assert (done.returncode, cluster.seen) == (2, [])
    assert done.stderr == f"etl-server: {upper}: Mute must override transform() or transform_stream()\n"


def test_without_a_url_the_message_says_where_one_may_be() -> None:
    list_ = [sys.executable, "-m", "etl_server", "ais", "list"]
    done = subprocess.run(list_, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--url, or AIS_ENDPOINT: expected the cluster's proxy" in done.stderr


def test_the_url_may_be_in_the_environment(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    list_ = [sys.executable, "-m", "etl_server", "ais", "list"]
    environment = {**os.environ, "AIS_ENDPOINT": cluster.url}
    done = subprocess.run(list_, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout.split("\t")[:2]) == (0, [NAME, "Running"])


def test_a_cluster_that_is_not_there_gives_exit_code_1() -> None:
    list_ = [sys.executable, "-m", "etl_server", "ais", "list", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(list_, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be talked to" in done.stderr
    assert "Traceback" not in done.stderr


# Looking at ETLs


def test_list_and_show(cluster: FakeCluster) -> None:
    runtime = {"image": "registry/etl:1", "command": ["run"], "env": [{"name": "SECRET", "value": "hunter2"}]}
    cluster.running(NAME, runtime=runtime, init_timeout="5m", obj_timeout="45s", support_direct_put=True)
    cluster.running("stopped-one")
    cluster.etls["stopped-one"].stage = "Aborted"
    listed = ais(cluster, "list")
    assert listed.stdout == (
        "stopped-one\tAborted\tetl-stopped-one\t3\t30\t9\nthumbnails\tRunning\tetl-thumbnails\t3\t30\t9\n"
    )
    assert [etl["stage"] for etl in jsons(ais(cluster, "list", "--json"))] == ["Aborted", "Running"]
    shown = ais(cluster, "show", NAME)
    assert shown.returncode == 0, shown.stderr
    rows = dict(line.split("\t") for line in shown.stdout.splitlines())
    assert rows["image"] == "registry/etl:1"
    assert (rows["variables"], rows["direct put"], rows["pod on t1"]) == ("SECRET", "yes", "Running")
    assert rows["used on t1"] == "0.25 cores, 50.0 MiB"
    as_json = ais(cluster, "show", NAME, "--json")
    assert jsons(as_json)[0]["details"]["image"] == "registry/etl:1"  # type: ignore[index]
    assert "hunter2" not in shown.stdout + as_json.stdout


def test_show_of_an_etl_that_is_stopped_has_what_is_known(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.etls[NAME].stage = "Aborted"
    shown = ais(cluster, "show", NAME)
    assert shown.returncode == 0, shown.stderr
    assert "stage\tAborted" in shown.stdout
    assert "not known\tdetails: " in shown.stdout


def test_logs(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    assert ais(cluster, "logs", NAME).stdout == "listening\nthumbnails: ready\n"
    assert jsons(ais(cluster, "logs", NAME, "--target", "t1", "--json")) == [
        {"target": "t1", "text": "listening\nthumbnails: ready\n"}
    ]
    failed = ais(cluster, "logs", NAME, "--target", "t9")
    assert failed.returncode == 1
    assert 'unknown target "t9"' in failed.stderr


def test_stop_start_and_rm(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    assert ais(cluster, "stop", NAME).returncode == 0
    assert cluster.etls[NAME].stage == "Aborted"
    assert ais(cluster, "start", NAME).stdout == f"{NAME} is running, as job etl-{NAME}\n"
    assert ais(cluster, "start", NAME).returncode == 1  # it runs already
    assert ais(cluster, "rm", NAME).returncode == 0
    assert cluster.etls == {}
    missing = ais(cluster, "rm", NAME)
    assert missing.returncode == 1
    assert f"etl job {NAME}" in missing.stderr


def test_start_waits_as_long_as_it_is_told(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_server.control.client._GRACE", 0.0)
    cluster.running(NAME)
    cluster.etls[NAME].stage = "Aborted"
    cluster.init_polls, cluster.answers_before_running = 1_000_000, True
    done = CliRunner().invoke(app, ["ais", "start", NAME, "--url", cluster.url, "--init-timeout", "50ms"])
    assert isinstance(done.exception, ETLNotRunningError)
    assert "does not run after 0.05 s" in done.exception.detail
    wrong = ais(cluster, "start", NAME, "--init-timeout", "5 minutes")
    assert (wrong.returncode, "--init-timeout '5 minutes': expected a duration" in wrong.stderr) == (2, True)


def test_on_a_terminal_there_is_a_table(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(command(cluster, "list"), stdout=theirs, timeout=60, env=environment)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "name" in shown
    assert re.search(r"│ thumbnails +│ Running +│ etl-thumbnails", shown)


# transform


def test_transform_prints_the_job_and_how_to_see_it(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    done = ais(cluster, "transform", NAME, "ais://src", "ais://dst")
    assert (done.returncode, done.stdout) == (0, "job-1\n"), done.stderr
    assert f"etl-server ais job {NAME} job-1 --url {cluster.url} --stop" in done.stderr
    assert jsons(ais(cluster, "transform", NAME, "ais://src", "ais://dst", "--json")) == [{"job": "job-2", "etl": NAME}]


def test_transform_waits_for_the_end(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.objects_per_poll = 3
    options = ["--ext", "jpg:png", "--ext", ".a:.b", "--prefix", "b", "--prepend", "out/", "--wait"]
    done = ais(cluster, "transform", NAME, "ais://src", "ais://dst", *options)
    assert (done.returncode, done.stdout) == (0, "job job-1 is done: 1 objects, 5 bytes\n"), done.stderr
    assert cluster.buckets["dst"] == {"out/b.png": b"THREE"}


def test_a_dry_run_stores_nothing(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.objects_per_poll = 3
    done = ais(cluster, "transform", NAME, "ais://src", "ais://dst", "--dry-run", "--wait", "--json")
    assert jsons(done) == [
        {"job": "job-1", "etl": NAME, "ok": True, "objects": 2, "bytes": 8, "error": "", "errors": []}
    ]
    assert "dst" not in cluster.buckets


def test_failed_objects_are_listed_and_give_exit_code_1(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.bad_objects, cluster.objects_per_poll = {"a.jpg"}, 3
    arguments = ["transform", NAME, "ais://src", "ais://dst", "--continue-on-error", "--wait"]
    done = ais(cluster, *arguments)
    assert done.returncode == 1
    assert done.stdout == (
        "FAILED\tais://src/a.jpg\t500\tProcessing error: this one is bad\n"
        "job job-1 ended, and 1 of its objects failed: 1 objects, 5 bytes\n"
    )
    in_json = ais(cluster, *arguments, "--json")
    assert in_json.returncode == 1
    (result,) = jsons(in_json)
    error = {"object": "ais://src/a.jpg", "status": 500, "message": "Processing error: this one is bad"}
    assert (result["ok"], result["errors"]) == (False, [error])
    listed = ais(cluster, "errors", NAME, "--job", "job-1")
    assert listed.stdout == "ais://src/a.jpg\t500\tProcessing error: this one is bad\n"
    assert jsons(ais(cluster, "errors", NAME, "--job", "job-1", "--json")) == [error]


def test_an_aborted_job_gives_exit_code_1(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    ais(cluster, "transform", NAME, "ais://src", "ais://dst")
    done = ais(cluster, "job", NAME, "job-1", "--stop", "--wait")
    assert (done.returncode, done.stdout) == (1, "job job-1 was aborted: 0 objects, 0 bytes\n")
    assert ais(cluster, "job", NAME, "job-1").stdout == "job job-1: 0 objects, 0 bytes; aborted\n"
    assert jsons(ais(cluster, "job", NAME, "job-1", "--json"))[0]["aborted"] is True


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_go_on(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.objects_per_poll = 0
    process = subprocess.Popen(
        command(cluster, "transform", NAME, "ais://src", "ais://dst", "--wait"), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while len(cluster.requests("GET", "/v1/cluster")) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "Job job-1 goes on in the cluster." in stderr
    assert f"etl-server ais job {NAME} job-1 --url {cluster.url} --stop" in stderr
    assert "Traceback" not in stderr
    assert not cluster.jobs["job-1"].aborted


def test_losing_the_cluster_while_waiting_is_no_success(cluster: FakeCluster) -> None:
    cluster.running(NAME)

    async def lose(request: web.Request) -> web.StreamResponse | None:
        return cut(request) if request.method == "GET" else None

    cluster.on_request = lose
    done = ais(cluster, "transform", NAME, "ais://src", "ais://dst", "--wait")
    assert done.returncode == 1
    assert "What became of job job-1 is not known" in done.stderr


def test_progress_is_shown_in_place_on_a_terminal(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    cluster.objects_per_poll = 2
    ours, theirs = pty.openpty()
    arguments = command(cluster, "transform", NAME, "ais://src", "ais://dst", "--wait")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60, env=environment)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, "job job-1 is done: 2 objects, 8 bytes\n")
    assert "job job-1: 2 objects, 8 bytes" in shown


def test_progress_is_told_by_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with transform._progress(Job("job-1", NAME)) as report:
        report(JobProgress(1, 10))
        monkeypatch.setattr(transform, "_LINE_EVERY", 0.0)
        report(JobProgress(1234, 5678))
    assert capfd.readouterr().err == "job job-1: 1,234 objects, 5,678 bytes\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["src", "ais://dst"], "'src': expected a bucket, such as ais://bucket"),
        (["ais://src", "ais://dst/x"], "'ais://dst/x': expected a bucket, such as ais://bucket"),
        (["ais://src", "ais://dst", "--ext", "jpg"], "--ext 'jpg': expected OLD:NEW, such as jpg:png"),
    ],
)
def test_wrong_usage_of_transform(cluster: FakeCluster, arguments: list[str], message: str) -> None:
    done = ais(cluster, "transform", NAME, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert cluster.seen == []


def test_a_bucket_that_is_not_there_gives_exit_code_1(cluster: FakeCluster) -> None:
    cluster.running(NAME)
    done = ais(cluster, "transform", NAME, "ais://none", "ais://dst", "--wait")
    assert done.returncode == 1
    assert 'bucket "ais://none" does not exist' in done.stderr


# get


def test_get_writes_a_file_and_nothing_else(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.running(NAME)
    done = ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", "out.jpg", "--etl-args", "x&y", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jpg").read_bytes() == b"ONEx&y"
    assert done.stdout == ""
    assert ais(cluster, "get", NAME, "ais://src/b.jpg", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jpg", "out.jpg"]


def test_get_to_stdout(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.running(NAME)
    done = ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", "-", cwd=tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (0, "ONE", [])


def test_get_through_a_link_writes_what_it_leads_to(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.running(NAME)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    assert ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"ONE"


def test_get_does_not_put_a_file_in_place_of_a_device(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.running(NAME)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(command(cluster, "get", NAME, "ais://src/a.jpg", "-o", fifo))
    try:
        with fifo.open("rb") as file:
            assert file.read() == b"ONE"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_result_that_breaks_off_leaves_no_short_file(cluster: FakeCluster, tmp_path: Path, old: bytes | None) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"part")
        assert request.transport is not None
        request.transport.close()
        return response

    cluster.on_request = break_off
    file = tmp_path / "out"
    if old is not None:
        file.write_bytes(old)
    done = ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", file)
    assert done.returncode == 1
    assert "broke off" in done.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_failed_object_writes_nothing(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.running(NAME)
    cluster.bad_objects = {"a.jpg"}
    done = ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "Processing error: this one is bad" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["/proc/a.jpg", "x" * 256])  # where not even root writes
def test_a_file_that_cannot_be_written_is_told_in_one_line(cluster: FakeCluster, tmp_path: Path, file: str) -> None:
    cluster.running(NAME)
    done = ais(cluster, "get", NAME, "ais://src/a.jpg", "-o", file, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"etl-server: --output {file!r}: expected a file that can be written: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ais://src"], "'ais://src': expected an object, such as ais://bucket/name"),
        (["ais://src/a", "-o", "/"], "--output '/': expected a file"),
        (["ais://src/a", "-o", "/nowhere/x"], "--output '/nowhere/x': expected a file in a folder that exists"),
        (["ais://src/a/"], "--output '.': expected a file"),
    ],
)
def test_wrong_usage_of_get(cluster: FakeCluster, arguments: list[str], message: str) -> None:
    done = ais(cluster, "get", NAME, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert cluster.seen == []
